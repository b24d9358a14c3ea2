"""Checkpoints on this machine's disk: written beside the program, found again when all have died.

    folder/
      r000000000120-3f2a...-9c1e/      a revision, its lineage, who wrote it
        tensors.safetensors            contents, for whatever reads safetensors
        manifest.json                  revision, root, layout, digests of all leaves
      .writing-...                     not whole yet; swept away by the next writer

Invariant: a folder with a manifest is whole and on the disk: it gets its name by one rename, after
everything in it was synced.  A disk that is full or read-only costs checkpoints, never the run.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pccl.base.errors import RemoteError, UsageError
from pccl.base.log import LogWhenChanged, get_logger
from pccl.state.kept import Pin
from pccl.state.layout import Entry, Leaf
from pccl.state.manifest import Manifest
from pccl.state.shared import SharedState
from pccl.state.tensorfile import read_header, write_header
from pccl.state.tensors import Bytes

EVERY_S = 60.0
CLOSE_S = 2.0  # for the checkpoint under way, when the communicator closes
WAIT_S = 300.0
TENSORS, MANIFEST = "tensors.safetensors", "manifest.json"
MANIFEST_BYTES_MAX = 1 << 30
_WRITING = ".writing-"
_log = get_logger("state")


class Checkpoints:
    """Where and how often a state is written.

    Args:
        folder: on a disk of this machine; made if it is not there.  One for each process.
        every: writes revisions that are multiples of it; None: the newest, every `EVERY_S` seconds.
        keep: so many revisions stay, the newest.
        copies: each tensor is written by so many members only; None: everybody writes all.  Needs
            `every`, so that all write the same revisions.

    A revision is skipped while an earlier one is still being written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int | None = None,
        keep: int = 2,
        copies: int | None = None,
    ) -> None:
        if keep < 1 or (every is not None and every < 1) or (copies is not None and copies < 1):
            raise UsageError("every, keep and copies are 1 or more")
        if copies is not None and every is None:
            raise UsageError("copies= needs every=, so that all members write the same revisions")
        self.folder = Path(folder)
        self.error: OSError | None = None  # why the newest could not be written
        self.newest: int | None = None  # revision on the disk
        self._every, self._keep, self._copies = every, keep, copies
        self._state: SharedState | None = None
        self._seat: Callable[[], tuple[int, int]] = lambda: (0, 1)
        self._turn = threading.Condition()
        self._wanted: Pin | None = None
        self._written_at = (0, 1)
        self._busy = False
        self._closing = False
        self._began_s = -EVERY_S
        self._news = LogWhenChanged(_log)
        self._thread: threading.Thread | None = None

    def follow(self, state: SharedState, seat: Callable[[], tuple[int, int]]) -> None:
        """Writes this state from now on; `seat` says rank and world size."""
        self._state, self._seat = state, seat
        state.on_update = self._updated
        self._closing = False
        self._thread = threading.Thread(target=self._main, name="pccl-checkpoint", daemon=True)
        self._thread.start()

    def write(self) -> bool:
        """Writes the revision in force, beside the program; False if one is being written."""
        state = self._state
        if state is None:
            raise UsageError("these checkpoints belong to no communicator; pass checkpoint_dir=")
        with self._turn:
            if self._busy or self._wanted is not None:
                return False
            self._wanted, self._written_at = state.pin(precious=True), self._seat()
            self._began_s = time.monotonic()
            self._turn.notify_all()
        return True

    def wait(self, timeout_s: float = WAIT_S) -> bool:
        """Waits until nothing is being written; says whether that is so."""
        with self._turn:
            return self._turn.wait_for(lambda: not self._busy and self._wanted is None, timeout_s)

    def close(self) -> None:
        """Gives the checkpoint under way a moment; `wait` before, to be sure of it."""
        state, self._state = self._state, None
        if state is not None:
            state.on_update = None
        self.wait(CLOSE_S)
        with self._turn:
            self._closing = True
            self._turn.notify_all()

    def _updated(self) -> None:
        state = self._state
        if state is None:
            return
        due = (
            time.monotonic() >= self._began_s + EVERY_S
            if self._every is None
            else state.revision % self._every == 0
        )
        if due:
            self.write()

    # ---- the thread

    def _main(self) -> None:
        state = self._state
        assert state is not None
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._wanted is not None or self._closing)
                pin, self._wanted = self._wanted, None
                if pin is None:
                    return
                self._busy = True
            try:
                self._write(state, pin)
                self.error, self.newest = None, pin.revision
                self._news.forget("write")
            except OSError as error:
                self.error = error
                # without the revision, so that it is said once
                text = f"{self.folder} takes no checkpoints: {error.strerror or error}"
                self._news.log("write", logging.WARNING, f"{text}; training goes on")
            except Exception:  # a mistake of ours costs a checkpoint, not the run
                _log.exception("writing a checkpoint failed")
            finally:
                state.unpin(pin)
                with self._turn:
                    self._busy = False
                    self._turn.notify_all()

    def _write(self, state: SharedState, pin: Pin) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        held = self._share(state)
        manifest = Manifest(
            revision=pin.revision,
            lineage=pin.lineage,
            hashing=state.hashing,
            root=pin.root,
            layout=state.layout,
            digests=pin.digests,
            held=tuple(entry.name for entry in held),
            when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        draft = self.folder / f"{_WRITING}{os.getpid()}-{os.urandom(4).hex()}"
        draft.mkdir()
        try:
            with open(draft / TENSORS, "wb") as file:
                about = {"revision": str(pin.revision), "root": pin.root.hex(), "format": "pt"}
                write_header(file, held, about)
                for content in _contents(state, pin, held):
                    file.write(content.data)
                file.flush()
                os.fsync(file.fileno())
            with open(draft / MANIFEST, "wb") as file:
                file.write(manifest.encode())
                file.flush()
                os.fsync(file.fileno())
            _sync_folder(draft)
            name = f"r{pin.revision:012}-{pin.lineage:016x}-{os.urandom(4).hex()}"
            draft.rename(self.folder / name)
            _sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        self._prune()

    def _share(self, state: SharedState) -> list[Entry]:
        rank, world = self._written_at  # when all were at this revision, not when it is written
        if self._copies is None or rank < 0:
            return list(state.layout.entries)
        return [
            entry
            for index, entry in enumerate(state.layout.entries)
            if (rank - index) % max(1, world) < self._copies
        ]

    def _sweep(self) -> None:
        """Removes what a process has left that died while it wrote."""
        for path in self.folder.glob(f"{_WRITING}*"):
            pid = path.name.removeprefix(_WRITING).split("-")[0]
            if pid.isdigit() and (int(pid) == os.getpid() or not _lives(int(pid))):
                shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        """Counts revisions, not folders: other processes may write their parts beside this one."""
        found: dict[str, list[Path]] = {}
        for path in sorted(self.folder.glob("r*-*-*"), key=_age):
            name = path.name.rpartition("-")[0]  # of the revision and its lineage
            found[name] = [*found.pop(name, ()), path]
        for path in (path for name in list(found)[: -self._keep] for path in found[name]):
            (path / MANIFEST).unlink(missing_ok=True)  # first: it is no checkpoint any more
            shutil.rmtree(path, ignore_errors=True)

    # ---- reading

    def found(self) -> list[tuple[Path, Manifest]]:
        """Returns the checkpoints of this folder; what is none is told in the log."""
        checkpoints = []
        for path in sorted(self.folder.glob("r*-*-*")):
            try:
                if (path / MANIFEST).stat().st_size > MANIFEST_BYTES_MAX:
                    raise RemoteError("the manifest is too large")
                manifest = Manifest.decode((path / MANIFEST).read_bytes())
            except (OSError, RemoteError) as error:
                _log.warning("%s is no checkpoint: %s", path, error)
            else:
                checkpoints.append((path, manifest))
        return checkpoints


def _age(path: Path) -> int:
    try:
        return (path / MANIFEST).stat().st_mtime_ns
    except OSError:
        return 0  # no checkpoint, or not any more


def load(path: Path, manifest: Manifest, state: SharedState, wanted: set[str]) -> set[str]:
    """Reads tensors into the state's memory, those whose every leaf has its hash.

    Args:
        wanted: names; those that are not in the file are left alone.

    Returns:
        The names of what was read; the memory of others may hold anything.
    """
    right: set[str] = set()
    try:
        with open(path / TENSORS, "rb") as file:
            places = read_header(file, manifest.layout)
            for name in wanted & places.keys():
                file.seek(places[name].offset)
                target = state.memory_named(name)
                if file.readinto(target.data if len(target) else b"") == len(target):
                    right.add(name)
    except (OSError, RemoteError) as error:
        _log.warning("%s cannot be read: %s", path, error)
    return {name for name in right if _is_right(name, manifest, state, path)}


def _is_right(name: str, manifest: Manifest, state: SharedState, path: Path) -> bool:
    size = manifest.hashing.digest_bytes
    for index, leaf in enumerate(manifest.layout.leaves):
        if manifest.layout.entries[leaf.entry].name != name:
            continue
        memory = state.memory_of(leaf)
        digest = manifest.hashing.blocks(memory.ctypes.data, len(memory), len(memory))
        if digest != manifest.digests[size * index : size * (index + 1)]:
            _log.warning("%s: %r is damaged", path, name)
            return False
    return True


def _contents(state: SharedState, pin: Pin, held: list[Entry]) -> Iterator[Bytes]:
    names = {entry.name for entry in held}
    scratch = np.empty(1 << 20, np.uint8)
    for leaf in state.layout.leaves:
        if state.layout.entries[leaf.entry].name in names:
            yield _read(state, pin, leaf, scratch)


def _read(state: SharedState, pin: Pin, leaf: Leaf, scratch: Bytes) -> Bytes:
    content = state.read(pin, leaf, scratch)
    if content is None:
        raise OSError("no memory to keep the revision while it is written")
    return content


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lives(pid: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
