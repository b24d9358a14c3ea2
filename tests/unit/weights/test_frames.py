"""The messages of weight sync: as documented, and nothing hostile among them is believed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args

import msgpack
import pytest

from pccl.base.errors import RemoteError
from pccl.weights import frames as f

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs/WEIGHT_SYNC.md").read_text()
MANIFEST = f.Manifest(1, 2, bytes(16), bytes(16), 10**6, 600_000, 256 << 10, bytes(48))


def words(annotation: str) -> str:
    return annotation.replace(" | None", " or none")


def test_the_messages_are_those_that_the_document_lists() -> None:
    table = re.findall(r"^\| (\d+) \| `(\w+)` \| (.*?) \|", DOCUMENT, re.MULTILINE)
    listed = {name: (int(tag), re.findall(r"`(\w+)` ([\w ]+)", cell)) for tag, name, cell in table}
    classes: list[Any] = list(get_args(f.Message))
    assert listed == {
        cls.__name__: (
            cls.__wire_tag__,
            [(field.name, words(str(field.type))) for field in dataclasses.fields(cls)],
        )
        for cls in classes
    }


def test_a_manifest_says_where_each_chunk_lies() -> None:
    assert MANIFEST.chunks == 3
    assert [MANIFEST.span(n) for n in range(3)] == [
        (0, 262_144),
        (262_144, 524_288),
        (524_288, 600_000),
    ]
    assert f.codec.decode(f.codec.encode(MANIFEST)) == MANIFEST


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("byte_count", 0),
        ("byte_count", 600_000 + (256 << 10)),  # a chunk more than there are digests
        ("byte_count", 1 << 60),
        ("chunk_bytes", 1),
        ("chunk_bytes", 1 << 40),
        ("chunk_digests", bytes(47)),
        ("digest", bytes(15)),
        ("base", bytes(1)),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(field: str, value: object) -> None:
    values = [getattr(MANIFEST, name.name) for name in dataclasses.fields(MANIFEST)]
    at = [name.name for name in dataclasses.fields(MANIFEST)].index(field)
    values[at] = value
    body = msgpack.packb([3, *values])
    with pytest.raises(RemoteError):
        f.codec.decode(body)


@pytest.mark.parametrize(
    "items",
    [
        [1, 1, bytes(15), "", 1],
        [1, 1, bytes(16), "", 65_536],
        [6, 1, bytes(3), "", 1],
        [5, 1, b"x", 1],
        [5, 1, None, 9],
        [10, 1, bytes(3), 1, 0],
        [10, 1, bytes(16), 1, 1 << 20],
        [11, 0, 0],
        [11, 0, 1 << 30],
    ],
)
def test_a_message_with_impossible_fields_is_refused(items: list[object]) -> None:
    with pytest.raises(RemoteError):
        f.codec.decode(msgpack.packb(items))
