"""The native control frames against the vectors that every implementation must agree on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pccl.base.errors import RemoteError
from pccl.transport import native_frames as nf

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(
    Path(__file__).with_name("native_frames.json").read_text(encoding="utf-8")
)
ID_FIELDS = frozenset("run_id peer_id secret manifest digest peer via".split())
STRUCTS = {"open": nf.OpenStep, "failed": nf.FailedStep, "waits": nf.WaitOn, "routes": nf.Route}


def frame_of(vector: dict[str, Any]) -> nf.Frame:
    def value(name: str, plain: Any) -> Any:
        if name in ID_FIELDS:
            return bytes.fromhex(plain)
        if name in ("down", "relayed", "suspects"):
            return tuple(bytes.fromhex(item) for item in plain)
        if name in STRUCTS:
            made = STRUCTS[name]
            return tuple(made(**{key: value(key, item[key]) for key in item}) for item in plain)
        return tuple(plain) if name == "committed" else plain

    made: nf.Frame = getattr(nf, vector["frame"])(
        **{name: value(name, plain) for name, plain in vector["fields"].items()}
    )
    return made


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda vector: vector["name"])
def test_the_fields_and_the_bytes_are_each_others_image(vector: dict[str, Any]) -> None:
    frame, body = frame_of(vector), bytes.fromhex(vector["body"])
    assert nf.encode(frame) == body
    assert nf.decode(body) == frame


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=lambda vector: vector["name"])
def test_a_body_with_one_thing_wrong_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(RemoteError):
        nf.decode(bytes.fromhex(vector["body"]))


def test_a_hello_is_laid_out_as_the_protocol_says() -> None:
    run, peer, secret = b"r" * 16, b"p" * 16, b"s" * 16
    body = nf.encode(
        nf.NativeHello(1, run, peer, 0x0102, secret, series=0x030002, generation=0x0405, epoch=6)
    )
    expected = b"\xc1\x01\x04" + b"\x01" + run + peer + b"\x02\x01\0\0\0\0\0\0" + secret
    numbers = b"\x05\x04\0\0\0\0\0\0" + b"\x06\0\0\0"
    assert body == expected + b"\x02\x00\x03\x00" + numbers


def test_a_heartbeat_is_laid_out_as_the_protocol_says() -> None:
    waits = (nf.WaitOn(b"w" * 16, 3),)
    body = nf.encode(nf.Heartbeat(1, 2, 3, 4, 5, 6, 7, 8, 2, waits, (b"d" * 16,), (b"r" * 16,)))
    numbers = ((1, 8), (2, 4), (3, 8), (4, 8), (5, 8), (6, 4), (7, 4), (8, 8), (2, 1), (1, 2))
    fields = b"".join(value.to_bytes(size, "little") for value, size in numbers)
    lists = b"w" * 16 + b"\x03" + b"\x01\x00" + b"d" * 16 + b"\x01\x00" + b"r" * 16
    assert body == b"\xc1\x04\x04" + fields + lists


def test_a_reader_can_tell_another_version_from_garbage() -> None:
    body = bytearray(nf.encode(nf.Flush(1, 2)))
    body[2] = 9
    with pytest.raises(nf.UnknownVersion, match="version 9, ours is 4"):
        nf.decode(bytes(body))
