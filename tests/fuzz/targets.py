"""All fuzz targets of the Python side, and the inputs that each begins with."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pccl.collectives.dtypes import Dtype
from pccl.membership.enrolment import EnrolmentMessage, enrolment_codec
from pccl.membership.messages import (
    CoordinatorMessageBody,
    PeerMessageBody,
    coordinator_codec,
    peer_codec,
)
from pccl.membership.record import Record, record_codec
from pccl.state.layout import Entry, Layout
from pccl.state.manifest import Manifest, Offer, Revision, encode_offers
from pccl.state.messages import Answer, Question, answer_codec, question_codec
from pccl.state.tree import XXH3, root_of
from pccl.transport.authority import Authority, make_ca, make_request
from pccl.transport.identity import Role
from pccl.transport.join_ticket import JoinTicket
from pccl.weights.frames import Message as WeightMessage
from pccl.weights.frames import codec as weight_codec
from tests.fuzz import diallers, doors, folders, gathered, streams, told
from tests.fuzz.coordinator_story import coordinator
from tests.fuzz.decoders import DECODERS, Target
from tests.fuzz.drawing import Known, Source, draw_or_none
from tests.fuzz.member_story import member
from tests.fuzz.weights import stream_seeds as weight_stream_seeds
from tests.fuzz.weights import updates as weight_updates
from tools import corpus

KEPT = Path(__file__).resolve().parent / "corpus"
VECTORS = Path(__file__).resolve().parent.parent / "wire" / "native_frames.json"
STORIES: dict[str, Target] = {"coordinator": coordinator, "member": member}
TARGETS: dict[str, Target] = {**DECODERS, **STORIES}


MADE: dict[str, Callable[[], list[bytes]]] = {
    "ca_folder": folders.ca_seeds,
    "ca_files": folders.ca_file_seeds,
    "ledger_rows": folders.row_seeds,
    "stream_dial": diallers.dial_seeds,
    "enrolling": diallers.enrolling_seeds,
    "denials": diallers.denial_seeds,
    "tls_answers": diallers.tls_seeds,
}


def kept(name: str) -> list[bytes]:
    """Returns the inputs that the repository keeps of a target."""
    return corpus.read(KEPT / name)


def seeds(name: str) -> list[bytes]:
    """Returns the inputs a target begins with: some of each shape, the same each time."""
    if name in MADE:
        return [b"", *MADE[name]()]
    dice = random.Random(name)
    noise = [dice.randbytes(dice.randrange(1, 400)) for _ in range(20)]
    match name:
        case "peer_messages":
            return [b"", *_messages(PeerMessageBody, peer_codec, dice)]
        case "coordinator_messages":
            return [b"", *_messages(CoordinatorMessageBody, coordinator_codec, dice)]
        case "enrolment_messages":
            return [b"", *_messages(EnrolmentMessage, enrolment_codec, dice)]
        case "join_ticket":
            return [b"", *_tickets()]
        case "certificates":
            return [b"", *_certificates(), *noise]
        case "record":
            return [b"", *_messages(Record, record_codec, dice)]
        case "state_questions":
            return [b"", *_messages(Question, question_codec, dice)]
        case "state_answers":
            return [b"", *_messages(Answer, answer_codec, dice)]
        case "state_layout" | "state_manifest" | "state_offers":
            layout = Layout.of([Entry("a", Dtype.F32, (3, 2)), Entry("b.c", Dtype.I8, ())])
            digests = bytes(range(32))
            root = root_of(layout, digests, XXH3)
            manifest = Manifest(3, 4, XXH3, root, layout, digests, ("a",), "now")
            offers = encode_offers([Offer(Revision(3, 4, root), 3)])
            return [b"", layout.encoded, manifest.encode(), offers, *noise]
        case "state_stream":
            return [b"", *streams.stream_seeds(), *noise]
        case "tensor_file":
            return [b"", *streams.tensor_file_seeds()]
        case "elastic_reports":
            return [b"", *streams.elastic_seeds()]
        case "tls_handshake":
            return [b"", *doors.handshake_seeds(), *noise]
        case "enrolment":
            return [b"", *doors.enrolment_seeds(), *noise]
        case "weight_messages":
            return [b"", *_messages(WeightMessage, weight_codec, dice)]
        case "weight_update":
            return [b"", *weight_updates()]
        case "weight_stream":
            return [b"", *weight_stream_seeds(_messages(WeightMessage, weight_codec, dice))]
        case "sparse_code":
            return [b"", *gathered.sparse_seeds()]
        case "state_records":
            return [b"", *gathered.record_seeds()]
        case "status_reply":
            return [b"", *told.status_seeds()]
        case "frozen_machine":
            return [b"", *told.machine_seeds()]
        case "meeting_places":
            return told.place_seeds()
        case "native":
            vectors = json.loads(VECTORS.read_text())["valid"]
            return [b"", *(bytes.fromhex(v["body"]) for v in vectors)]
        case "addresses":
            texts = "127.0.0.1:5 [::1]:48148 host.example:1,10.0.0.7:65535 a: :1 [::1 1.2.3:4"
            return [text.encode() for text in texts.split(" ")]
        case "coordinator" | "member":
            return [dice.randbytes(dice.randrange(20, 2000)) for _ in range(40)]
        case _:
            return noise


def _tickets() -> list[bytes]:
    ids, secret = bytes(range(16)), bytes(range(32))
    made = [
        JoinTicket(ids, endpoints, secret, ids[:8], secret, 1 << 31, 2, role)
        for endpoints in ((), ("10.0.0.1:1", "[::1]:2"))
        for role in ("trainer", "receiver")
    ]
    return [ticket.text.encode() for ticket in made]


def _certificates() -> list[bytes]:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    run_id, serial = bytes(range(16)), bytes(range(16))
    ca = make_ca(key, run_id, serial, 1.7e9)
    authority = Authority(run_id, ca, key)
    leaf = authority.issue_peer(key.public_key(), Role.TRAINER, serial, 1.7e9, 3600.0)
    return [ca, leaf, make_request(key)]


def _messages(hint: Any, codec: Any, dice: random.Random) -> list[bytes]:
    bodies = []
    for cls in get_args(hint) or (hint,):
        for _ in range(30):
            message = draw_or_none(cls, Source(dice.randbytes(200)), Known())
            if message is not None and (body := _encoded(codec, message)):
                bodies.append(body)
                break
    return bodies


def _encoded(codec: Any, message: Any) -> bytes:
    """Returns nothing where a field is longer than goes over the wire."""
    try:
        return bytes(codec.encode(message))
    except ValueError:
        return b""
