"""Laws of everything that is read from outside, told to Hypothesis."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any, get_args

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.base.errors import RemoteError, UsageError
from pccl.identity import load_or_make_key
from pccl.membership.messages import (
    CoordinatorMessageBody,
    PeerMessageBody,
    coordinator_codec,
    peer_codec,
)
from pccl.membership.record import Record, record_codec
from pccl.transport import native_frames
from pccl.transport.address import parse_addresses
from pccl.transport.framing import Framer, frame
from tests.fuzz.drawing import Known, Source, draw_or_none

CODECS: list[tuple[Any, Any]] = [
    *((cls, peer_codec) for cls in get_args(PeerMessageBody)),
    *((cls, coordinator_codec) for cls in get_args(CoordinatorMessageBody)),
    (Record, record_codec),
    *((cls, native_frames) for cls in get_args(native_frames.Frame)),
]
CHOICES = st.binary(min_size=40, max_size=400)


def name_of(value: object) -> str:
    return getattr(value, "__name__", "")


def body_of(cls: Any, codec: Any, data: bytes) -> tuple[Any, bytes] | None:
    """Returns a message drawn from data, and its bytes; None where its fields do not fit."""
    value = draw_or_none(cls, Source(data), Known())
    try:
        return None if value is None else (value, codec.encode(value))
    except ValueError:
        return None


@pytest.mark.parametrize(("cls", "codec"), CODECS, ids=name_of)
@settings(max_examples=30, deadline=None)
@given(CHOICES)
def test_every_message_comes_back_as_it_was_sent(cls: Any, codec: Any, data: bytes) -> None:
    drawn = body_of(cls, codec, data)
    if drawn is not None:
        assert codec.decode(drawn[1]) == drawn[0]


@pytest.mark.parametrize(("cls", "codec"), CODECS, ids=name_of)
@settings(max_examples=5, deadline=None)
@given(CHOICES)
def test_a_message_may_arrive_in_two_pieces_cut_at_any_byte(
    cls: Any, codec: Any, data: bytes
) -> None:
    drawn = body_of(cls, codec, data)
    if drawn is None or len(drawn[1]) > 4096:
        return
    stream = frame(drawn[1])
    for at in range(len(stream) + 1):
        framer = Framer()
        framer.feed(stream[:at])
        assert (framer.next_message() is not None) == (at == len(stream))
        framer.feed(stream[at:])
        if at < len(stream):
            body = framer.next_message()
            assert body is not None and codec.decode(body) == drawn[0]


@settings(max_examples=100, deadline=None)
@given(CHOICES, st.data())
def test_a_flipped_bit_anywhere_in_a_frame_is_caught(data: bytes, chosen: st.DataObject) -> None:
    stream = bytearray(frame(data))
    bit = chosen.draw(st.integers(0, 8 * len(stream) - 1))
    stream[bit // 8] ^= 1 << bit % 8
    framer = Framer()
    framer.feed(bytes(stream))
    with pytest.raises(RemoteError):
        framer.next_message()


@given(st.text(max_size=80) | st.from_regex(r"[\[\]0-9a-f.:,%]{0,60}"))
def test_addresses_are_understood_or_refused_with_advice(text: str) -> None:
    try:
        parsed = parse_addresses(text)
    except UsageError as error:
        assert "address" in str(error)
        return
    assert parsed == parse_addresses(",".join(str(address) for address in parsed))


def pem(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


GOOD_KEY = pem(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


def read_key(content: bytes) -> Ed25519PrivateKey:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "id.pem"
        file.write_bytes(content)
        return load_or_make_key(file)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD_KEY) - 1), st.binary(max_size=4), st.booleans())
def test_an_identity_file_holds_a_key_or_is_refused(at: int, put: bytes, cut: bool) -> None:
    content = GOOD_KEY[:at] + put + (b"" if cut else GOOD_KEY[at + len(put) :])
    try:
        read_key(content)
    except UsageError as error:
        assert "id.pem" in str(error)


def test_keys_of_another_kind_are_refused() -> None:
    unknown = base64.b64encode(bytes.fromhex("3017020100300506032a0304040b0409deadbeefdeadbeef00"))
    wrapped = b"-----BEGIN PRIVATE KEY-----\n" + unknown + b"\n-----END PRIVATE KEY-----\n"
    for content in (b"", wrapped, pem(X25519PrivateKey.generate())):
        with pytest.raises(UsageError, match=r"id\.pem"):
            read_key(content)
