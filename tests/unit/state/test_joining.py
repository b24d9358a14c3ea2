"""Whom a newcomer believes, and how long it asks."""

from __future__ import annotations

import time
from typing import Any, cast

from pccl.base.clock import Deadline
from pccl.membership.messages import MemberInfo
from pccl.state import messages as m
from pccl.state.joining import _Asking, _newest, _of_most
from pccl.state.receiver import Opened


def answer(peer: bytes, revision: int, root: bytes) -> Opened:
    described = m.Described(revision, 1, "xxh3-128", root, 10, 10)
    member = cast(MemberInfo, type("Member", (), {"peer_id": peer}))
    return Opened(member, cast(Any, None), described, b"")


def test_beside_the_run_the_newest_counts_and_at_one_step_what_most_hold() -> None:
    opened = [answer(b"a", 9, b"x"), answer(b"b", 10**9, b"lie"), answer(b"c", 9, b"x")]
    assert _newest(opened).revision == 10**9  # whose bytes are replaced when it comes in
    assert (_of_most(opened).revision, _of_most(opened).root) == (9, b"x")
    assert _of_most(opened[:2]).root == b"x", "a tie goes by the lowest peer id"


def test_members_that_do_not_answer_are_asked_no_longer_than_the_newcomer_has_time() -> None:
    began_s = time.monotonic()
    assert _Asking(3).take(Deadline(0.05)) == []
    assert time.monotonic() - began_s < 10
