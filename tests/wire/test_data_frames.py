"""The bytes of data frames, checked against their layout with nothing but struct and xxhash.

`data_frames.json` holds what docs/PROTOCOL.md, "Data frames", says in bytes.  The native core is
held to the same bytes by native/tests/test_wire*.cpp, which must quote every one of them.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import xxhash

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(
    Path(__file__).with_name("data_frames.json").read_text(encoding="utf-8")
)
NATIVE_TESTS = sorted((Path(__file__).parents[2] / "native" / "tests").glob("test_wire*.cpp"))

FIELDS = {  # name: format and default, in the order of the bytes
    "magic": ("H", 0x6370),
    "version": ("B", 4),
    "type": ("B", None),
    "epoch": ("I", 0),
    "step": ("Q", 0),
    "tag": ("I", 0),
    "group": ("I", 0),
    "shard": ("H", 0),
    "phase": ("B", 0),
    "flags": ("B", 0),
    "slice": ("I", 0),
    "length": ("I", 0),
    "descriptor": ("I", 0),
    "weight": ("d", 1.0),
    "payload_hash": ("Q", 0),
    "zero": ("I", 0),
}
LAYOUT = struct.Struct("<" + "".join(code for code, _ in FIELDS.values()))


def header_bytes(fields: dict[str, Any]) -> bytes:
    assert fields.keys() <= FIELDS.keys()
    front = LAYOUT.pack(*(fields.get(name, default) for name, (_, default) in FIELDS.items()))
    assert len(front) == 60
    return front + struct.pack("<I", xxhash.xxh3_64_intdigest(front) & 0xFFFFFFFF)


@pytest.mark.parametrize("vector", VECTORS["headers"], ids=lambda vector: vector["name"])
def test_a_header_is_its_fields_in_order_and_a_check_of_them(vector: dict[str, Any]) -> None:
    assert header_bytes(vector["fields"]).hex() == "".join(vector["bytes"])


@pytest.mark.parametrize("vector", VECTORS["bodies"], ids=lambda vector: vector["name"])
def test_a_body_is_its_fields_in_order(vector: dict[str, Any]) -> None:
    packed = struct.pack(vector["layout"], *vector["fields"])
    assert packed.hex() == "".join(vector["bytes"])


def test_a_header_names_its_descriptor_by_the_low_half_of_its_hash() -> None:
    body = bytes.fromhex(VECTORS["bodies"][0]["bytes"])
    low = xxhash.xxh3_64_intdigest(body) & 0xFFFFFFFF
    assert VECTORS["headers"][1]["fields"]["descriptor"] == low


def test_the_native_core_is_held_to_the_same_bytes() -> None:
    quoted = "".join(test.read_text(encoding="utf-8") for test in NATIVE_TESTS)
    missing = [
        line
        for vector in VECTORS["headers"] + VECTORS["bodies"]
        for line in ([vector["bytes"]] if isinstance(vector["bytes"], str) else vector["bytes"])
        if line not in quoted
    ]
    assert missing == []
