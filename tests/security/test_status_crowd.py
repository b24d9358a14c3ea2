"""Questions for the status by one ticket, which all ranks of a group hold: none is lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import pytest

from pccl.base.config import ControlLimits
from pccl.membership.agent_security import open_for_status
from pccl.membership.enrolment import EnrolmentRefused
from pccl.membership.service_status import StatusRefused, fetch_status, fetch_status_now
from pccl.transport.address import parse_addresses
from pccl.transport.join_ticket import JoinTicket
from tests.security.laboratory import Laboratory, laboratory

__all__ = ["laboratory"]
ONE = ControlLimits(asking_connections_max=1)


def test_hundreds_of_questions_by_one_ticket_are_answered(laboratory: Laboratory) -> None:
    """More than any identity opens, at once and in the long run."""

    async def story(ticket: JoinTicket) -> Counter[str]:
        where, answers = parse_addresses(laboratory.address), Counter[str]()

        async def rank(questions: int) -> None:
            for _ in range(questions):
                status = await fetch_status(where, timeout_s=30, ticket=ticket)
                answers[status["run_id"]] += 1

        await asyncio.gather(*(rank(5) for _ in range(50)))
        return answers

    with laboratory.coordinator():
        answers = asyncio.run(story(laboratory.ticket()))
    assert list(answers.values()) == [250]
    assert not laboratory.audit("refused")


def test_a_question_that_is_refused_for_now_is_asked_again(laboratory: Laboratory) -> None:
    async def story(ticket: JoinTicket) -> float:
        where = parse_addresses(laboratory.address)
        held, _ = await open_for_status(where, ticket, timeout_s=10, rng=random.Random(1))
        assert await held.receive(10)
        asyncio.get_running_loop().call_later(1.0, held.abort)
        begin_s = time.monotonic()
        assert (await fetch_status(where, timeout_s=20, ticket=ticket))["run_id"]
        took_s = time.monotonic() - begin_s

        held, _ = await open_for_status(where, ticket, timeout_s=10, rng=random.Random(1))
        assert await held.receive(10)
        with pytest.raises(StatusRefused, match="too many connections"):
            await fetch_status(where, timeout_s=0.5, ticket=ticket)
        held.abort()
        return took_s

    with laboratory.coordinator(limits=ONE):
        assert asyncio.run(story(laboratory.ticket())) >= 0.9


def test_a_ticket_that_is_over_is_refused_at_once(laboratory: Laboratory) -> None:
    with laboratory.coordinator():
        ticket = laboratory.ticket()
        laboratory.ca.ledger.revoke(ticket.token_id.hex(), int(time.time()), "")
        with pytest.raises(EnrolmentRefused, match="revoked"):
            fetch_status_now(parse_addresses(laboratory.address), timeout_s=60, ticket=ticket)
