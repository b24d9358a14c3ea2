"""Whatever listens in this project listens on the loopback address, is secured, or was told in so
many words that it need not be.

    coordinator                      --ca DIR, or --insecure      membership/service_exposure.py
    peers: lanes, control, streams   ticket=, or insecure=True    pccl/connecting.py
    publisher, receivers             ticket=, or insecure=True    pccl/weights/door.py
    torch groups of a store          secured, or insecure=True    pccl/pytorch/hosting.py
    torch's own store                within TLS with a ticket     pccl/pytorch/store_tunnel.py

The status goes through the coordinator's port; there is no other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import pccl
from pccl.base.errors import ConnectError, UsageError
from pccl.membership.service import CoordinatorOptions, CoordinatorThread
from pccl.transport.address import Address
from pccl.weights import Publisher, Receiver
from tests.security.laboratory import Laboratory, laboratory

__all__ = ["laboratory"]
ROOT = Path(__file__).resolve().parents[2]
PUBLIC = ("0.0.0.0", "::", "192.0.2.1")
# Every place in the sources that makes a listening socket, and what decides whether it may.
LISTENS = {
    "transport/doors.py": "its callers: server.py (check_exposure), weights/door.py",
    "native/src/net/sockets.cpp": "its caller",
    "native/src/control/strangers.cpp": "a peer's one port: connecting.py (_require_allowed)",
    "pccl/pytorch/rendezvous.py": "torch's store: loopback, insecure=True, or the tunnel",
    "pccl/pytorch/reconfigure.py": "torch's store: loopback, or insecure=True",
    "pccl/pytorch/store_tunnel.py": "within TLS, or on the loopback address",
    "pccl/bench/ranks.py": "a socket in the file system, for processes of one machine",
}
LISTENING = re.compile(
    r"\.listen\((?:[A-Za-z]*backlog|BACKLOG|world)|::listen\(|create_server\(|start_server\("
    r"|TCPStore\([^)]*(?:True|is_master=True)"
)


def test_nothing_listens_that_is_not_known_here() -> None:
    rooms = ("pccl", "transport", "membership", "collectives", "native/src", "native/bindings")
    files = [file for room in rooms for file in (ROOT / room).rglob("*") if file.is_file()]
    real = [file for file in files if not any(part.is_symlink() for part in file.parents)]
    sources = [file for file in real if file.suffix in (".py", ".cpp", ".hpp", ".inc")]
    assert len(sources) > 200
    found = {str(f.relative_to(ROOT)) for f in sources if LISTENING.search(f.read_text())}
    assert found == set(LISTENS)


@pytest.mark.parametrize("host", PUBLIC)
def test_a_coordinator_that_others_reach_needs_a_ca_or_a_word(host: str) -> None:
    with pytest.raises(UsageError, match="--insecure"):
        CoordinatorThread(CoordinatorOptions(listen=Address(host, 0))).start()


@pytest.mark.parametrize("host", PUBLIC)
def test_a_peer_that_others_reach_needs_a_ticket_or_a_word(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.delenv("PCCL_TICKET", raising=False)
    where = f"[{host}]:0" if ":" in host else f"{host}:0"
    with pytest.raises(UsageError, match="insecure=True"):
        pccl.connect("127.0.0.1:1", listen=where, timeout_s=1)


@pytest.mark.parametrize("host", PUBLIC)
@pytest.mark.parametrize(
    "listens",
    [
        lambda where: Publisher(where, ticket=""),
        lambda where: Receiver("127.0.0.1:1", listen=where, ticket=""),
    ],
)
def test_weights_that_others_reach_need_a_ticket_or_a_word(
    host: str, listens: Callable[[str], object]
) -> None:
    with pytest.raises(UsageError, match="insecure=True"):
        listens(f"[{host}]:0" if ":" in host else f"{host}:0")


def test_with_a_ticket_or_the_word_all_of_them_listen(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = "0.0.0.0:0"
    with laboratory.coordinator(listen=Address("0.0.0.0", 0)) as thread:
        laboratory.address = f"127.0.0.1:{thread.address.rpartition(':')[2]}"
        ticket = laboratory.ticket(uses=2).text
        with laboratory.connect(ticket, listen=everywhere) as comm:
            assert comm.world_size == 0 or comm.peer_id
        with Publisher(everywhere, ticket=ticket, coordinator=laboratory.address) as made:
            assert made.address.startswith("0.0.0.0:")
    monkeypatch.delenv("PCCL_TICKET", raising=False)
    options = CoordinatorOptions(listen=Address("0.0.0.0", 0), insecure=True)
    plain = CoordinatorThread(options).start()
    try:
        at = f"127.0.0.1:{plain.address.rpartition(':')[2]}"
        with pccl.connect(at, listen=everywhere, insecure=True) as comm:
            assert comm.peer_id
        with Publisher(everywhere, insecure=True) as made:
            assert made.revision == 0
        with pytest.raises(ConnectError):  # and a ticket is no word: it asks for a secured run
            laboratory.connect(ticket, address=at, timeout_s=3)
    finally:
        plain.stop()
