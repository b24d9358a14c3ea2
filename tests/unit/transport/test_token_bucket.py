"""The rate limit of a connection: a burst at once, a rate in the long run."""

from __future__ import annotations

from pccl.transport.token_bucket import TokenBucket


def test_a_burst_passes_and_the_next_waits_for_its_share() -> None:
    bucket = TokenBucket(burst=3, rate_per_s=2, now_s=10.0)
    assert [bucket.take(10.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert bucket.take(10.25) == 0.25
    assert bucket.take(10.5) == 0
    assert bucket.take(10.5) == 0.5


def test_silence_saves_up_one_burst_and_no_more() -> None:
    bucket = TokenBucket(burst=2, rate_per_s=100, now_s=0.0)
    assert [bucket.take(1e6) for _ in range(3)] == [0, 0, 0.01]


def test_a_clock_that_stands_still_grants_nothing() -> None:
    bucket = TokenBucket(burst=1, rate_per_s=1, now_s=5.0)
    assert bucket.take(5.0) == 0
    assert bucket.take(4.0) == 1.0
