"""Peers behind NATs, in network namespaces that have them: they reduce through a public member
which hears nothing, and a newcomer gets the state from whom it can reach, or is told so.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

import pccl
from pccl.base.errors import DeadlineExceeded
from pccl.membership.service import CoordinatorThread
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


def test_a_newcomer_that_reaches_no_holder_is_told_so_and_delays_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without namespaces: whoever says that nobody can dial it is dialled by nobody."""
    monkeypatch.delenv("PCCL_TICKET", raising=False)
    thread = CoordinatorThread().start()
    over, steps = threading.Event(), []

    def holder() -> None:
        state = pccl.SharedState({"weights": np.ones(1000)})
        with pccl.connect(thread.address, state=state, reachable=False) as comm:
            while not over.is_set():
                began_s = time.monotonic()
                comm.all_reduce(np.ones(8))
                steps.append(time.monotonic() - began_s)
                time.sleep(0.01)

    try:
        holding = threading.Thread(target=holder, daemon=True)
        holding.start()
        while not steps:
            time.sleep(0.01)
        mine = pccl.SharedState({"weights": np.zeros(1000)})
        with pccl.connect(thread.address, state=mine) as comm:
            began_s = time.monotonic()
            with (
                pytest.raises(DeadlineExceeded, match="cannot be dialled by anybody"),
                comm.step(timeout_s=4) as step,
            ):
                step.all_reduce(np.ones(8))
            assert 3 < time.monotonic() - began_s < 15
        before = len(steps)
        while len(steps) < before + 20:
            time.sleep(0.01)
        assert max(steps[1:]) < 2.0, "no step waited for it"
    finally:
        over.set()
        with contextlib.suppress(RuntimeError):
            holding.join(WAIT_S)
        thread.stop()
