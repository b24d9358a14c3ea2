"""Properties of the native control frames; their exact bytes are in tests/wire/."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.base.errors import RemoteError
from pccl.transport import native_frames as nf

u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (32, 64))
ids = st.binary(min_size=16, max_size=16)
id_lists = st.lists(ids, max_size=4).map(tuple)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
open_steps = st.builds(
    nf.OpenStep, u64, u32, st.booleans(), st.booleans(), st.booleans(), ids, ids, u64
)
frames = st.one_of(
    st.builds(nf.NativeHello, st.integers(0, 4), ids, ids, u64, ids, u32, u64, u32),
    st.builds(nf.Welcome, u64),
    st.builds(nf.RefusedFrame, st.integers(1, 8), texts),
    st.builds(
        nf.Heartbeat,
        *(u64, u32, u64, u64, u64, u32, u32, u64, st.integers(0, 3)),
        st.lists(st.builds(nf.WaitOn, ids, st.integers(1, 3)), max_size=4).map(tuple),
        *(id_lists, id_lists),
    ),
    st.builds(nf.Pong, u64, u32),
    st.builds(nf.Flush, u64, u32),
    st.builds(
        nf.Report,
        *(u64, u32, u32, st.booleans(), u64, u64, u64),
        st.lists(u64, max_size=4).map(tuple),
        st.lists(open_steps, max_size=4).map(tuple),
    ),
    st.builds(nf.Suspect, u32, u64, st.integers(1, 5), id_lists, texts),
    st.builds(nf.EvictedFrame, u64, texts),
    st.builds(nf.PeerBeat, u32, u64, u64),
    st.builds(nf.Routes, u64, u32, st.lists(st.builds(nf.Route, ids, ids), max_size=4).map(tuple)),
    st.builds(nf.RelayFrame, ids, u64, u64, st.booleans()),
    st.builds(nf.CallFrame, ids, u64, u64),
)


@given(frames)
def test_a_frame_comes_back_as_it_was_sent(frame: nf.Frame) -> None:
    body = nf.encode(frame)
    assert nf.is_native(body)
    assert nf.decode(body) == frame


@given(frames, st.data())
def test_a_cut_frame_is_a_remote_error(frame: nf.Frame, data: st.DataObject) -> None:
    body = nf.encode(frame)
    with pytest.raises(RemoteError):
        nf.decode(body[: data.draw(st.integers(0, len(body) - 1))])


@given(st.integers(0, 255), st.binary(max_size=120))
def test_any_bytes_are_a_frame_that_encodes_to_them_or_a_remote_error(
    number: int, rest: bytes
) -> None:
    body = bytes((nf.MAGIC, number, nf.VERSION)) + rest
    try:
        frame = nf.decode(body)
    except RemoteError:
        return
    assert nf.encode(frame) == body


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        (nf.Pong(-1, 0), "Pong.generation"),
        (nf.Pong(0, 1 << 32), "Pong.epoch"),
        (nf.RefusedFrame(0, ""), "RefusedFrame.code"),
        (nf.RefusedFrame(1, "é" * 1025), "RefusedFrame.text"),
        (nf.Suspect(1, 1, 1, (b"short",)), "Suspect.suspects"),
        (nf.Report(0, 0, 0, False, 0, 0, 0, tuple(range(65_536))), "Report.committed"),
    ],
)
def test_our_own_mistake_is_a_value_error_that_names_the_field(frame: nf.Frame, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        nf.encode(frame)


def test_messagepack_is_not_taken_for_a_native_frame() -> None:
    assert not nf.is_native(b"\x91\x06")
    assert not nf.is_native(b"")
