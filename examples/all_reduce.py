"""Sums an array over all processes that happen to take part, again and again.

In one terminal:         pccl coordinator --listen 127.0.0.1:48148
In as many as you like:  python examples/all_reduce.py --min-world 2
Or all of it at once:    python examples/all_reduce.py --together 3
"""

import argparse
import socket
import subprocess
import sys
import time

import numpy as np

import pccl


def reduce(address: str, min_world: int, rounds: int) -> None:
    """Takes part for `rounds` steps; every peer contributes ones, so the sum is the world size."""
    with pccl.connect(address, min_world=min_world, timeout_s=60) as comm:
        for _ in range(rounds):
            x = np.full(1 << 20, 1.0, np.float32)
            begin_s = time.perf_counter()
            with comm.step() as step:
                step.all_reduce(x, op="sum")
            took_ms = (time.perf_counter() - begin_s) * 1e3
            world = len(step.outcome.contributors)
            assert (x == world).all()
            print(f"rank {comm.rank} of {world}, epoch {step.outcome.epoch}: {took_ms:.1f} ms")
            time.sleep(0.2)


def together(peers: int, rounds: int) -> int:
    """Starts a coordinator and `peers` processes here; returns the worst exit code."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    coordinator = subprocess.Popen(
        [sys.executable, "-m", "pccl", "coordinator", "--listen", address]
    )
    arguments = [sys.executable, __file__, "--address", address]
    arguments += ["--min-world", str(peers), "--rounds", str(rounds)]
    running = [subprocess.Popen(arguments) for _ in range(peers)]
    try:
        return max(peer.wait(timeout=120 + rounds) for peer in running)
    finally:
        for process in (*running, coordinator):
            process.terminate()
            process.wait(timeout=10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", default="127.0.0.1:48148", help="of the coordinator")
    parser.add_argument("--min-world", type=int, default=1, help="peers without which nothing runs")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--together", type=int, metavar="PEERS", help="start all of them here")
    chosen = parser.parse_args()
    if chosen.together:
        return together(chosen.together, chosen.rounds)
    reduce(chosen.address, chosen.min_world, chosen.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
