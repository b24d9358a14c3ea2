"""Three processes count together; kill any of them, start others: the count goes on.

In one terminal:         pccl coordinator --listen 127.0.0.1:48148
In as many as you like:  python examples/survive_a_kill.py        (then: kill -9 one, start one)
Or all of it at once:    python examples/survive_a_kill.py --together
"""

import argparse
import os
import socket
import subprocess
import sys
import time

import numpy as np

import pccl

COUNT_TO = 80


def count(address: str) -> None:
    """Counts committed steps; a newcomer gets the count so far from the members."""
    state = {"count": np.zeros(1, np.int64)}
    counted = state["count"]
    synced = False
    with pccl.connect(address, timeout_s=60) as comm:
        while True:
            synced = pccl.sync_state(comm, state, synced=synced)
            if counted[0] >= COUNT_TO:
                break
            ones = np.ones(1 << 18, np.float32)
            with comm.step(name="count") as step:
                step.all_reduce(ones, op="sum")
            world = len(step.outcome.contributors)
            assert (ones == world).all()  # exactly those who contributed, whoever died meanwhile
            counted += 1
            again = f", tried {step.outcome.retries + 1} times" if step.outcome.retries else ""
            print(f"pid {os.getpid()}: {counted[0]:3} with {world} peers{again}", flush=True)
            time.sleep(0.1)
    print(f"pid {os.getpid()}: done at {counted[0]}")


def together() -> int:
    """Starts a coordinator and three peers, kills one, starts another; returns an exit code."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    python = sys.executable
    coordinator = subprocess.Popen([python, "-m", "pccl", "coordinator", "--listen", address])
    peer = [python, __file__, "--address", address]
    running = [subprocess.Popen(peer) for _ in range(3)]
    try:
        time.sleep(3)
        print(f"--- kill -9 {running[0].pid}", flush=True)
        running[0].kill()
        time.sleep(1)
        running.append(subprocess.Popen(peer))
        print(f"--- started {running[-1].pid}", flush=True)
        codes = [process.wait(timeout=120) for process in running]
        return int(any(codes[1:]))
    finally:
        for process in (*running, coordinator):
            process.terminate()
            process.wait(timeout=10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", default="127.0.0.1:48148", help="of the coordinator")
    parser.add_argument("--together", action="store_true", help="start and kill peers here")
    chosen = parser.parse_args()
    if chosen.together:
        return together()
    count(chosen.address)
    return 0


if __name__ == "__main__":
    sys.exit(main())
