"""Writes the vectors of the native control frames: `native_frames.json`, for every language.

Run `python tests/wire/make_native_frames.py` from the root after a change of the protocol, and
read the difference: a line that changes is a frame that older peers no longer understand.
`valid` frames have their fields by name (bytes as hex digits) and their body; `invalid` bodies
must be refused, each for the one reason it names.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from pccl.transport import native_frames as nf
from pccl.transport.native_kinds import TEXT_BYTES_MAX

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
A, B, C = (bytes(range(start, start + 16)) for start in (0x00, 0x40, 0xF0))

FRAMES: dict[str, nf.Frame] = {
    "hello to the coordinator": nf.NativeHello(0, A, B, 7, C, generation=U64 - 1, epoch=U32 - 1),
    "hello of a lane of the third series": nf.NativeHello(1, A, B, U64, C, series=3),
    "hello of a peer control connection": nf.NativeHello(2, A, B, 1, C),
    "welcome from a peer": nf.Welcome(),
    "welcome from a coordinator": nf.Welcome(9),
    "refused with an empty text": nf.RefusedFrame(3, ""),
    "refused by an old copy": nf.RefusedFrame(8, "old copy"),
    "refused with a text beyond ASCII": nf.RefusedFrame(6, "no lanes → here"),
    "refused with the longest text": nf.RefusedFrame(1, "x" * TEXT_BYTES_MAX),
    "heartbeat of an idle peer": nf.Heartbeat(1, 0, 0, 0, 0),
    "heartbeat at every limit": nf.Heartbeat(
        *(U64, U32, U64, U64, U64, U32, U32, U64, 3),
        waits=(nf.WaitOn(A, 1), nf.WaitOn(B, 2), nf.WaitOn(C, 4)),
        down=(A, B, C),
        relayed=(B, C),
    ),
    "pong": nf.Pong(2, 3),
    "flush": nf.Flush(2, 4),
    "report of a peer without steps": nf.Report(2, 4, 3, False, 0, 10, 10),
    "report with committed and open steps": nf.Report(
        2,
        4,
        3,
        True,
        12,
        10,
        15,
        (12, 13),
        (
            nf.OpenStep(10, 3, True, True, False, A, B, 0x1122334455667788),
            nf.OpenStep(11, 3, True, False, False, A, bytes(16), 1),
            nf.OpenStep(14, 2, False, False, True, bytes(16), bytes(16), U64, bound=True),
        ),
        (nf.FailedStep(7, 3), nf.FailedStep(12, 7)),
    ),
    "suspect of two peers": nf.Suspect(3, 11, 1, (A, C), "dtype f32 here, f64 there"),
    "suspect without names": nf.Suspect(3, 11, 3),
    "suspect of a view that has changed": nf.Suspect(3, 11, 9, (), "the root is gone"),
    "suspect of a contribution of its own": nf.Suspect(3, 11, 10, (), "it holds NaN"),
    "suspect of itself": nf.Suspect(3, 11, 7, (), "its state has not come"),
    "evicted": nf.EvictedFrame(2, "silent for 3.0 s"),
    "peer beat": nf.PeerBeat(3, 11, 1 << 40),
    "hello of a relay's user": nf.NativeHello(3, A, B, 1, C),
    "hello of a lane through a relay": nf.NativeHello(4, A, B, 1, C, series=U32),
    "hello of a stream": nf.NativeHello(5, A, B, 1, C),
    "relay": nf.RelayFrame(B, 9),
    "relay of a call": nf.RelayFrame(B, 9, U64),
    "relay of one that was called": nf.RelayFrame(B, 9, 3, answers=True),
    "call": nf.CallFrame(B, 9, U64 - 1),
    "no routes": nf.Routes(2, 3),
    "two routes": nf.Routes(2, 3, (nf.Route(A, B), nf.Route(C, B))),
}

WAITS = (nf.WaitOn(A, 1),)
PONG, FLAGS_AT = nf.encode(nf.Pong(2, 3)), 3 + 8 + 4 + 4 + 1 + 8 + 8 + 8 + 2 + 2 + 8 + 4
OPEN = nf.encode(
    nf.Report(2, 4, 3, False, 0, 0, 0, (), (nf.OpenStep(1, 3, True, True, False, A, B, 1),))
)
FAILED = nf.Report(2, 4, 3, False, 0, 0, 0, failed=(nf.FailedStep(1, 3),))


def changed(body: bytes, at: int, value: int) -> bytes:
    at %= len(body)
    return body[:at] + bytes([value]) + body[at + 1 :]


INVALID: dict[str, bytes] = {
    "empty": b"",
    "the magic byte alone": b"\xc1",
    "no version": b"\xc1\x05",
    "MessagePack": b"\x91\x05\x01" + bytes(9),
    "type 0": changed(PONG, 1, 0),
    "type 14": changed(PONG, 1, 14),
    "another version": changed(PONG, 2, 1),
    "one byte short": PONG[:-1],
    "one byte long": PONG + b"\x00",
    "purpose 6": changed(nf.encode(FRAMES["hello to the coordinator"]), 3, 6),
    "refusal code 0": changed(nf.encode(FRAMES["refused with an empty text"]), 3, 0),
    "refusal code 10": changed(nf.encode(FRAMES["refused with an empty text"]), 3, 10),
    "waiting 4": changed(nf.encode(FRAMES["heartbeat of an idle peer"]), 55, 4),
    "kind of wait 0": changed(nf.encode(nf.Heartbeat(1, 0, 0, 0, 0, waits=WAITS)), 74, 0),
    "kind of wait 5": changed(nf.encode(nf.Heartbeat(1, 0, 0, 0, 0, waits=WAITS)), 74, 5),
    "switched 2": changed(nf.encode(FRAMES["report of a peer without steps"]), 19, 2),
    "an unknown flag of an open step": changed(OPEN, FLAGS_AT, 16),
    "more open steps announced than sent": changed(OPEN, 3 + 8 + 4 + 4 + 1 + 24 + 2, 2),
    "failure code 11": nf.encode(FAILED)[:-1] + b"\x0b",
    "more failures announced than sent": nf.encode(FAILED)[:-11]
    + b"\x02"
    + nf.encode(FAILED)[-10:],
    "suspect code 0": changed(nf.encode(FRAMES["suspect without names"]), 15, 0),
    "suspect code 6": changed(nf.encode(FRAMES["suspect without names"]), 15, 6),
    "suspect code 11": changed(nf.encode(FRAMES["suspect without names"]), 15, 11),
    "a text longer than the frame": b"\xc1\x03\x04\x01\x05\x00abcd",
    "a text over the limit": b"\xc1\x03\x04\x01\x01\x08" + b"x" * 2049,
    "a text that is not UTF-8": b"\xc1\x03\x04\x01\x02\x00\xff\xfe",
    "answers 2": changed(nf.encode(FRAMES["relay"]), -1, 2),
    "65535 routes announced and none sent": nf.encode(nf.Routes(2, 3))[:-2] + b"\xff\xff",
    "65535 links announced and none sent": nf.encode(FRAMES["heartbeat of an idle peer"])[:-2]
    + b"\xff\xff",
}


def plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def document() -> dict[str, Any]:
    return {
        "valid": [
            {
                "name": name,
                "frame": type(frame).__name__,
                "fields": plain(frame),
                "body": nf.encode(frame).hex(),
            }
            for name, frame in FRAMES.items()
        ],
        "invalid": [{"name": name, "body": body.hex()} for name, body in INVALID.items()],
    }


if __name__ == "__main__":
    path = Path(__file__).with_name("native_frames.json")
    path.write_text(json.dumps(document(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
