"""Reads what a connection says, and answers what cannot be read before the connection ends.

Whoever is turned away here learns why and what to do about it: a `Refused` with code `message` in
the agents' protocol, a REFUSED frame in the native one.  Both are last words.

Errors: RemoteError, after the answer was queued; the caller ends the connection.
"""

from __future__ import annotations

from typing import NoReturn

from pccl.base.errors import RemoteError
from pccl.membership.core import native_text
from pccl.membership.events import NativeFrame, PeerMessage
from pccl.membership.messages import (
    PROTOCOL_VERSION,
    TEXT_CHARACTERS_MAX,
    Hello,
    PeerMessageBody,
    Refused,
    StatusRequest,
    coordinator_codec,
    peer_codec,
)
from pccl.transport import native_frames
from pccl.transport.channel import Channel

ADVICE = "use the same version of pccl for the peers and their coordinator"


def read_first(channel: Channel, first: bytes) -> bool:
    """Checks what a connection begins with; returns whether it only asks for the status."""
    if native_frames.is_native(first):
        _check_native_hello(channel, _decode_native(channel, first))
        return False
    msg = _decode_message(channel, first)
    if not isinstance(msg, Hello | StatusRequest):
        refuse_message(channel, f"it begins with {type(msg).__name__} instead of Hello")
    return isinstance(msg, StatusRequest)


def read(conn: int, channel: Channel, body: bytes, *, native: bool) -> PeerMessage | NativeFrame:
    """Returns what a later body of a connection says; a connection keeps to its protocol."""
    if native:
        return NativeFrame(conn, _decode_native(channel, body))
    return PeerMessage(conn, _decode_message(channel, body))


def refuse_message(channel: Channel, text: str) -> NoReturn:
    refuse(
        channel, "message", f"{text}; this coordinator speaks protocol {PROTOCOL_VERSION}: {ADVICE}"
    )


def refuse(channel: Channel, code: str, text: str) -> NoReturn:
    channel.send(coordinator_codec.encode(Refused(code, text[:TEXT_CHARACTERS_MAX])))
    channel.close(text)
    raise RemoteError(text)


def refuse_either(channel: Channel, body: bytes, code: str, text: str) -> NoReturn:
    """Refuses in the protocol that `body` is of."""
    if native_frames.is_native(body):
        refuse_native(channel, native_frames.RefusalCode.INCARNATION, text)
    refuse(channel, code, text)


def _decode_message(channel: Channel, body: bytes) -> PeerMessageBody:
    try:
        return peer_codec.decode(body)
    except RemoteError as error:
        refuse_message(channel, error.reason)


def _decode_native(channel: Channel, body: bytes) -> native_frames.Frame:
    try:
        return native_frames.decode(body)
    except RemoteError as error:
        refuse_native(channel, native_frames.RefusalCode.PROTOCOL, f"{error.reason}; {ADVICE}")


def _check_native_hello(channel: Channel, frame: native_frames.Frame) -> None:
    if not isinstance(frame, native_frames.NativeHello):
        text = f"it begins with {type(frame).__name__} instead of a native hello"
        refuse_native(channel, native_frames.RefusalCode.PROTOCOL, text)
    if frame.purpose != native_frames.Purpose.COORDINATOR:
        text = "this is a coordinator, which has neither lanes nor peers"
        refuse_native(channel, native_frames.RefusalCode.PURPOSE, text)


def refuse_native(channel: Channel, code: int, text: str) -> NoReturn:
    short = native_text(text)
    channel.send(native_frames.encode(native_frames.RefusedFrame(code, short)))
    channel.close(short)
    raise RemoteError(short)
