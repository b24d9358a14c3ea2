"""The short form of fuzzing: each target over its seeds and some mutations of them."""

import random
import time
from pathlib import Path

import pytest

from tests.fuzz.drawing import Source
from tests.fuzz.targets import KEPT, STORIES, TARGETS, kept, seeds
from tools import corpus

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
    inputs = seeds(name) + kept(name)
    for data in inputs:  # all of them, however long that takes: they are few
        TARGETS[name](data)
    until_s = time.monotonic() + SECONDS
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


def test_what_is_kept_belongs_to_a_target_and_is_small() -> None:
    files = {file.name: file.stat().st_size for file in KEPT.iterdir()}
    assert files.keys() == TARGETS.keys()
    assert max(files.values()) <= corpus.FILE_BYTES_MAX


def test_a_corpus_comes_back_as_it_was_kept_and_one_that_was_cut_is_refused(tmp_path: Path) -> None:
    inputs = [b"", b"a", b"bc" * 300]
    assert corpus.write(tmp_path / "kept", reversed(inputs)) == 3
    assert corpus.read(tmp_path / "kept") == inputs
    assert corpus.read(tmp_path / "none") == []
    whole = (tmp_path / "kept").read_bytes()
    (tmp_path / "kept").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="cut"):
        corpus.read(tmp_path / "kept")


def test_of_too_much_the_shortest_inputs_are_kept(tmp_path: Path) -> None:
    sizes = (40_000, 20_000, 10_000, 5)
    assert corpus.write(tmp_path / "kept", (bytes(size) for size in sizes)) == 3
    assert [len(data) for data in corpus.read(tmp_path / "kept")] == [5, 10_000, 20_000]
