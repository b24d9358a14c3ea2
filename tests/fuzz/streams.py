"""Fuzz targets of what is read from sockets and files as it comes: streams between programs, heads
of files of tensors, and the reports of an elastic group.

Sockets are pairs whose other end has said everything and hung up, so nothing ever waits.
"""

from __future__ import annotations

import itertools
import os
import socket
from typing import Any, cast

from pccl.base.errors import RemoteError
from pccl.collectives.dtypes import Dtype
from pccl.pytorch.elastic.survey import REPORT_BYTES, Report, UnknownReport, decide
from pccl.state.layout import Entry, Layout
from pccl.state.stream import Identity, Stream, StreamLost
from pccl.state.tensorfile import read_header, write_header
from pccl.transport import native_frames as nf
from pccl.transport.framing import frame
from pccl.transport.identity import Name, Role
from tests.fuzz.drawing import Source

RUN_ID, SECRET, DIALLER = b"r" * 16, b"s" * 16, b"d" * 16
LAYOUT = Layout.of([Entry("a", Dtype.F32, (3, 2)), Entry("b.c", Dtype.I8, (5,))])
WAIT_S = 5.0
BODIES_MAX = 8


class _Shaken:
    """A TLS handshake that has gone well: what is told of here comes behind it."""

    def accept(
        self, sock: socket.socket, run_id: bytes, timeout_s: float
    ) -> tuple[socket.socket, Name]:
        return sock, Name(run_id, DIALLER, Role.TRAINER)


IDENTITY = Identity(RUN_ID, b"l" * 16, 7, SECRET, cast("Any", _Shaken()))


def hello(**changes: Any) -> nf.NativeHello:
    says = {"run_id": RUN_ID, "peer_id": DIALLER, "incarnation": 3, "secret": SECRET}
    return nf.NativeHello(**{"purpose": nf.Purpose.STREAM, **says, **changes})


def stream(data: bytes) -> None:
    """A dialler's first words on a secured stream, and whatever it says when it is welcome."""
    near, far = socket.socketpair()
    with near, far:
        far.sendall(data)
        far.shutdown(socket.SHUT_WR)
        try:
            accepted = Stream.accept(near, IDENTITY, WAIT_S)
        except (StreamLost, RemoteError):
            return
        welcome = frame(nf.encode(hello()))
        assert data[: len(welcome)] == welcome or _shows_secret(data), "nobody else is welcome"
        try:
            for _ in range(BODIES_MAX):
                assert len(accepted.receive(1 << 12)) <= 1 << 12
        except (StreamLost, RemoteError):
            pass
        finally:
            accepted.close()


def _shows_secret(data: bytes) -> bool:
    return all(part in data[:200] for part in (SECRET, RUN_ID, DIALLER))


def stream_seeds() -> list[bytes]:
    wrong: list[dict[str, Any]] = [
        {"secret": bytes(16)},
        {"run_id": bytes(16)},
        {"peer_id": bytes(16)},
        {"purpose": nf.Purpose.DATA_LANE},
    ]
    hellos = [frame(nf.encode(hello(**changes))) for changes in ({}, *wrong)]
    return [*hellos, hellos[0] + frame(b"\x91\x01"), hellos[0] + b"\xff" * 8]


_file = -1


def tensor_file(data: bytes) -> None:
    """Any bytes as a file of tensors."""
    global _file
    if _file < 0:
        _file = os.memfd_create("tensors")
    os.ftruncate(_file, 0)
    os.pwrite(_file, data, 0)
    os.lseek(_file, 0, os.SEEK_SET)
    with open(_file, "rb", closefd=False) as file:
        try:
            places = read_header(file, LAYOUT)
        except RemoteError:
            return
    sizes = {entry.name: entry.byte_count for entry in LAYOUT.entries}
    for name, place in places.items():
        assert place.byte_count == sizes[name] and place.offset >= 8
        assert place.offset + place.byte_count <= len(data)
    ends = sorted((p.offset, p.offset + p.byte_count) for p in places.values())
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ends))


def tensor_file_seeds() -> list[bytes]:
    import io

    file = io.BytesIO()
    write_header(file, LAYOUT.entries, {"made": "here"})
    head = file.getvalue()
    return [head, head + bytes(29), head + bytes(28), b"\x02" + bytes(7) + b"{}"]


def elastic_reports(data: bytes) -> None:
    """Reports of a few members; all decide, and a source is named only if somebody is healed."""
    source = Source(data)
    reports: list[Report] = []
    while source and len(reports) < 16:
        row = source.take(REPORT_BYTES).ljust(REPORT_BYTES, b"\0")
        try:
            reports.append(Report.unpack(row))
        except UnknownReport:
            continue
        assert Report.unpack(reports[-1].pack()) == reports[-1]
    if reports:
        decision = decide(reports)
        assert (decision.source is not None) == bool(decision.healed)
        assert decision.source not in decision.healed
        assert set(decision.diverged) <= set(decision.healed)


def elastic_seeds() -> list[bytes]:
    new, old = Report(False), Report(True, 7, b"x" * 16, b"replica1", 2)
    return [new.pack(), old.pack() + new.pack(), old.pack() * 2 + Report(True, 8).pack()]
