"""Quantised all-reduce end to end: real processes, the real engine, real kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.peer_processes import Run

PROGRAM = Path(__file__).with_name("codec_peer.py")


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_form_of_the_call_gives_the_same_bits_on_all_peers(count: int) -> None:
    with Run(PROGRAM) as run:
        peers = run.start("forms", count)
        facts = [peer.fact_with("digests") for peer in peers]
        assert all(fact["digests"] == facts[0]["digests"] for fact in facts)
        for sent in [fact["sent"] for fact in facts] if count > 1 else []:
            assert sent["None"] > 3.8 * sent["int8"]
            assert sent["None"] > 3.8 * sent["fp8"]
            assert sent["None"] > 7.3 * sent["int4"]
        assert [peer.end() for peer in peers] == [0] * count


@pytest.mark.parametrize("count", [2, 3])
def test_codecs_that_differ_are_an_error_on_all_that_names_both(count: int) -> None:
    with Run(PROGRAM) as run:
        peers = run.start("mismatch", count)
        for fact in [peer.fact_with("texts") for peer in peers]:
            plain, kinds, blocks, rounding = fact["texts"]
            assert "sum, f32[4000])" in plain and "codec=int8/256" in plain
            assert "codec=int8/256" in kinds and "codec=int4/256" in kinds
            assert "codec=int8/256" in blocks and "codec=int8/512" in blocks
            assert "codec=fp8/256)" in rounding and "codec=fp8/256 stochastic" in rounding
        assert [peer.end() for peer in peers] == [0] * count


@pytest.mark.parametrize("count", [2, 4])
def test_a_peer_killed_in_the_middle_costs_no_exact_sum(count: int) -> None:
    with Run(PROGRAM) as run:
        peers = run.start("loop", count)
        for peer in peers:
            peer.until("contributors", count)
        peers[1].say("die")
        survivors = [peers[0], *peers[2:]]
        after = [peer.until("contributors", count - 1) for peer in survivors]
        assert len({fact["step"] for fact in after}) == 1
        # Whoever had not begun the step yet begins it without the dead peer.  That a step which
        # was on its way runs again on its inputs is held, for every moment, by the native tests.
        assert {fact["retries"] for fact in after} <= {0, 1}
        survivors[0].ask_to_end()
        assert [peer.end() for peer in survivors] == [0] * (count - 1)


@pytest.mark.parametrize("count", [2, 3])
def test_a_contribution_that_is_no_number_is_left_out_sent_or_ends_the_step_for_all(
    count: int,
) -> None:
    with Run(PROGRAM) as run:
        peers = run.start("nonfinite", count)
        names = [peer.fact_with("peer")["peer"][:8] for peer in peers]
        facts = [peer.fact_with("found") for peer in peers]
        for fact in facts:
            for text, bad in zip(fact["texts"], (5000, 5000), strict=True):
                assert f"holds {bad} NaN or infinite elements of 5000" in text
                assert names[-1] in text
            assert fact["took_s"] < 5, "nobody waits for a deadline, which is 60 s"
        for fact in facts[:-1]:
            assert fact["found"] == [0, 0, 0, 0]
        assert facts[-1]["dropped"] == [32, 16, 16, 0]
        assert facts[-1]["found"] == [32 + 300 + 10_000, 19, 16, 2]
        assert [peer.end() for peer in peers] == [0] * count
