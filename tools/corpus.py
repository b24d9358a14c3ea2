"""Corpora of the fuzz targets as they are kept in the repository: one file per target.

A file is the magic, then each input behind its length (u16, little endian).  native/fuzz/replay.cpp
reads the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

MAGIC = b"PCCLFUZZ"
INPUT_BYTES_MAX = (1 << 16) - 1
FILE_BYTES_MAX = 64 * 1024


def read(path: Path) -> list[bytes]:
    """Returns the inputs; none where no corpus is kept.

    Raises:
        ValueError: it is no corpus, or one that was cut.
    """
    if not path.is_file():
        return []
    rest = path.read_bytes()
    if not rest.startswith(MAGIC):
        raise ValueError(f"{path} is no corpus")
    rest, inputs = rest[len(MAGIC) :], []
    while rest:
        size = int.from_bytes(rest[:2], "little")
        if len(rest) < 2 + size:
            raise ValueError(f"{path} was cut")
        inputs.append(rest[2 : 2 + size])
        rest = rest[2 + size :]
    return inputs


def write(path: Path, inputs: Iterable[bytes]) -> int:
    """Keeps the inputs, the shortest ones if all of them are too much; returns how many."""
    kept, total = [], len(MAGIC)
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        total += 2 + len(data)
        if len(data) > INPUT_BYTES_MAX or total > FILE_BYTES_MAX:
            break
        kept.append(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = b"".join(len(data).to_bytes(2, "little") + data for data in kept)
    path.write_bytes(MAGIC + packed)
    return len(kept)
