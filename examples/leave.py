"""Three processes step together; SIGTERM any of them: it leaves, and no step is tried again.

In one terminal:         pccl coordinator --listen 127.0.0.1:48148
In as many as you like:  python examples/leave.py                 (then: kill one, without -9)
Or all of it at once:    python examples/leave.py --together
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np

import pccl

STEPS = 60


def take_part(address: str) -> None:
    """Steps until the end, or until it is told to go; then the last step is done by all."""
    done = 0
    with pccl.connect(address, timeout_s=60, drain_on_sigterm_s=30) as comm:
        comm.wait_for(world_size=2, timeout_s=60)
        while done < STEPS:
            ones = np.ones(1 << 16, np.float32)
            with comm.step() as step:  # raises pccl.Left once the others go on without this process
                step.all_reduce(ones, op="sum")
            done = step.number + 1
            world = len(step.outcome.contributors)
            assert (ones == world).all() and step.outcome.retries == 0
            leaving = ", on its way out" if comm.leaving else ""
            print(
                f"pid {os.getpid()}: step {step.number:2} with {world} peers{leaving}", flush=True
            )
            time.sleep(0.1)
    print(f"pid {os.getpid()}: {'left' if done < STEPS else 'done'} after step {done - 1}")


def together() -> int:
    """Starts a coordinator and three peers, sends one SIGTERM; returns the worst exit code."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    python = sys.executable
    serve = [python, "-m", "pccl", "coordinator", "--listen", address]
    coordinator = subprocess.Popen(serve, text=True)
    peer = [python, __file__, "--address", address]
    leaver = subprocess.Popen(peer, stdout=subprocess.PIPE, text=True)
    others = [subprocess.Popen(peer, text=True) for _ in range(2)]
    running: list[subprocess.Popen[str]] = [leaver, *others]
    try:
        assert leaver.stdout is not None
        for line in leaver.stdout:
            print(line, end="", flush=True)
            if "step 10 " in line:
                print(f"--- kill -TERM {leaver.pid}", flush=True)
                leaver.send_signal(signal.SIGTERM)
        return max(abs(process.wait(timeout=120)) for process in running)
    finally:
        for process in (*running, coordinator):
            process.terminate()
            process.wait(timeout=10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", default="127.0.0.1:48148", help="of the coordinator")
    parser.add_argument("--together", action="store_true", help="start and stop peers here")
    chosen = parser.parse_args()
    if chosen.together:
        return together()
    take_part(chosen.address)
    return 0


if __name__ == "__main__":
    sys.exit(main())
