"""A store in one SQLite file.

WAL with `synchronous=FULL`: a commit returns after one fsync of the log beside the file (`-wal`),
and a torn write is found by checksum and rolled back.  SQLite rolls back just as silently what was
lost or damaged *after* the commit, so what the log holds is moved into the file itself: at opening,
and by `settle`, which the shell calls a moment after a write.  Then the log holds no record, and
losing it loses none.  In the moment before, only the run's peers could know better.

`locking_mode=EXCLUSIVE` holds the file's lock from the first read to close, so a second coordinator
on the same file is refused at once; should a lock ever fail (some network file systems), the
generation in the same transaction as the record still keeps the older one from writing.  One row:
the record is small and written at view changes only, so nothing is appended and nothing needs
compaction.  SQLite has no checksum of the file itself, so the row has one.

Errors: every SQLite or file error becomes StoreError, with what to do about it.  After a failed
write the store refuses all later ones: what an fsync that failed has left on disk is unknown.
A settling that finds the file held or the disk full has lost nothing, and is NotSettledYet.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import zlib
from pathlib import Path
from typing import Final

from pccl.base.errors import RemoteError
from pccl.base.private_files import make_private_file
from pccl.membership.record import Record, record_codec
from pccl.membership.store import NotSettledYet, StoreError

FORMAT: Final = 3
"""Raised whenever an older program could misread the file."""

HEADER_BYTES: Final = 512  # SQLite takes a shorter file for a new one

_SCHEMA: Final = """
CREATE TABLE journal (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    format INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    record BLOB,
    checksum INTEGER NOT NULL
)
"""


ADOPT: Final = (
    "if the run still lives, move this file away and rebuild it from the peers: "
    "pccl coordinator adopt --journal FILE"
)
_ADVICE: Final = {
    sqlite3.SQLITE_ERROR: f"it is a database, but no journal, or damaged; {ADOPT}",
    sqlite3.SQLITE_NOTADB: f"it is no journal, or its beginning is lost; {ADOPT}",
    sqlite3.SQLITE_CORRUPT: f"it is damaged; {ADOPT}",
    sqlite3.SQLITE_FULL: "the disk is full; make room and start the coordinator again",
    sqlite3.SQLITE_READONLY: "it, or its folder, cannot be written to by this user",
    sqlite3.SQLITE_PERM: "it, or its folder, cannot be written to by this user",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: is it a folder, or in one that does not exist?",
    sqlite3.SQLITE_IOERR: "reading or writing it failed; is the disk full or broken?",
}

_HELD: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_LATER: Final = (*_HELD, sqlite3.SQLITE_FULL)
_LOCK_BYTES: Final = range(1 << 30, (1 << 30) + 512)  # where SQLite's locks lie in every file

_SQLITE_ERRORS: Final = (sqlite3.Error, UnicodeError)  # its own words quote a damaged schema


class SqliteJournal:
    """Opens or makes the file, takes its lock and raises the generation.

    Raises:
        StoreError: the file is in use by another coordinator, is no journal, or cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        self._broken: str | None = None
        self._settled = 0
        self._refuse_what_looks_new()
        with contextlib.suppress(OSError):  # it is there, or SQLite says what is wrong
            # What opens lanes is in it; its log takes over who may read it.
            os.close(make_private_file(self._path))
        try:
            # The shell moves calls between threads but never makes two at once.
            self._db = sqlite3.connect(
                self._path, timeout=0, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._explain(error) from error
        try:
            self._generation = self._open()
        except _SQLITE_ERRORS as error:
            self._db.close()
            raise self._explain(error) from error
        except StoreError:
            self._db.close()
            raise

    def _refuse_what_looks_new(self) -> None:
        """Raises StoreError for the rest of a journal that SQLite would take for an empty file."""
        size, log_size = (
            os.path.getsize(path) if os.path.isfile(path) else 0
            for path in (self._path, f"{self._path}-wal")
        )
        if 0 < size < HEADER_BYTES or (size == 0 and log_size > 0):
            advice = _ADVICE[sqlite3.SQLITE_NOTADB]
            raise StoreError(f"journal {self._path}: {advice} ({size} bytes are left)")

    def _open(self) -> int:
        db = self._db
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("BEGIN EXCLUSIVE")
        # The table and its row are made together, as the second page of a file with nothing else.
        used = db.execute("PRAGMA page_count").fetchone()[0] > 1
        if not used:
            db.execute(_SCHEMA)
        row = db.execute("SELECT format FROM journal").fetchone()
        if row is None and used:
            raise self._damaged()
        if row is None:
            generation = 1
            row = (FORMAT, generation, None, _checksum(generation, None))
            db.execute("INSERT INTO journal VALUES (1, ?, ?, ?, ?)", row)
        elif row[0] != FORMAT:
            raise StoreError(
                f"journal {self._path} has format {row[0]}, and this program has {FORMAT}; use the "
                f"version of pccl that wrote it, or, {ADOPT}"
            )
        else:
            old, body, checksum = db.execute(
                "SELECT generation, record, checksum FROM journal"
            ).fetchone()
            if _checksum(old, body) != checksum:
                raise self._damaged()
            generation = int(old) + 1
            self._write(generation, body, over=old)
        db.execute("COMMIT")
        # Else a file whose log beside it is lost would be taken for a new one.
        self._checkpoint()
        return generation

    def _write(self, generation: int, body: bytes | None, *, over: int) -> bool:
        """Writes the row if it is of the generation `over`; says whether it was."""
        row = (generation, body, _checksum(generation, body), over)
        changed = self._db.execute(
            "UPDATE journal SET generation = ?, record = ?, checksum = ? WHERE generation = ?", row
        )
        return changed.rowcount == 1

    def _damaged(self) -> StoreError:
        return StoreError(f"journal {self._path}: it is damaged; {ADOPT}")

    def _explain(self, error: Exception) -> StoreError:
        damaged = sqlite3.SQLITE_CORRUPT if isinstance(error, UnicodeError) else 0
        code = getattr(error, "sqlite_errorcode", damaged) & 0xFF
        if code in _HELD:
            return StoreError(
                f"journal {self._path} is in use by another coordinator{_holder(self._path)}; stop "
                "that one first, or give this one a journal of its own"
            )
        advice = _ADVICE.get(code)
        text = f"{advice} ({error})" if advice else str(error)
        return StoreError(f"journal {self._path}: {text}")

    @property
    def generation(self) -> int:
        return self._generation

    def load(self) -> Record | None:
        try:
            row = self._db.execute("SELECT record FROM journal").fetchone()
            return None if row is None or row[0] is None else record_codec.decode(row[0])
        except _SQLITE_ERRORS as error:
            raise self._explain(error) from error
        except RemoteError as error:
            raise StoreError(
                f"journal {self._path} holds no readable record ({error}); {ADOPT}"
            ) from error

    def save(self, record: Record) -> None:
        if self._broken is not None:
            raise StoreError(f"journal {self._path} failed before: {self._broken}")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            body = record_codec.encode(record)
            changed = self._write(self._generation, body, over=self._generation)
            self._db.execute("COMMIT" if changed else "ROLLBACK")
        except _SQLITE_ERRORS as error:
            self._broken = str(error)
            raise self._explain(error) from error
        if not changed:
            self._broken = "another coordinator has taken over"
            raise StoreError(f"journal {self._path}: {self._broken}")

    def settle(self) -> None:
        """Moves the record from the log into the file itself, durably, and begins a new log."""
        if self._broken is not None:
            raise StoreError(f"journal {self._path} failed before: {self._broken}")
        try:
            self._checkpoint()
            # The first commit to a log syncs its header besides: better now than in a recovery.
            self._settled += 1
            self._db.execute(f"PRAGMA user_version = {self._settled % 2**31}")
        except _SQLITE_ERRORS as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _LATER:
                raise NotSettledYet(f"journal {self._path}: {error}") from error
            self._broken = str(error)
            raise self._explain(error) from error

    def _checkpoint(self) -> None:
        # TRUNCATE: of a log that kept its frames a part could be lost, and the rest, which is
        # older than the file, would hide it.
        busy, _, _ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:  # whoever reads the file ignores its lock
            error = sqlite3.OperationalError("another process holds the file")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error

    def adopt(self, record: Record) -> None:
        """Begins anew with a record that was not made here, and with its generation."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._write(record.generation, record_codec.encode(record), over=self._generation)
            self._db.execute("COMMIT")
        except _SQLITE_ERRORS as error:
            self._broken = str(error)
            raise self._explain(error) from error
        self._generation = record.generation

    def close(self) -> None:
        self._db.close()


def _holder(path: str) -> str:
    """Returns which process holds a file's lock, in brackets; empty where the system does not tell.

    Opening the file to ask would, at its closing, drop this process's own locks on it.
    """
    try:
        inode = os.stat(path).st_ino
        with open("/proc/locks") as listed:
            lines = [line.split() for line in listed]
    except OSError:
        return ""
    for words in lines:  # 1: POSIX ADVISORY WRITE <pid> <device and inode> <first> <last>
        held = len(words) == 8 and words[5].endswith(f":{inode}") and int(words[6]) in _LOCK_BYTES
        if held and int(words[4]) > 0:  # else it runs where this process cannot see it
            return f" (pid {words[4]})"
    return ""


def _checksum(generation: object, body: object) -> int:
    """Returns the CRC-32 of a row, of whatever types a damaged file has made its values."""
    raw = body if isinstance(body, bytes) else repr(body).encode()
    return zlib.crc32(raw, zlib.crc32(repr((FORMAT, generation)).encode()))
