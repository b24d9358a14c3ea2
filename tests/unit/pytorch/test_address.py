"""What a `pccl://` address says, alone and together with options."""

from __future__ import annotations

import logging
import threading

import pytest
import torch.distributed as dist

from pccl.pytorch import Misused, Options
from pccl.pytorch import waiting as w
from pccl.pytorch.elastic.bootstrap import agreed
from pccl.pytorch.reconfigure import parse_handle
from pccl.pytorch.rendezvous import parse_url


def test_a_fixed_group_says_how_many_ranks_it_has() -> None:
    with pytest.raises(Misused, match=r"\?min=N"):
        parse_url("pccl://h:1/j")
    assert parse_url("pccl://h:1/j?min=2").least == 2
    assert parse_url("pccl://h:1/j?rank=0&world_size=3").least == 3


def test_an_elastic_group_may_begin_with_one() -> None:
    assert parse_url("pccl://h:1/j", elastic=True).least == 1
    assert parse_url("pccl://h:1/j?elastic=1&start=3").start == 3


def test_start_is_for_elastic_groups() -> None:
    with pytest.raises(Misused, match="start is for elastic groups"):
        parse_url("pccl://h:1/j?min=2&start=2")
    with pytest.raises(Misused, match="start=4"):
        parse_url("pccl://h:1/j?begin=2")


@pytest.mark.parametrize(
    ("options", "both"),
    [
        (Options(elastic=True, coordinator="k:1"), "'h:1'.*'k:1'"),
        (Options(elastic=True, job="other"), "'j'.*'other'"),
        (Options(elastic=True, min_world=3), "2.*3"),
        (Options(elastic=True, start_world=3), "4.*3"),
    ],
)
def test_options_that_contradict_the_address_are_refused(options: Options, both: str) -> None:
    asked = parse_url("pccl://h:1/j?min=2&start=4", elastic=True)
    with pytest.raises(Misused, match=both):
        agreed(asked, options)


def test_what_the_address_leaves_open_options_say() -> None:
    options = Options(elastic=True, coordinator="h:1", job="mine", min_world=2, start_world=3)
    found = agreed(parse_url("pccl://h:1", elastic=True), options)
    assert (found.job, found.least, found.start) == ("mine", 2, 3)
    same = parse_url("pccl://h:1/mine?min=2&start=3", elastic=True)
    assert agreed(same, options) == same


@pytest.mark.parametrize("name", ["elastic", "rejoin", "check_state", "deterministic"])
def test_a_switch_is_true_or_false_and_no_text(name: str) -> None:
    with pytest.raises(Misused, match=f"{name} must be True or False"):
        Options(**{name: "false"})  # type: ignore[arg-type]


def test_options_of_another_kind_are_refused_before_anybody_is_waited_for() -> None:
    with pytest.raises(Misused, match=r"pccl\.pytorch\.Options, not builtins\.dict"):
        dist.init_process_group(
            "pccl",
            init_method="pccl://127.0.0.1:1/j?min=2",
            pg_options={"elastic": True},
        )


def test_a_process_that_others_reach_needs_a_coordinator_that_they_reach() -> None:
    with pytest.raises(Misused, match=r"Options\(host='10.0.0.1'\)"):
        w.require_reachable("10.0.0.1", "127.0.0.1:48148")
    w.require_reachable("10.0.0.1", "10.0.0.2:48148")
    w.require_reachable("127.0.0.1", "127.0.0.1:48148")


def test_who_waits_for_long_is_told_what_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(w, "QUIET_S", 0.01)
    asked = threading.Event()

    def what() -> str:
        asked.set()
        return "2 ranks"

    with caplog.at_level(logging.WARNING, "pccl.pytorch"), w.told_if_slow(what, 60.0):
        assert asked.wait(10.0)
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join(10.0)
    assert "2 ranks" in caplog.text and "until" in caplog.text


@pytest.mark.parametrize("url", ["pccl://[::1/job?min=2", "pccl://[nowhere]:1/?min=2"])
def test_brackets_that_hold_no_address_are_told_as_everything_else(url: str) -> None:
    with pytest.raises(Misused, match="write pccl://"):
        parse_url(url)


def test_a_handle_with_more_digits_than_a_number_has_is_none() -> None:
    for rank, port in (("9" * 5000, "1"), ("1", "9" * 5000)):
        with pytest.raises(Misused, match="no rank or port"):
            parse_handle(f"pccl:1:{rank}:name:{port}:host")
