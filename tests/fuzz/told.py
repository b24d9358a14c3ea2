"""Fuzz targets of what is told by whoever answers, or lies on a disk: status replies as `pccl
status` shows them, frozen machines, and texts that name a place to meet."""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
from functools import cache
from typing import Any

from rich.console import Console

from pccl.base.errors import RemoteError
from pccl.cli.status import COLUMNS, COLUMNS_MAX, RULES, show
from pccl.membership import flight
from pccl.membership.coordinator import Coordinator
from pccl.membership.core import CoordinatorConfig
from pccl.membership.dice import Dice
from pccl.membership.events import ConnUp, PeerMessage
from pccl.membership.messages import PROTOCOL_VERSION, AtEntry, Hello, StatusReply
from pccl.membership.service_status import document_of
from pccl.pytorch.errors import Misused
from pccl.pytorch.quorum import parse_store_address
from pccl.pytorch.reconfigure import parse_handle
from pccl.pytorch.rendezvous import parse_url
from tests.fuzz.drawing import Source

KEYS = (
    *("run_id", "generation", "epoch", "profile", "uptime_s", "paused", "world_size", "outdated"),
    *("members", "learners", "links", "waits", "plan", "flush", "counters", "connections", "tls"),
    *("held_back", "of", "for", "still_s", "peer", "incarnation", "between", "via", "target"),
    *("awaited", "unheard_s", "held", *COLUMNS, *RULES),
)
SCALARS: tuple[Any, ...] = (
    *(None, True, 0, -1, 7, 1.5, 1e300, float("nan"), float("inf"), 10**30),
    *("", "ab" * 16, "10.0.0.9:1", "[/]", "[bold", "[/link]", "ä\n\x1b[2J\x00", "x" * 200),
)
DEPTH_MAX = 4


@cache
def _console() -> Console:
    return Console(highlight=False, width=COLUMNS_MAX, file=io.StringIO())


def _drawn(source: Source, depth: int = 0) -> Any:
    kind = source.below(8)
    if depth == DEPTH_MAX or kind < 4:
        return source.pick(SCALARS)
    items = range(source.below(4))
    if kind < 6:
        return [_drawn(source, depth + 1) for _ in items]
    return {source.pick(KEYS): _drawn(source, depth + 1) for _ in items}


def status_reply(data: bytes) -> None:
    """Any bytes, or any document of the known words, as a coordinator's status."""
    source = Source(data)
    if source.chance(2):
        body = source.rest()
    else:
        fields = {source.pick(KEYS): _drawn(source, 1) for _ in range(1 + source.below(12))}
        body = json.dumps(fields).encode()
    try:
        document = document_of(StatusReply(body))
    except (RemoteError, ValueError):
        return
    console = _console()
    show(document, console)
    json.dumps(document, indent=2)  # --json
    assert isinstance(console.file, io.StringIO)
    console.file.seek(0)
    console.file.truncate()


def status_seeds() -> list[bytes]:
    row = {"rank": 0, "peer_id": "ab" * 16, "address": "[::1]:5", "heartbeat_age_s": 0.1}
    links = [{"between": [1, 2], "state": "relayed", "via": 3}]
    document = {
        **{"run_id": "ab" * 16, "generation": 1, "epoch": 3, "uptime_s": 61.5, "profile": "lan"},
        **{"members": [row, row], "learners": [{**row, "held_back": "why"}], "links": links},
        **{"waits": [{"peer": 1, "step": 7, "for": "data", "of": [2], "still_s": 1.5}]},
        **{"flush": {"target": 4, "awaited": [1]}, "min_world": 2, "straggler_s": 5.0},
    }
    raw = [json.dumps(part).encode() for part in (document, [document], 7, {"uptime_s": 1e400})]
    deep = [b"[" * 500, b'{"a":' * 200 + b"1" + b"}" * 200]
    dice = random.Random(1)
    return [*(b"\x01" + body for body in (*raw, *deep)), *(dice.randbytes(80) for _ in range(20))]


_watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event.split(".")[0] in (
        "open",
        "sqlite3",
        "socket",
        "subprocess",
        "os",
        "exec",
    ):
        raise AssertionError(f"a state that is read does {event} {arguments[:1]}")


@cache
def _start_watching() -> None:
    sys.addaudithook(_watch)


def frozen_machine(data: bytes) -> None:
    """Any bytes as a coordinator's recorded state: reading them touches nothing."""
    global _watching
    _start_watching()
    _watching = True
    try:
        machine = flight.thaw(data)
    except RemoteError:
        return
    finally:
        _watching = False
    if isinstance(machine, Coordinator):
        # Of a damaged one nothing can be promised, but that it is no way to anything else.
        with contextlib.suppress(Exception):
            flight.thaw(flight.freeze(machine))


def machine_seeds() -> list[bytes]:
    """A coordinator that has lived a little, its parts, and classes that do something."""
    dice = Dice(bytes(32))
    machine = Coordinator(
        CoordinatorConfig(), generation=1, record=None, token_bytes=dice, now_s=1.0
    )
    for number in range(1, 4):
        ident = bytes([number]) * 16
        hello = Hello(PROTOCOL_VERSION, b"", ident, 0, 0, 0, "", 5000, 7, 0, "host", number)
        machine.handle(ConnUp(number, "10.0.0.9"), 1.0 + number)
        machine.handle(PeerMessage(number, hello), 1.0 + number)
        machine.handle(PeerMessage(number, AtEntry("step", 0)), 1.0 + number)
    strange = ("membership.service_ledger\nLedger", "membership.journal_sqlite\nSqliteJournal")
    named = [f"cpccl.{name}\n(V/nowhere/at/all\ntR.".encode() for name in strange]
    return [flight.freeze(machine), flight.freeze(dice), flight.freeze({"a": (1, 2.0)}), *named]


def meeting_places(data: bytes) -> None:
    """Any text as an address of a torch group, a handle of a process, or torchft's store."""
    text = data.decode("utf-8", "surrogateescape")
    for said in (text, f"pccl://{text}"):
        with contextlib.suppress(Misused):
            asked = parse_url(said)
            assert 1 <= asked.least <= asked.most and 1 <= asked.start <= asked.most
    for said in (text, f"pccl:1:{text}"):
        with contextlib.suppress(Misused):
            handle = parse_handle(said)
            assert parse_handle(str(handle)) == handle
    with contextlib.suppress(ValueError):
        store = parse_store_address(text)
        assert store.host and 0 < store.port < 1 << 16


def place_seeds() -> list[bytes]:
    texts = (
        *("host:1/job?min=2&max=4", "pccl://a:1,b:2/x?elastic=1&start=2", "[::1]:5/?world_size=2"),
        *("[::1", "0:name:5:host", "7:n:65535:fe80::1", "host:29500/prefix", "[::1]:1/", "?min=x"),
    )
    return [text.encode() for text in texts]
