"""Framing: however the bytes are cut on their way, the same frames come out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.base.errors import RemoteError
from pccl.transport.framing import Framer, frame


def take_all(framer: Framer) -> list[bytes]:
    taken = []
    while (body := framer.next_message()) is not None:
        taken.append(body)
    return taken


bodies = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


@given(bodies, st.lists(st.integers(0, 300), max_size=20))
def test_every_split_of_the_input_gives_the_same_frames(sent: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frame(body) for body in sent)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    framer = Framer()
    received = []
    for start, end in itertools.pairwise(edges):
        framer.feed(stream[start:end])
        received += take_all(framer)
    assert received == sent
    assert framer.pending_bytes == 0


def test_every_single_cut_of_two_frames_gives_both() -> None:
    stream = frame(b"first") + frame(b"second one")
    for cut in range(len(stream) + 1):
        framer = Framer()
        framer.feed(stream[:cut])
        received = take_all(framer)
        framer.feed(stream[cut:])
        assert received + take_all(framer) == [b"first", b"second one"]


def test_a_frame_is_its_length_two_checks_and_its_body() -> None:
    # 0xCBF43926 is what every description of this CRC-32 gives for these nine digits.
    front = b"\x09\x00\x00\x00" + 0xCBF43926.to_bytes(4, "little")
    assert frame(b"123456789") == front + bytes.fromhex("3ed5e8a8") + b"123456789"


def test_every_flipped_bit_is_found_and_no_other_body_comes_out() -> None:
    stream = frame(b"first") + frame(b"second one")
    for bit in range(8 * len(stream)):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        framer = Framer()
        framer.feed(bytes(damaged))
        received = []
        with pytest.raises(RemoteError):  # at once: no damage makes it wait for more
            while (body := framer.next_message()) is not None:
                received.append(body)
        assert received == ([b"first"] if bit >= 8 * len(frame(b"first")) else [])


@pytest.mark.parametrize("body", [b"", b"x" * 11])
def test_a_body_that_no_receiver_would_take_is_not_sent(body: bytes) -> None:
    with pytest.raises(ValueError, match="1 to 10 bytes"):
        frame(body, frame_bytes_max=10)


def test_the_first_frame_has_a_smaller_limit_than_those_after_it() -> None:
    framer = Framer(first_frame_bytes_max=4, frame_bytes_max=8)
    framer.feed(frame(b"1234") + frame(b"12345678") + frame(b"123456789"))
    assert framer.next_message() == b"1234"
    assert framer.next_message() == b"12345678"
    with pytest.raises(RemoteError, match="9 bytes, where 1 to 8"):
        framer.next_message()


@pytest.mark.parametrize("length", [0, 5, 0xFFFFFFFF])
def test_an_impossible_length_is_an_error_before_its_body_arrives(length: int) -> None:
    framer = Framer(first_frame_bytes_max=4)
    framer.feed(length.to_bytes(4, "little"))
    with pytest.raises(RemoteError, match=f"{length} bytes"):
        framer.next_message()


def test_a_stream_that_went_wrong_stays_wrong_and_keeps_nothing() -> None:
    framer = Framer(first_frame_bytes_max=4)
    framer.feed(frame(b"too long"))
    for _ in range(2):
        with pytest.raises(RemoteError):
            framer.next_message()
        framer.feed(frame(b"ok") * 100)
        assert framer.pending_bytes == 0


def test_pending_bytes_tell_a_clean_end_from_a_cut() -> None:
    framer = Framer()
    framer.feed(frame(b"whole") + b"\x05\x00")
    assert framer.next_message() == b"whole"
    assert framer.next_message() is None
    assert framer.pending_bytes == 2
