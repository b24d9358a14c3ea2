"""What a second donor is worth where uplinks are slow, and what it costs if one of two is killed.

    ./dev run python -m benchmarks.state_donors [--json FILE]      as root: namespaces, tc

Hosts have uplinks of 200 Mbit/s (token buckets).  A member that only receives fetches the whole
state, 64 MiB, from

    one       another member
    two       two other members, at once
    killed    the same two, one of which is killed (SIGKILL) in the middle

in turns; every turn checks the bytes and the contents.  What the kill costs is the time of `killed`
less that of `two` of the same turn.  Part of it nobody can save, for the rest comes by one uplink:
with half of the bytes still to come, a quarter of the time of `one`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import pccl
from benchmarks import machine
from benchmarks.slow_links import WAIT_S, Hosts, Peers, slow_links

MODULE = "benchmarks.state_donors"
FASTER = 1.8
KILL_S = 2.0
RECEIVER, DONOR, OTHER = 0, 1, 2  # hosts
KILL_AT = 0.5  # of the time that `two` took


def peer(address: str, host: int, world: int, size: int) -> None:
    """One host's process: a sync for each JSON line, with a JSON line in answer."""
    content = np.arange(size // 8, dtype=np.uint64)
    state = pccl.SharedState({"state": content})
    receives = host == RECEIVER
    with pccl.connect(address, min_world=1, step_timeout_s=WAIT_S, insecure=True) as comm:
        comm.wait_for(world, timeout_s=WAIT_S)
        comm.sync(state)
        for line in sys.stdin:
            json.loads(line)
            if receives:
                content[:] = 0
            comm.all_reduce(np.zeros(1))  # all begin together
            began_s = time.perf_counter()
            result = comm.sync(strategy="receive_only" if receives else "send_only")
            took_s = time.perf_counter() - began_s
            assert (content == np.arange(size // 8, dtype=np.uint64)).all()
            answer = {"s": took_s, "bytes": result.byte_count, "lost": len(result.lost)}
            print(json.dumps(answer), flush=True)


def turn(peers: Peers) -> dict[str, Any]:
    answer: dict[str, Any] = peers.run({})[RECEIVER]
    return answer


def measure(hosts: Hosts, turns: int, size: int) -> dict[str, Any]:
    one = hosts.start(MODULE, (RECEIVER, DONOR), str(size))
    times: dict[str, list[float]] = {"one": [], "two": [], "killed": []}
    turn(one)  # opens windows and touches memory
    for _ in range(turns):
        two = hosts.start(MODULE, (RECEIVER, DONOR, OTHER), str(size))
        turn(two)
        for name, peers in (("one", one), ("two", two)):
            answer = turn(peers)
            assert answer["bytes"] == size and not answer["lost"], answer
            times[name].append(answer["s"])
        two.ask({})
        time.sleep(KILL_AT * times["two"][-1])
        two.kill(OTHER)
        answer = two.answers()[RECEIVER]
        assert answer["lost"] == 1, "the kill came too late to matter"
        times["killed"].append(answer["s"])
        two.end()
    cost = [cut - whole for cut, whole in zip(times["killed"], times["two"], strict=True)]
    return {
        "seconds": {name: median(values) for name, values in times.items()},
        "all seconds": times,
        "faster": median(a / b for a, b in zip(times["one"], times["two"], strict=True)),
        "cost of the kill, s": median(cost),
        "cost in each turn, s": cost,
        "of it for want of the uplink, s": uplink_cost_s(median(times["one"])),
    }


def uplink_cost_s(one_s: float) -> float:
    """Returns what losing one of two equal uplinks at KILL_AT costs if all else is free."""
    return one_s / 2 * (1 - KILL_AT)


def main() -> int:
    if sys.argv[1:2] == ["--peer"]:
        size, address, host, world = sys.argv[2:]
        peer(address, int(host), int(world), int(size))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rate-mbit", type=float, default=200.0)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--strict", action="store_true", help="exit 1 if a bar is missed")
    options = parser.parse_args()
    report: dict[str, Any] = {**machine.describe(), "load before": machine.load()}
    print(f"commit {report['commit']}, load {report['load before']:.1f}, {report['command']}")
    with slow_links(3, options.rate_mbit) as hosts:
        found = measure(hosts, options.turns, options.mib << 20)
    report["donors"] = found
    report["load after"] = machine.load()
    for name, seconds in found["seconds"].items():
        each = ", ".join(f"{s:.2f}" for s in found["all seconds"][name])
        print(f"{name:8} {seconds:.3f} s  ({each})")
    faster, cost = found["faster"], found["cost of the kill, s"]
    met = faster >= FASTER and cost < KILL_S
    print(f"two donors: {faster:.2f} times one; bar {FASTER:g}: {word(faster >= FASTER)}")
    print(
        f"the kill: {cost:.2f} s, of which the lost uplink explains "
        f"{found['of it for want of the uplink, s']:.2f} s; bar {KILL_S:g} s: {word(cost < KILL_S)}"
    )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if met or not options.strict else 1


def word(met: bool) -> str:
    return "met" if met else "MISSED"


if __name__ == "__main__":
    sys.exit(main())
