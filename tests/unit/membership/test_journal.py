"""The journal: what it keeps, whom it refuses."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pccl.membership import journal_writer
from pccl.membership.journal_sqlite import SqliteJournal
from pccl.membership.journal_writer import JournalWriter
from pccl.membership.messages import StepDecision
from pccl.membership.record import (
    NO_NOTE,
    Activation,
    AdmittedPeer,
    CarriedDecision,
    InstallNote,
    Record,
)
from pccl.membership.store import MemoryDisk, MemoryStore, NotSettledYet, StoreError
from pccl.membership.view import FIRST_STEP_UNKNOWN, Member, View

MEMBER = Member(b"p" * 16, 3, b"s" * 16, "10.0.0.1", 4000, 9, 12)
JOINER = Member(b"j" * 16, 5, b"t" * 16, "fe80::1", 4001, 9, FIRST_STEP_UNKNOWN)
RECORD = Record(
    run_id=b"r" * 16,
    lineage=2,
    generation=1,
    min_world=2,
    incarnations=5,
    epochs_reserved=70,
    flushing=True,
    view=View(6, (MEMBER,)),
    history=(View(5, (MEMBER,)),),
    activation=Activation(View(7, (MEMBER, JOINER)), 20, "step", resolved=False, first_step=0),
    note=InstallNote(True, 12, (StepDecision(12, 2, 0, ""),), (b"g" * 16,)),
    carried=(CarriedDecision(6, StepDecision(11, 3, 3, "late")),),
    peers=(AdmittedPeer(b"p" * 16, 3, b"s" * 16, "10.0.0.1", 4000, 9, "host", 77),),
)


def test_what_was_saved_is_there_after_a_restart(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "run.db")
    assert journal.load() is None
    journal.save(RECORD)
    journal.close()

    again = SqliteJournal(tmp_path / "run.db")
    assert again.load() == RECORD
    assert (journal.generation, again.generation) == (1, 2)
    again.close()


def test_an_empty_record_survives_too(tmp_path: Path) -> None:
    empty = Record(b"r" * 16, 1, 1, 0, 0, 64, False, None, (), None, NO_NOTE, (), ())
    journal = SqliteJournal(tmp_path / "run.db")
    journal.save(empty)
    assert journal.load() == empty
    journal.close()


def test_a_second_coordinator_on_the_same_file_is_refused_in_plain_words(tmp_path: Path) -> None:
    first = SqliteJournal(tmp_path / "run.db")
    with pytest.raises(StoreError, match=r"run\.db is in use by another coordinator .*stop"):
        SqliteJournal(tmp_path / "run.db")
    first.save(RECORD)
    first.close()
    SqliteJournal(tmp_path / "run.db").close()


def test_a_write_is_synced_fully(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "run.db")
    (mode,) = journal._db.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = journal._db.execute("PRAGMA synchronous").fetchone()
    assert (mode, synchronous) == ("wal", 2)
    journal.close()


def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"these are not the bytes of a database" * 40)
    with pytest.raises(StoreError, match=r"notes\.txt"):
        SqliteJournal(path)
    assert path.read_bytes().startswith(b"these are not")
    with pytest.raises(StoreError, match="cannot be opened"):
        SqliteJournal(tmp_path / "missing" / "run.db")


def test_a_journal_of_another_format_is_refused(tmp_path: Path) -> None:
    SqliteJournal(tmp_path / "run.db").close()
    with sqlite3.connect(tmp_path / "run.db") as db:
        db.execute("UPDATE journal SET format = 99")
    db.close()
    with pytest.raises(StoreError, match="format 99"):
        SqliteJournal(tmp_path / "run.db")


def test_a_damaged_record_is_an_error_and_not_a_new_run(tmp_path: Path) -> None:
    SqliteJournal(tmp_path / "run.db").close()
    with sqlite3.connect(tmp_path / "run.db") as db:
        db.execute("UPDATE journal SET record = x'92'")
    db.close()
    with pytest.raises(StoreError, match=r"damaged.*coordinator adopt"):
        SqliteJournal(tmp_path / "run.db")


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(where=0.484375, bit=7)  # in the schema: SQLite's own error is no text any more
def test_a_flipped_bit_is_found_or_changes_nothing(where: float, bit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.db"
        journal = SqliteJournal(path)
        journal.save(RECORD)
        journal.close()
        damaged = bytearray(path.read_bytes())
        damaged[int(where * len(damaged))] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            journal = SqliteJournal(path)
        except StoreError:
            return
        try:
            assert (journal.load(), journal.generation) == (RECORD, 2)
        except StoreError:
            pass
        finally:
            journal.close()


NEWER = replace(RECORD, incarnations=9, lineage=3)


def _killed(folder: Path) -> Path:
    """Leaves the files of a coordinator that was killed some time after it saved NEWER."""
    journal = SqliteJournal(folder / "alive.db")
    journal.save(RECORD)
    journal.close()
    journal = SqliteJournal(folder / "alive.db")
    for record in (replace(RECORD, incarnations=8), NEWER):
        journal.save(record)
    journal.settle()
    path = folder / "run.db"
    for end in ("", "-wal"):
        shutil.copy(f"{folder / 'alive.db'}{end}", f"{path}{end}")
    journal.close()
    return path


def _holds_the_newest_or_says_that_it_is_damaged(path: Path) -> None:
    try:
        journal = SqliteJournal(path)
    except StoreError:
        return
    try:
        assert (journal.load(), journal.generation) == (NEWER, 3)
    except StoreError:
        pass
    finally:
        journal.close()


def test_after_a_kill_the_log_beside_the_journal_may_be_lost(tmp_path: Path) -> None:
    path = _killed(tmp_path)
    Path(f"{path}-wal").unlink()
    journal = SqliteJournal(path)
    assert (journal.load(), journal.generation) == (NEWER, 3)
    journal.close()


@pytest.mark.parametrize("end", ["", "-wal"])
def test_after_a_kill_a_torn_file_gives_the_newest_record_or_an_error(
    tmp_path: Path, end: str
) -> None:
    path = _killed(tmp_path)
    whole = {name: Path(f"{path}{name}").read_bytes() for name in ("", "-wal")}
    for length in (0, 1, 20, 32, 56, 700, 4096, 4097, 5000, len(whole[end]) - 1):
        for name, data in whole.items():
            Path(f"{path}{name}").write_bytes(data[:length] if name == end else data)
        _holds_the_newest_or_says_that_it_is_damaged(path)


@pytest.mark.parametrize("end", ["", "-wal"])
@settings(max_examples=20, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_after_a_kill_a_flipped_bit_gives_the_newest_record_or_an_error(
    end: str, where: float, bit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = _killed(Path(folder))
        damaged = bytearray(Path(f"{path}{end}").read_bytes())
        damaged[int(where * len(damaged))] ^= 1 << bit
        Path(f"{path}{end}").write_bytes(damaged)
        _holds_the_newest_or_says_that_it_is_damaged(path)


def test_a_journal_that_lost_its_end_or_its_bytes_says_how_to_get_the_run_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.db"
    journal = SqliteJournal(path)
    journal.save(RECORD)
    journal.close()
    whole = path.read_bytes()
    for torn in (
        whole[: len(whole) // 2],
        whole[:700],
        b"\0" * len(whole),
        whole[:100] + b"x" * 5000,
    ):
        path.write_bytes(torn)
        with pytest.raises(StoreError, match="pccl coordinator adopt --journal"):
            SqliteJournal(path).load()


def test_a_folder_and_a_file_without_leave_to_write_are_refused_in_plain_words(
    tmp_path: Path,
) -> None:
    with pytest.raises(StoreError, match="is it a folder"):
        SqliteJournal(tmp_path)
    locked = tmp_path / "run.db"
    SqliteJournal(locked).close()
    locked.chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        if os.access(locked, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(StoreError, match="cannot be"):
            SqliteJournal(locked)
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_is_an_error_that_names_itself(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "run.db")
    journal._db.execute("PRAGMA max_page_count = 1")  # as full as the file has grown
    with pytest.raises(StoreError, match="the disk is full; make room"):
        journal.save(replace(RECORD, note=replace(NO_NOTE, lost=(b"x" * 16,) * 1024)))
    with pytest.raises(StoreError, match="failed before"):
        journal.save(RECORD)
    journal.close()


@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR])
def test_only_a_broken_disk_makes_a_settling_fatal(tmp_path: Path, code: int) -> None:
    journal = SqliteJournal(tmp_path / "run.db")
    journal.save(RECORD)
    database, journal._db = journal._db, _Stubborn(code)  # type: ignore[assignment]
    later = code != sqlite3.SQLITE_IOERR
    with pytest.raises(NotSettledYet if later else StoreError):
        journal.settle()
    journal._db = database
    if later:
        journal.settle()
        journal.save(replace(RECORD, lineage=3))
    else:
        with pytest.raises(StoreError, match="failed before"):
            journal.settle()
    journal.close()
    assert (SqliteJournal(tmp_path / "run.db").load() == RECORD) is not later


class _Stubborn:
    """A database that does nothing but fail."""

    def __init__(self, code: int) -> None:
        self._code = code

    def execute(self, sql: str) -> None:
        error = sqlite3.OperationalError(sql)
        error.sqlite_errorcode = self._code
        raise error


def test_a_journal_that_another_process_reads_is_settled_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_writer, "AGAIN_FIRST_S", 0.01)
    warnings: list[str] = []
    monkeypatch.setattr(journal_writer._log, "warning", lambda text, *_: warnings.append(text))
    written: list[object] = []
    failures: list[BaseException] = []

    async def story() -> int:
        settled = asyncio.Event()
        loop = asyncio.get_running_loop()
        tries = 0

        def settle() -> None:
            nonlocal tries
            tries += 1
            if "second" not in written:
                raise NotSettledYet("another process holds the file")
            loop.call_soon_threadsafe(settled.set)

        writer = JournalWriter(
            written.append, settle, on_durable=lambda token: None, on_failure=failures.append
        )
        task = asyncio.create_task(writer.run())
        writer.write(1, "first")
        async with asyncio.timeout(30):
            while tries < 3:
                await asyncio.sleep(0.01)
            writer.write(2, "second")  # goes on meanwhile
            await settled.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writer.close()
        return tries

    assert asyncio.run(story()) > 3
    assert written == ["first", "second"] and failures == []
    assert len(warnings) == 1 and "stays in the log" in warnings[0]


def test_an_adopted_record_brings_its_own_generation(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "run.db")
    journal.adopt(replace(RECORD, generation=1030))
    journal.close()
    again = SqliteJournal(tmp_path / "run.db")
    assert again.generation == 1031 and again.load() == replace(RECORD, generation=1030)
    again.close()


def test_a_deposed_coordinator_can_never_write_again() -> None:
    disk = MemoryDisk()
    old = MemoryStore(disk)
    new = MemoryStore(disk)
    new.save(RECORD)
    with pytest.raises(StoreError, match="generation 1 was deposed by 2"):
        old.save(RECORD)
    assert new.load() == RECORD


def test_a_taken_over_journal_refuses_the_older_generation(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "run.db")
    journal._db.execute("UPDATE journal SET generation = generation + 1")
    with pytest.raises(StoreError, match="taken over"):
        journal.save(RECORD)
    with pytest.raises(StoreError, match="failed before"):
        journal.save(RECORD)
    journal.close()


def test_nobody_else_can_read_a_new_journal(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "run.journal")
    try:
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        journal.close()
    assert "run.journal" in modes and set(modes.values()) == {0o600}, modes
