"""A trainer publishes its weights; workers hold exactly the same bits a moment later.

In one terminal:         python examples/weight_sync.py --publish
In as many as you like:  python examples/weight_sync.py
Or all of it at once:    python examples/weight_sync.py --together 3

Workers may be killed and started at any moment, and the trainer never waits for one.
"""

import argparse
import subprocess
import sys
import time
from typing import Any

import numpy as np

import pccl.weights

SIDE = 1024


def empty_model() -> dict[str, Any]:
    """Torch tensors would do as well, for example a model's `state_dict()`."""
    return {"weight": np.zeros((SIDE, SIDE), np.float16), "step": np.zeros((), np.int64)}


def publish(listen: str, revisions: int, workers: int) -> int:
    """Changes one weight in a hundred per revision, and publishes each."""
    dice = np.random.default_rng(0)
    model = empty_model()
    model["weight"][:] = dice.standard_normal((SIDE, SIDE))
    with pccl.weights.Publisher(listen) as publisher:
        print(f"publishing at {publisher.address}", flush=True)
        while publisher.receivers < workers:
            time.sleep(0.05)
        for step in range(1, revisions + 1):
            at = dice.integers(0, SIDE, (2, SIDE * SIDE // 100))
            model["weight"][at[0], at[1]] *= np.float16(1.01)
            model["step"][...] = step
            done = publisher.publish(model)
            size = done.delta_bytes or done.anchor_bytes
            digest = done.digest.hex()[:12]
            print(f"revision {done.revision}, digest {digest}: {size} bytes", flush=True)
            time.sleep(0.2)
        while workers and publisher.receivers:
            time.sleep(0.05)
    return 0


def follow(address: str, revisions: int) -> int:
    """Pulls until the last revision; between two pulls a real worker would generate something."""
    model = empty_model()
    with pccl.weights.Receiver(address) as receiver:
        while (receiver.revision or 0) < revisions:
            done = receiver.pull(model, at_least=(receiver.revision or 0) + 1, timeout_s=60)
            assert int(model["step"]) == done.revision
        print(f"revision {done.revision}, digest {done.digest.hex()[:12]}", flush=True)
    return 0


def together(workers: int, revisions: int) -> int:
    """Starts a trainer and workers here; returns the worst exit code."""
    base = [sys.executable, __file__, "--revisions", str(revisions)]
    command = [*base, "--publish", "--workers", str(workers), "--address", "127.0.0.1:0"]
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    running = [trainer]
    try:
        assert trainer.stdout is not None
        address = trainer.stdout.readline().split()[-1]
        follower = [*base, "--address", address]
        running += [subprocess.Popen(follower, text=True) for _ in range(workers)]
        for line in trainer.stdout:
            print(line, end="", flush=True)
        return max(process.wait(timeout=120) for process in running)
    finally:
        for process in running:
            process.terminate()
            process.wait(timeout=10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", default="127.0.0.1:48150", help="of the trainer")
    parser.add_argument("--publish", action="store_true", help="be the trainer")
    parser.add_argument("--workers", type=int, default=0, help="the trainer waits for them")
    parser.add_argument("--revisions", type=int, default=20)
    parser.add_argument("--together", type=int, metavar="WORKERS", help="start all of it here")
    chosen = parser.parse_args()
    if chosen.together:
        return together(chosen.together, chosen.revisions)
    if not chosen.publish:
        return follow(chosen.address, chosen.revisions)
    return publish(chosen.address, chosen.revisions, chosen.workers)


if __name__ == "__main__":
    sys.exit(main())
