"""The text that the demo trains on: the Python standard library's own sources.

Every machine that runs the demo has them, so nothing is downloaded.  Files are taken in the order
of a hash of their path, which is alike on every peer and mixes packages, so that every shard holds
text of the same kind.  Invariant: held-out files and the shards are disjoint, and each of them is a
pure function of the root folder, the shard's number and the number of shards.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TEXT_BYTES_MAX = (
    8 << 20
)  # more than a run of minutes can read; reading it takes a tenth of a second
HELD_OUT_EVERY = 16  # one file in sixteen is never trained on
HELD_OUT_BYTES_MAX = 256 << 10
SKIPPED_FOLDERS = frozenset(
    # Tests are much of the library and full of tables; the others are not the library's text.
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
)


class NoText(Exception):
    """The sources are not on this machine, or too few of them to train on."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """One peer's text: its own shard, and the held-out text that all peers have in common."""

    shard: bytes
    held_out: bytes


def default_root() -> Path:
    """Returns the folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def source_files(root: Path) -> list[Path]:
    """Lists the sources under `root` in the order that all peers agree on."""
    names = (
        path.relative_to(root)
        for path in root.rglob("*.py")
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts)
    )
    return [root / name for name in sorted(names, key=_mixed)]


def load_corpus(root: Path, *, shard: int, shards: int, least_bytes: int = 4096) -> Corpus:
    """Reads shard `shard` of `shards` and the held-out text.

    Raises:
        NoText: either of them has fewer than `least_bytes` bytes.
    """
    assert 0 <= shard < shards, (shard, shards)
    own: list[bytes] = []
    held_out: list[bytes] = []
    for number, text in enumerate(_texts(root)):
        if number % HELD_OUT_EVERY == 0:
            held_out.append(text)
        elif number % shards == shard:
            own.append(text)
    corpus = Corpus(shard=b"\n".join(own), held_out=b"\n".join(held_out)[:HELD_OUT_BYTES_MAX])
    if min(len(corpus.shard), len(corpus.held_out)) < least_bytes:
        raise NoText(
            f"{root} holds too little Python source to train on: {len(corpus.shard)} bytes in "
            f"shard {shard} of {shards} and {len(corpus.held_out)} held out, where {least_bytes} "
            "are needed; install the standard library's sources"
        )
    return corpus


def _mixed(name: Path) -> bytes:
    return hashlib.sha256(name.as_posix().encode()).digest()


def _texts(root: Path) -> Iterator[bytes]:
    left_bytes = TEXT_BYTES_MAX
    for path in source_files(root):
        if left_bytes <= 0:
            return
        text = path.read_bytes()[:left_bytes]
        left_bytes -= len(text)
        yield text
