"""Runs over IPv6 and by host names: coordinators, tickets' endpoints, and what peers advertise.

On loopback everywhere; with hosts of their own, which have addresses of IPv6 alone and know each
other by names, where there are network namespaces.  A newcomer fetches the state, so lanes, control
connections and streams have all been dialled so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

import pccl
from pccl.base.errors import UsageError
from pccl.membership.service import CoordinatorOptions, CoordinatorThread
from pccl.membership.service_ca import CaFolder, init_ca
from pccl.transport.address import Address
from pccl.transport.identity import Role
from pccl.weights import Receiver
from tests.churn.namespaces import ip, why_not
from tests.integration.coordinator_processes import CoordinatorProcess
from tests.integration.peer_processes import PeerProcess
from tests.security.laboratory import native_has_tls

PROGRAM = Path(__file__).with_name("nat_peer.py")
NETWORK, PORT = "fd78:7063:636c", 48148
HOSTS = 3
NAMES = tuple(f"host{n}.example" for n in range(HOSTS))
in_namespaces = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
needs_tls = pytest.mark.skipif(not native_has_tls(), reason="the native core has no TLS here")
pytestmark = [needs_tls]


def literal(number: int) -> str:
    return f"{NETWORK}::{number + 1}"


@pytest.fixture(autouse=True)
def three_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PCCL_TICKET", raising=False)
    monkeypatch.setenv("PCCL_TEST_UNTIL", str(HOSTS))


@contextmanager
def hosts(folder: Path) -> Iterator[list[list[str]]]:
    """Namespaces on one bridge; gives what to put before a command that is to run in each."""
    names = [f"pccl-six-{os.getpid()}-{n}" for n in range(HOSTS)]
    table = folder / "hosts"
    lines = [f"{literal(n)} {NAMES[n]}" for n in range(HOSTS)]
    table.write_text("\n".join(("::1 localhost", *lines)) + "\n")
    try:
        for number, name in enumerate(names):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            if number == 0:
                ip("-n", name, "link", "add", "hub", "type", "bridge")
                ip("-n", name, "addr", "add", f"{literal(0)}/64", "dev", "hub", "nodad")
                ip("-n", name, "link", "set", "hub", "up")
                continue
            port, at = f"port{number}", ("netns", names[0])
            ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", port, *at)
            ip("-n", name, "addr", "add", f"{literal(number)}/64", "dev", "eth0", "nodad")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", names[0], "link", "set", port, "master", "hub", "up")
        # `ip netns exec` has mounts of its own, in which this table of names is seen by it alone.
        script = f'mount --bind "{table}" /etc/hosts && exec "$@"'
        yield [["ip", "netns", "exec", name, "sh", "-c", script, "sh"] for name in names]
    finally:
        for name in reversed(names):
            with suppress(OSError):
                ip("netns", "del", name)


@contextmanager
def coordinator(within: list[str], *words: str) -> Iterator[None]:
    command = [*within, sys.executable, "-m", "pccl", "coordinator", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert "coordinator listening on" in process.stdout.readline()
        yield
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def ticket(ca: CaFolder, endpoint: str) -> str:
    made = ca.make_ticket(Role.TRAINER, uses=HOSTS, expires_in_s=600, endpoints=(endpoint,))
    return made.text


def train(address: str, places: list[list[str]], advertised: list[str] | None = None) -> None:
    """Two found, a third comes with nothing; all sums are exact and all states the same."""
    with ExitStack() as stack:
        peers: list[PeerProcess] = []
        for number, within in enumerate(places):
            if advertised is not None:
                within = [*within, "env", f"PCCL_TEST_ADVERTISE={advertised[number]}"]
            if number == HOSTS - 1:
                assert peers[0].until("members", HOSTS - 1)["exact"]
            count = 2 if number < HOSTS - 1 else 1
            peers.append(PeerProcess(address, "public", number, count, PROGRAM, within))
            stack.callback(peers[-1].discard)
        rest = [peer.rest() for peer in peers]
        assert [peer.end() for peer in peers] == [0] * HOSTS, peers[-1].errors()
        assert all(fact["exact"] for facts in rest for fact in facts if "exact" in fact)
        assert len({facts[-1]["weights"] for facts in rest}) == 1
        assert rest[-1][-1]["revision"] > 5, "the newcomer's is that of the members"


@pytest.mark.parametrize("host", ["::1", "localhost"])
@pytest.mark.parametrize("secured", [False, True])
def test_a_run_on_loopback_by_ipv6_and_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, secured: bool
) -> None:
    folder = tmp_path / "ca"
    ca = init_ca(folder)
    options = CoordinatorOptions(listen=Address(host, 0), ca=folder if secured else None)
    with CoordinatorThread(options) as thread:
        if secured:
            monkeypatch.setenv("PCCL_TICKET", ticket(ca, thread.address))
        here = ["[::1]", "::1", "[::1]"] if host == "::1" else [host] * HOSTS
        train("" if secured else thread.address, [[]] * HOSTS, here)
    ca.close()


@in_namespaces
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("secured", [False, True])
def test_hosts_with_addresses_of_ipv6_alone_train_by_address_and_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secured: bool, named: bool
) -> None:
    endpoint = f"{NAMES[0]}:{PORT}" if named else f"[{literal(0)}]:{PORT}"
    ca = init_ca(tmp_path / "ca")
    with hosts(tmp_path) as places:
        words = ["--ca", str(tmp_path / "ca")] if secured else ["--insecure"]
        with coordinator(places[0], "--listen", endpoint, *words):
            if secured:
                monkeypatch.setenv("PCCL_TICKET", ticket(ca, endpoint))
            train("" if secured else endpoint, places, list(NAMES) if named else None)
    ca.close()


@in_namespaces
def test_a_peer_that_advertises_loopback_off_loopback_is_told_what_to_give(tmp_path: Path) -> None:
    endpoint = f"{NAMES[0]}:{PORT}"
    with hosts(tmp_path) as places, coordinator(places[0], "--listen", endpoint, "--insecure"):
        within = [*places[1], "env", "PCCL_TEST_ADVERTISE=localhost:7"]
        peer = PeerProcess(endpoint, "public", 0, 1, PROGRAM, within)
        assert peer.end() == 1
        peer.discard()
    said = peer.errors()
    assert "UsageError: advertise='localhost:7', which is ::1, leads each of the others" in said
    assert "give an address of this machine" in said


@pytest.mark.parametrize("advertise", ["0.0.0.0", "::", "[::]"])
def test_no_receiver_of_weights_advertises_a_wildcard(advertise: str) -> None:
    with pytest.raises(UsageError, match="leads nobody anywhere; give an address"):
        Receiver("127.0.0.1:1", advertise=advertise, ticket="")


def test_a_receiver_advertises_loopback_to_a_publisher_there_alone() -> None:
    with pytest.raises(UsageError, match="leads each of the others to itself"):
        Receiver("192.0.2.1:1", listen="0.0.0.0:0", advertise="::1", insecure=True, ticket="")
    with Receiver("127.0.0.1:1", advertise="127.0.0.1", ticket=""):
        pass
    with pytest.raises(UsageError, match="is not an address"):
        Receiver("127.0.0.1:1", advertise="127.0.0.1:48148", ticket="")


def test_a_ca_and_insecure_contradict_each_other_and_the_text_says_so(tmp_path: Path) -> None:
    init_ca(tmp_path / "ca").close()
    with pytest.raises(pccl.UsageError, match="give one of them"):
        CoordinatorOptions(ca=tmp_path / "ca", insecure=True)
    for command in ((), ("adopt", "--journal", str(tmp_path / "run.journal"))):
        words = ("--ca", str(tmp_path / "ca"), "--insecure", "--listen", "127.0.0.1:0")
        process = CoordinatorProcess(*command, *words)
        code, errors = process.end()
        assert code == 2 and errors.startswith("error: ") and "give one of them" in errors
    assert not (tmp_path / "run.journal").exists()
