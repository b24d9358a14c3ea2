"""What a coordinator was given is written down and replayed to the same state."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.base.errors import RemoteError
from pccl.membership import messages as m
from pccl.membership.coordinator import Coordinator
from pccl.membership.core import CoordinatorConfig
from pccl.membership.dice import Dice
from pccl.membership.events import (
    ConnDown,
    ConnUp,
    Dialled,
    Event,
    NativeFrame,
    Paused,
    PeerMessage,
    Synced,
)
from pccl.membership.flight import CHUNK_BYTES, MAGIC, arrived, event, read_entries, thaw, to_bytes
from pccl.membership.replay import Replay
from pccl.membership.service_recorder import Recorder
from pccl.transport import native_frames as nf
from tests.test_imports import SHELLS

VERSION = "0"
ids = st.binary(min_size=16, max_size=16)
numbers = st.integers(0, (1 << 64) - 1)
epochs = st.integers(0, (1 << 32) - 1)
texts = st.text(min_size=1, max_size=40)
messages = st.one_of(
    st.builds(m.AtEntry, texts, numbers),
    st.builds(m.LinksUp, epochs),
    st.builds(m.LinksFailed, epochs, st.lists(ids, max_size=3).map(tuple)),
    st.builds(m.HoldFrom, epochs, numbers),
    st.builds(m.Leaving, texts, numbers),
    st.builds(m.Drain, st.floats(0.5, 100), texts),
    st.just(m.StatusRequest()),
)
frames = st.one_of(
    st.builds(nf.NativeHello, st.integers(0, 2), ids, ids, numbers, ids),
    st.builds(
        nf.Heartbeat,
        numbers,
        epochs,
        numbers,
        numbers,
        numbers,
        epochs,
        epochs,
        numbers,
        st.integers(0, 3),
        st.lists(st.builds(nf.WaitOn, ids, st.integers(1, 3)), max_size=3).map(tuple),
        st.lists(ids, max_size=3).map(tuple),
        st.lists(ids, max_size=3).map(tuple),
    ),
    st.builds(nf.Suspect, epochs, numbers, st.integers(1, 5), st.just(()), texts),
)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(ConnUp, numbers, texts),
    st.builds(ConnDown, numbers),
    st.builds(PeerMessage, numbers, messages),
    st.builds(NativeFrame, numbers, frames),
    st.builds(Dialled, ids, numbers, st.booleans()),
    st.builds(Synced, numbers),
    st.builds(Paused, st.floats(0, 1e6)),
)


def a_coordinator() -> Coordinator:
    return Coordinator(
        CoordinatorConfig(),
        generation=1,
        record=None,
        token_bytes=Dice(bytes(32)),
        now_s=100.0,
    )


def hello(number: int) -> m.Hello:
    ident = bytes([number]) * 16
    return m.Hello(m.PROTOCOL_VERSION, b"", ident, 0, 0, 0, "", 5000, 7, 0, "host", number)


def live(machine: Coordinator | Recorder, steps: int, first: int = 1) -> None:
    """Things happen to a coordinator: peers come, wait at entries, are lost."""
    dice = random.Random(first)
    for number in range(first, first + steps):
        now_s = 100.0 + 0.3 * number
        if machine.deadline_s is not None and machine.deadline_s <= now_s:
            machine.on_deadline(now_s)
        conn = dice.randrange(first, number + 1)
        machine.handle(ConnUp(number, "10.0.0.9"), now_s)
        machine.handle(PeerMessage(number, hello(number % 200 + 1)), now_s)
        machine.handle(PeerMessage(conn, m.AtEntry("step", 0)), now_s)
        if dice.random() < 0.3:
            machine.handle(ConnDown(conn), now_s)
        if dice.random() < 0.1:
            machine.dropped_frame()


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(CHUNK_BYTES), b"")


def a_recording(path: Path, *, steps: int = 60, bytes_max: int = 1 << 20) -> Coordinator:
    machine = a_coordinator()
    recorder = Recorder(machine, path, bytes_max=bytes_max, clock=lambda: 101.0 + 0.3 * steps)
    recorder.start()
    live(recorder, steps)
    recorder.close()
    return machine


def version() -> str:
    from pccl.membership.service_recorder import pccl_version

    return pccl_version()


@settings(deadline=None)
@given(events, st.floats(0, 1e9))
def test_every_event_comes_back_as_it_was(given_event: Event, now_s: float) -> None:
    entry = arrived(given_event, now_s, b"digest..")
    (back,) = read_entries([MAGIC, to_bytes(entry)])
    assert back == entry
    assert event(entry) == given_event


def test_a_recording_is_replayed_to_the_same_state_and_the_same_secrets(tmp_path: Path) -> None:
    machine = a_recording(tmp_path / "flight")
    replay = Replay(pieces(tmp_path / "flight"), version=version())
    assert [step.differs for step in replay.steps() if step.differs] == []
    assert replay.ended
    assert replay.status() == machine.status(replay.now_s)


def test_only_its_owner_may_read_a_recording(tmp_path: Path) -> None:
    a_recording(tmp_path / "flight", steps=2)
    assert (tmp_path / "flight").stat().st_mode & 0o777 == 0o600


def test_a_recording_that_wrapped_begins_with_the_state_it_had_then(tmp_path: Path) -> None:
    limit = 1 << 17
    machine = a_coordinator()
    recorder = Recorder(machine, tmp_path / "flight", bytes_max=limit, clock=lambda: 1e6)
    recorder.start()
    for part in range(40):
        live(recorder, 30, 1 + 30 * part)
        while recorder._queue:
            os.sched_yield()
    recorder.close()
    halves = [tmp_path / "flight.1", tmp_path / "flight"]
    assert all(half.stat().st_size <= limit for half in halves)
    ends = []
    for half in halves:
        replay = Replay(pieces(half), version=version())
        assert [step.differs for step in replay.steps() if step.differs] == []
        ends.append(replay.ended)
    assert ends == [False, True]


def test_the_recording_of_an_earlier_coordinator_is_kept(tmp_path: Path) -> None:
    a_recording(tmp_path / "flight", steps=5)
    before = (tmp_path / "flight").read_bytes()
    a_recording(tmp_path / "flight", steps=3)
    assert (tmp_path / "flight.1").read_bytes() == before


def test_a_start_in_vain_leaves_the_recording_of_a_living_coordinator_alone(tmp_path: Path) -> None:
    path = tmp_path / "flight"
    living = Recorder(a_coordinator(), path, clock=lambda: 1.0)
    living.start()
    second = Recorder(a_coordinator(), path, clock=lambda: 1.0)
    second.close()  # what a coordinator does that cannot listen
    assert [entry.name for entry in tmp_path.iterdir()] == ["flight"]
    with pytest.raises(BlockingIOError):
        second.start()
    living.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["flight"]
    second.start()
    second.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["flight", "flight.1"]


def test_a_recording_cut_anywhere_is_replayed_as_far_as_it_goes(tmp_path: Path) -> None:
    a_recording(tmp_path / "flight", steps=20)
    whole = (tmp_path / "flight").read_bytes()
    steps = []
    for cut in range(len(whole) // 2, len(whole), 97):
        replay = Replay([whole[:cut]], version=version())
        steps.append(sum(not step.differs for step in replay.steps()))
    assert steps == sorted(steps) and steps[0] < steps[-1]


def test_a_machine_that_goes_another_way_is_found_at_its_first_step(tmp_path: Path) -> None:
    a_recording(tmp_path / "flight", steps=20)
    replay = Replay(pieces(tmp_path / "flight"), version=version())
    replay.machine._core.incarnations += 5
    differing = [step.number for step in replay.steps() if step.differs]
    assert differing[0] == 2  # the first admission


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    a_recording(tmp_path / "flight", steps=20)
    whole = bytearray((tmp_path / "flight").read_bytes())
    whole[len(whole) // 2] ^= 4
    with pytest.raises(RemoteError, match=r"the recording is damaged at byte \d+"):
        list(Replay([bytes(whole)], version=version()).steps())


def test_another_version_and_other_files_are_refused_in_plain_words(tmp_path: Path) -> None:
    a_recording(tmp_path / "flight", steps=3)
    with pytest.raises(RemoteError, match="replay it with that version"):
        Replay(pieces(tmp_path / "flight"), version="99.0")
    for strange in (b"", b"PC", b"GET / HTTP/1.1\r\n\r\n"):
        with pytest.raises(RemoteError, match="flight recording"):
            Replay([strange], version=version())


def test_a_state_that_names_anything_but_the_plain_classes_is_refused() -> None:
    for strange in (os.system, Path, random.Random, "".join):
        with pytest.raises(RemoteError):
            thaw(pickle.dumps(strange))
    with pytest.raises(RemoteError):
        thaw(b"cpccl.membership.flight\nfreeze\n(tR.")
    with pytest.raises(RemoteError):
        thaw(b"garbage")


def test_a_state_cannot_name_what_opens_files_or_sockets(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for name in ("membership.journal_sqlite\nSqliteJournal", "membership.service_ledger\nLedger"):
        with pytest.raises(RemoteError, match="no place for"):
            thaw(f"cpccl.{name}\n(V{made}\ntR.".encode())
    assert not made.exists()
    for shell in SHELLS:  # of the transport nothing is named but frames
        module = shell.removesuffix("*")
        if module.startswith("pccl.membership.") or module == "pccl.transport.engine":
            with pytest.raises(RemoteError, match="no place for"):
                thaw(f"c{module}\nAnything\n.".encode())


def test_a_few_bytes_of_state_cannot_ask_for_gigabytes() -> None:
    for number in (b"r" + (1 << 31).to_bytes(4, "little"), b"p4000000000\n"):
        with pytest.raises(RemoteError, match="PUT"):
            thaw(b"\x80\x05}" + number + b".")
    with pytest.raises(RemoteError, match="cannot be read"):
        thaw(b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".")
