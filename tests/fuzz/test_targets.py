"""The short form of fuzzing: each target over its seeds and some mutations of them."""

import random
import time

import pytest

from tests.fuzz.drawing import Source
from tests.fuzz.targets import STORIES, TARGETS, seeds

MUTANTS = 300
STORY_MUTANTS = 10
SECONDS = 4.0  # per target at most: a busy machine tries fewer


def mutated(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data or b"\x00")
    for _ in range(dice.randrange(1, 5)):
        at = dice.randrange(len(changed))
        match dice.randrange(4):
            case 0:
                changed[at] ^= 1 << dice.randrange(8)
            case 1:
                changed[at] = dice.choice((0, 1, 0x7F, 0x80, 0xC1, 0xDF, 0xFF))
            case 2:
                del changed[at:]
            case _:
                changed[at:at] = dice.randbytes(dice.randrange(1, 9))
        changed = changed or bytearray(b"\x00")
    return bytes(changed)


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_makes_a_decoder_or_a_machine_break_its_word(name: str) -> None:
    dice = random.Random(f"short {name}")
    inputs = seeds(name)
    until_s = time.monotonic() + SECONDS
    for data in inputs:
        TARGETS[name](data)
        if time.monotonic() > until_s:
            return
    for _ in range(STORY_MUTANTS if name in STORIES else MUTANTS):
        TARGETS[name](mutated(dice.choice(inputs), dice))
        if time.monotonic() > until_s:
            return


@pytest.mark.parametrize("name", ["peer_messages", "coordinator_messages", "native", "record"])
def test_a_message_cut_anywhere_is_refused_or_whole(name: str) -> None:
    for data in seeds(name):
        for at in range(len(data)):
            TARGETS[name](data[:at])


def test_draws_from_bytes_that_ran_out_are_zero() -> None:
    source = Source(b"\x05")
    assert (source.byte(), source.byte(), source.below(1000), bool(source)) == (5, 0, 0, False)
