"""Fuzz targets of what turns bytes from elsewhere into values.  Each takes bytes and returns, or
raises: what it raises is a bug, for the one error that a decoder may raise is caught here.

Beside "nothing else escapes" each target holds its decoder to what its docstring promises: what is
decoded is encoded to the same value, a stream's meaning does not depend on how it was cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from pccl.base.errors import RemoteError, UsageError
from pccl.membership import flight
from pccl.membership.enrolment import enrolment_codec
from pccl.membership.messages import coordinator_codec, peer_codec
from pccl.membership.record import record_codec
from pccl.state.layout import Layout
from pccl.state.manifest import Manifest, decode_offers, encode_offers
from pccl.state.messages import answer_codec, question_codec
from pccl.transport import native_frames
from pccl.transport.address import parse_address, parse_addresses
from pccl.transport.authority import key_of_request
from pccl.transport.codec import Codec
from pccl.transport.framing import FIRST_FRAME_BYTES_MAX, HEAD_BYTES, Framer, frame
from pccl.transport.identity import name_in
from pccl.transport.join_ticket import parse_ticket
from pccl.weights.frames import codec as weight_codec
from tests.fuzz import diallers, doors, folders, gathered, streams, told, weights
from tests.fuzz.drawing import Source

Target = Callable[[bytes], None]


def _codec(codec: Codec[Any]) -> Target:
    def target(data: bytes) -> None:
        try:
            value = codec.decode(data)
        except RemoteError:
            return
        again = codec.decode(codec.encode(value))
        assert again == value, "what was decoded does not survive a second way over the wire"

    return target


peer_messages = _codec(peer_codec)
coordinator_messages = _codec(coordinator_codec)
record = _codec(record_codec)
enrolment_messages = _codec(enrolment_codec)
state_questions = _codec(question_codec)
state_answers = _codec(answer_codec)


def join_ticket(data: bytes) -> None:
    text = data.decode("latin-1")
    try:
        ticket = parse_ticket(text)
    except UsageError:
        return
    assert ticket.text == text.strip(), "a ticket has one text"


def certificate_request(data: bytes) -> None:
    for parse in (key_of_request, name_in):
        try:
            parse(data)
        except RemoteError:
            continue


def state_layout(data: bytes) -> None:
    try:
        layout = Layout.decode(data)
    except RemoteError:
        return
    assert layout.encoded == data, "a layout has one encoding"
    assert layout.leaf_count <= layout.byte_count


def state_offers(data: bytes) -> None:
    try:
        offers = decode_offers(data)
    except RemoteError:
        return
    assert decode_offers(encode_offers(offers)) == offers


def state_manifest(data: bytes) -> None:
    try:
        manifest = Manifest.decode(data)
    except RemoteError:
        return
    assert Manifest.decode(manifest.encode()) == manifest


def native(data: bytes) -> None:
    try:
        value = native_frames.decode(data)
    except RemoteError:
        return
    assert native_frames.encode(value) == data, "a native frame has one encoding"
    assert native_frames.is_native(data)


def _frames(pieces: list[bytes]) -> tuple[list[bytes], bool]:
    """Returns the bodies of a stream, and whether it ended wrong."""
    framer = Framer()
    bodies = []
    try:
        for piece in pieces:
            framer.feed(piece)
            while (body := framer.next_message()) is not None:
                bodies.append(body)
            assert framer.pending_bytes < HEAD_BYTES + (1 << 20) + len(piece)
    except RemoteError:
        assert framer.pending_bytes == 0
        return bodies, True
    return bodies, False


def framing(data: bytes) -> None:
    """A stream of good and broken frames, whole, in single bytes, and cut where the input says."""
    source = Source(data)
    stream, cuts, sent = b"", [0], []
    intact = True
    while source and len(stream) < 400:
        body = source.take(1 + source.below(40))
        match source.below(4):
            case 0:
                stream, intact = stream + body, False
            case 1 if body:
                whole = bytearray(frame(body))
                whole[source.below(len(whole))] ^= 1 << source.below(8)
                stream, intact = stream + bytes(whole), False
            case _ if body:
                stream += frame(body)
                if intact:
                    sent.append(body)
        if source.chance(2):
            cuts.append(len(stream) - source.below(min(20, len(stream)) or 1))
    cuts = sorted({*cuts, len(stream)})
    whole_way = _frames([stream])
    assert whole_way[0][: len(sent)] == sent, "an intact frame was not read as it was sent"
    assert whole_way == _frames([stream[a:b] for a, b in itertools.pairwise(cuts)])
    if len(stream) < 100:
        assert whole_way == _frames([bytes((b,)) for b in stream])


def raw_framing(data: bytes) -> None:
    """Any bytes as a stream; the first frame is bounded more tightly."""
    bodies, _ = _frames([data])
    assert all(bodies) and (not bodies or len(bodies[0]) <= FIRST_FRAME_BYTES_MAX)


def recording(data: bytes) -> None:
    """A flight recording: entries in frames, whose events are read as far as they go."""
    source = Source(data)
    stream = flight.MAGIC if not source.chance(8) else source.take(8)
    while source:
        if source.chance(4):
            stream += source.take(source.below(40))
        else:
            body = source.take(1 + source.below(80))
            stream += frame(body) if body else b""
    try:
        for entry in flight.read_entries([stream[:5], stream[5:]]):
            if isinstance(entry, flight.Arrived):
                event = flight.event(entry)
                assert flight.event(flight.arrived(event, entry.now_s, entry.effects)) == event
    except RemoteError:
        pass


def recorded_event(data: bytes) -> None:
    """An entry of a recording that is well-formed, about whatever event."""
    source = Source(data)
    kind, number = source.below(9), source.below(256)
    text, flag, seconds = "10.0.0.9" * source.below(2), source.chance(2), float(source.byte())
    entry = flight.Arrived(1.0, b"", kind, number, source.rest(), text, seconds, flag)
    try:
        event = flight.event(entry)
    except RemoteError:
        return
    assert flight.event(flight.arrived(event, 1.0, b"")) == event


def addresses(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for parse in (parse_address, parse_addresses):
        try:
            parsed = parse(text)
        except UsageError:
            continue
        for address in parsed if isinstance(parsed, tuple) else (parsed,):
            assert parse_address(str(address)) == address


DECODERS: dict[str, Target] = {
    "framing": framing,
    "raw_framing": raw_framing,
    "peer_messages": peer_messages,
    "coordinator_messages": coordinator_messages,
    "native": native,
    "record": record,
    "enrolment_messages": enrolment_messages,
    "join_ticket": join_ticket,
    "certificates": certificate_request,
    "recording": recording,
    "recorded_event": recorded_event,
    "addresses": addresses,
    "state_questions": state_questions,
    "state_answers": state_answers,
    "state_layout": state_layout,
    "state_offers": state_offers,
    "state_manifest": state_manifest,
    "state_stream": streams.stream,
    "tensor_file": streams.tensor_file,
    "elastic_reports": streams.elastic_reports,
    "stream_dial": diallers.stream_dial,
    "enrolling": diallers.enrolling,
    "denials": diallers.denials,
    "tls_handshake": doors.handshake,
    "tls_answers": diallers.tls_answers,
    "enrolment": doors.enrolment,
    "weight_messages": _codec(weight_codec),
    "weight_update": weights.update,
    "weight_positions": weights.positions,
    "weight_stream": weights.stream,
    "sparse_code": gathered.sparse_code,
    "state_records": gathered.state_records,
    "status_reply": told.status_reply,
    "frozen_machine": told.frozen_machine,
    "ca_files": folders.ca_files,
    "ca_folder": folders.ca_folder,
    "ledger_rows": folders.ledger_rows,
    "meeting_places": told.meeting_places,
}
