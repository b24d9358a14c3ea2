"""Namespaces and the link emulator: what is done to a link is what its ends see."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.churn.hosts import Host
from tests.churn.namespaces import NAMESPACES, PREFIX, Laboratory, why_not
from tests.churn.rules import LinkFault, LinkQuality, both_ways

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

# Connects to a port that nobody listens on: a refusal shows that packets pass, and how long they
# take both ways.
PROBE = """
import socket, sys, time
probe = socket.socket()
probe.settimeout(float(sys.argv[2]))
begin = time.monotonic()
try:
    probe.connect((sys.argv[1], 9))
except ConnectionRefusedError:
    print("refused", time.monotonic() - begin)
except TimeoutError:
    print("nothing", 0)
"""


def probe(source: Host, target: Host, timeout_s: float = 0.3) -> tuple[str, float]:
    """Returns what became of a connection, and the seconds it took."""
    words = source.run([sys.executable, "-c", PROBE, target.address, str(timeout_s)]).split()
    return words[0], float(words[1])


@pytest.mark.parametrize("fabric", ["veth", "emulator"])
def test_a_cut_silences_one_direction_and_is_undone(tmp_path: Path, fabric: str) -> None:
    with Laboratory(fabric, 3, tmp_path, quality=LinkQuality()) as laboratory:
        one, two, third = laboratory.places.hosts
        links = laboratory.links
        assert probe(one, two, 5.0)[0] == "refused"
        for cut in ([LinkFault("cut", "h0", "h1")], [LinkFault("cut", "h1", "h0")]):
            links.apply(cut)
            assert probe(one, two)[0] == "nothing"
            assert probe(one, third, 5.0)[0] == "refused"
        links.apply([])
        assert probe(one, two, 5.0)[0] == "refused"


@pytest.mark.parametrize("fabric", ["veth", "emulator"])
def test_total_loss_is_a_cut(tmp_path: Path, fabric: str) -> None:
    with Laboratory(fabric, 2, tmp_path, quality=LinkQuality()) as laboratory:
        one, two = laboratory.places.hosts
        laboratory.links.apply(both_ways("loss", "h0", "h1", 1.0))
        assert probe(one, two)[0] == "nothing"


def test_the_emulator_delays_both_ways_and_is_told_while_it_runs(tmp_path: Path) -> None:
    quality = LinkQuality(delay_ms=20.0)
    with Laboratory("emulator", 2, tmp_path, quality=quality) as laboratory:
        one, two = laboratory.places.hosts
        assert probe(one, two, 5.0)[1] >= 0.04
        laboratory.links.apply([LinkFault("delay", "h1", "h0", 60.0)])
        assert probe(one, two, 5.0)[1] >= 0.1
    assert (tmp_path / "emulator.err").read_text() == ""


def test_the_emulator_takes_jitter_and_rate_while_it_runs(tmp_path: Path) -> None:
    with Laboratory("emulator", 2, tmp_path, quality=LinkQuality()) as laboratory:
        one, two = laboratory.places.hosts
        laboratory.links.apply([LinkFault("rate", "h0", "h1", 0.004)])  # a SYN of 480 bits: 0.12 s
        assert probe(one, two, 5.0)[1] >= 0.1
        laboratory.links.apply(both_ways("jitter", "h0", "h1", 100.0))
        seconds = [probe(one, two, 5.0)[1] for _ in range(10)]
        assert max(seconds) - min(seconds) >= 0.02 and max(seconds) <= 5.0
    assert (tmp_path / "emulator.err").read_text() == ""


def test_a_frozen_host_stands_still_until_it_is_thawed(tmp_path: Path) -> None:
    program = "import time\nwhile True: print(1, flush=True); time.sleep(0.01)"
    with Laboratory("veth", 2, tmp_path, quality=LinkQuality()) as laboratory:
        host = laboratory.places.hosts[0]
        if not host.freezer:
            pytest.skip("no cgroup of version 2 can be made here")
        path = tmp_path / "output"
        with path.open("wb") as output:
            child = host.spawn([sys.executable, "-c", program], output, output)
        try:
            host.freeze([child.pid])
            state = Path(f"/proc/{child.pid}/wchan")
            assert host.cgroup is not None
            while "frozen 1" not in (host.cgroup / "cgroup.events").read_text():
                assert state.exists()
            before = path.stat().st_size
            host.run(["sleep", "0.2"])
            assert path.stat().st_size == before
            host.thaw()
            while path.stat().st_size == before:
                assert child.code is None
        finally:
            child.discard()


def test_a_laboratory_leaves_nothing_behind(tmp_path: Path) -> None:
    with Laboratory("emulator", 2, tmp_path, quality=LinkQuality()) as laboratory:
        names = {host.namespace for host in laboratory._made}
        assert names <= {path.name for path in NAMESPACES.iterdir()}
    assert not names & {path.name for path in NAMESPACES.iterdir()}
    assert all(name.startswith(PREFIX) for name in names)
