"""Checkpoints of one process, on a folder of its own or one that others write to as well."""

from __future__ import annotations

import io
import json
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from pccl.base.errors import RemoteError
from pccl.collectives.dtypes import Dtype
from pccl.state.checkpoint import Checkpoints
from pccl.state.layout import Entry, Layout
from pccl.state.shared import SharedState
from pccl.state.tensorfile import read_header


def a_state(revision: int) -> SharedState:
    state = SharedState({"a": np.arange(8.0) + revision, "b": np.ones(3)})
    state.restored(revision, 5)
    return state


def written(folder: Path, seat: tuple[int, int], *revisions: int) -> None:
    for revision in revisions:
        checkpoints = Checkpoints(folder, every=1, keep=1, copies=1)
        checkpoints.follow(a_state(revision), lambda: seat)
        assert checkpoints.write() and checkpoints.wait(10)
        assert checkpoints.error is None and checkpoints.newest == revision
        checkpoints.close()


def test_members_that_write_their_parts_into_one_folder_leave_each_others_parts(
    tmp_path: Path,
) -> None:
    for revision in (4, 5):
        for rank in range(2):
            written(tmp_path, (rank, 2), revision)
    found = Checkpoints(tmp_path).found()
    assert {manifest.revision for _, manifest in found} == {5}, "one revision is kept"
    assert {name for _, manifest in found for name in manifest.held} == {"a", "b"}, "all of it"


def test_who_writes_what_is_decided_when_the_revision_is_made(tmp_path: Path) -> None:
    """Later, when the disk comes to it, the view may be another one, on some members only."""
    asked: list[threading.Thread] = []

    def seat() -> tuple[int, int]:
        asked.append(threading.current_thread())
        return 0, 2

    checkpoints = Checkpoints(tmp_path, every=1, copies=1)
    checkpoints.follow(a_state(1), seat)
    assert checkpoints.write() and checkpoints.wait(10)
    checkpoints.close()
    assert asked == [threading.current_thread()]


class File(io.FileIO):
    """A file with this header, and these many bytes of contents."""

    def __init__(self, path: Path, header: object, contents: int) -> None:
        encoded = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(contents))
        super().__init__(path)


def test_a_file_whose_tensors_overlap_or_lie_beyond_its_end_is_none(tmp_path: Path) -> None:
    layout = Layout.of([Entry("a", Dtype.I8, (4,)), Entry("b", Dtype.I8, (4,))])

    def places(a: int, b: int) -> dict[str, tuple[int, int]]:
        header = {n: {"data_offsets": [at, at + 4]} for n, at in (("a", a), ("b", b))}
        with io.BufferedReader(File(tmp_path / "file", header, 8)) as file:
            return {n: (p.offset, p.byte_count) for n, p in read_header(file, layout).items()}

    first = places(4, 0)["b"][0]
    assert places(0, 4) == {"a": (first, 4), "b": (first + 4, 4)}
    for a, b in ((0, 3), (2, 0), (0, 5), (-1, 4)):
        with pytest.raises(RemoteError):
            places(a, b)
