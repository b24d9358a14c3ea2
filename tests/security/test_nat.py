"""Peers behind NATs, in network namespaces that have them: they reduce through a public member
which hears nothing, and a newcomer gets the state from whom it can reach, or is told so.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pccl.membership.service_ca import init_ca
from pccl.transport.identity import Role
from tests.churn.namespaces import why_not
from tests.integration.peer_processes import PeerProcess
from tests.security.laboratory import native_has_tls
from tests.security.nat_laboratory import PORT, PUBLIC_ADDRESS, Nats
from tests.security.nat_peer import needles

PROGRAM = Path(__file__).with_name("nat_peer.py")
MEMBERS = 4
WAIT_S = 60.0
in_namespaces = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@contextmanager
def coordinator(nats: Nats, *words: str) -> Iterator[None]:
    listen = f"{PUBLIC_ADDRESS}:{PORT}"
    command = [
        *nats.public,
        sys.executable,
        "-m",
        "pccl",
        "coordinator",
        "--listen",
        listen,
        *words,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(WAIT_S)


@in_namespaces
@pytest.mark.skipif(not native_has_tls(), reason="the native core has no TLS here")
@pytest.mark.parametrize("secured", [True, False])
def test_who_is_behind_a_nat_reduces_and_comes_in_with_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secured: bool
) -> None:
    monkeypatch.delenv("PCCL_TICKET", raising=False)
    monkeypatch.setenv("PCCL_TEST_UNTIL", str(MEMBERS))
    words = ["--insecure"]
    if secured:
        ca = init_ca(tmp_path / "ca")
        endpoint = f"{PUBLIC_ADDRESS}:{PORT}"
        ticket = ca.make_ticket(Role.TRAINER, uses=MEMBERS, expires_in_s=600, endpoints=(endpoint,))
        ca.close()
        monkeypatch.setenv("PCCL_TICKET", ticket.text)
        words = ["--ca", str(tmp_path / "ca")]
    heard = tmp_path / "heard"
    with ExitStack() as stack:
        nats = stack.enter_context(Nats(3))
        nats.listen(heard)
        stack.enter_context(coordinator(nats, *words))
        peers: list[PeerProcess] = []

        def start(host: list[str], program: str, count: int) -> None:
            at = f"{PUBLIC_ADDRESS}:{PORT}"
            peers.append(PeerProcess(at, program, len(peers), count, PROGRAM, host))
            stack.callback(peers[-1].discard)

        start(nats.public, "public", 3)
        start(nats.behind(0), "behind", 3)
        start(nats.behind(1), "behind", 3)
        for peer in peers:
            assert peer.until("members", 3)["exact"]
        start(nats.behind(2), "behind", 1)
        rest = [peer.rest() for peer in peers]
        assert [peer.end() for peer in peers] == [0] * MEMBERS, peers[-1].errors()
        assert all(fact["exact"] for facts in rest for fact in facts if "exact" in fact)
        assert len({facts[-1]["weights"] for facts in rest}) == 1, "all hold the same state"
        assert rest[-1][-1]["revision"] > 5, "the newcomer's is that of the members"
    said = heard.read_bytes()
    assert len(said) > 1 << 20
    # Two of the hosts reach each other through the public one alone, so all of it was heard.
    assert any(needle in said for needle in needles(MEMBERS)) == (not secured)
    if not secured:
        assert all(needle in said for needle in (needles(MEMBERS)[0], needles(MEMBERS)[-1]))
