"""The errors: who may catch what, and that each says what to do."""

from __future__ import annotations

import pickle

import pytest

import pccl
from pccl.base import errors
from pccl.base.errors import (
    CannotCatchUp,
    Closed,
    ConnectError,
    CorruptResult,
    DeadlineExceeded,
    DescriptorMismatch,
    Excluded,
    Forked,
    OutcomeUnknown,
    PcclError,
    PeerLost,
    RemoteError,
    StaleView,
    StepFailed,
    UsageError,
    ViewChanged,
    WorldTooSmall,
)

ALL: list[type[PcclError]] = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, PcclError)
]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_caught_as_a_pccl_error_and_drawn_in_the_tree(kind: type[Exception]) -> None:
    assert issubclass(kind, PcclError)
    assert errors.__doc__ is not None
    assert kind.__name__ in errors.__doc__
    assert kind.__doc__


@pytest.mark.parametrize("kind", ALL)
def test_tracebacks_name_an_error_as_programs_import_it(kind: type[Exception]) -> None:
    assert f"{kind.__module__}.{kind.__qualname__}" == f"pccl.{kind.__name__}"
    assert getattr(pccl, kind.__name__) is kind
    assert pickle.loads(pickle.dumps(kind)) is kind


def test_exactly_the_errors_that_pass_by_themselves_are_retryable() -> None:
    retryable = {kind for kind in ALL if kind.retryable}
    passing = {DeadlineExceeded, CannotCatchUp, PeerLost, StaleView, ViewChanged}
    assert retryable == passing | {WorldTooSmall, Excluded}


def test_errors_are_also_what_their_builtin_namesakes_are() -> None:
    assert issubclass(DeadlineExceeded, TimeoutError)
    assert issubclass(ConnectError, ConnectionError)
    assert issubclass(Closed, UsageError)
    assert issubclass(Forked, UsageError)
    assert issubclass(OutcomeUnknown, errors.CoordinatorLost)


def test_a_failed_step_names_itself_and_the_peers() -> None:
    error = DescriptorMismatch("f32[4] here, f64[4] there", step=7, peers=["ab", "cd"])
    assert isinstance(error, StepFailed)
    assert (error.step, error.peers) == (7, ("ab", "cd"))
    assert str(error) == "step 7: f32[4] here, f64[4] there"
    assert str(CorruptResult("digests differ")) == "digests differ"


def test_a_remote_error_names_the_peer_if_it_is_known() -> None:
    assert str(RemoteError("bad frame")) == "bad frame"
    assert str(RemoteError("bad frame", peer="ab12")) == "peer ab12: bad frame"


def test_a_lost_peer_and_a_stale_view_say_under_which_epoch() -> None:
    assert "epoch 4" in str(PeerLost("ab12", epoch=4))
    assert "retry" in str(StaleView(epoch=3, current_epoch=5))


def test_errors_without_arguments_say_what_to_do() -> None:
    assert "connect" in str(Closed())
    assert "child" in str(Forked())
    assert str(ViewChanged("peer 01 is gone", step=3)) == "step 3: peer 01 is gone"
