"""The text is real, and shards never overlap."""

from pathlib import Path

import pytest

from pccl.demo.corpus import HELD_OUT_EVERY, NoText, default_root, load_corpus, source_files


def a_library(root: Path, files: int) -> None:
    (root / "test").mkdir()
    (root / "test" / "test_it.py").write_text("not for training")
    for number in range(files):
        (root / f"module{number}.py").write_text(f"<{number}>")


def test_every_file_is_in_one_shard_or_held_out(tmp_path: Path) -> None:
    a_library(tmp_path, files=64)

    corpora = [load_corpus(tmp_path, shard=shard, shards=3, least_bytes=1) for shard in range(3)]

    held_out = corpora[0].held_out.split(b"\n")
    assert all(corpus.held_out == corpora[0].held_out for corpus in corpora)
    assert len(held_out) == 64 // HELD_OUT_EVERY
    read = held_out + [text for corpus in corpora for text in corpus.shard.split(b"\n")]
    assert sorted(read) == sorted(f"<{number}>".encode() for number in range(64))


def test_tests_are_left_out_and_the_order_is_alike_everywhere(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for root in (first, second):
        root.mkdir()
        a_library(root, files=20)

    names = [path.name for path in source_files(first)]

    assert names == [path.name for path in source_files(second)]
    assert "test_it.py" not in names
    assert len(names) == 20


def test_the_standard_library_has_enough_text_for_many_peers() -> None:
    corpus = load_corpus(default_root(), shard=7, shards=8)

    assert len(corpus.shard) > 100_000
    assert len(corpus.held_out) > 50_000
    assert b"def " in corpus.shard


def test_a_folder_without_sources_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoText, match=str(tmp_path)):
        load_corpus(tmp_path, shard=0, shards=1)
