"""The agent's shell: whatever happens to a dial, the machine hears of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pccl.base.errors import ConnectError
from pccl.membership import member_events as e
from pccl.membership.agent import AgentConfig, MemberAgent
from pccl.transport.address import Address

FIRST, SECOND = Address("127.0.0.1", 1), Address("127.0.0.1", 2)


def _agent() -> MemberAgent:
    def no_seat(host: str) -> Any:
        raise AssertionError("nobody is connected")

    config = AgentConfig(
        addresses=(FIRST, SECOND),
        peer_id=bytes(16),
        host_key=1,
        min_world=1,
        connect_timeout_s=1.0,
        coordinator_grace_s=None,
    )
    return MemberAgent(config, no_seat)


@pytest.mark.parametrize(
    "error",
    [ConnectError("refused"), UnicodeError("label too long"), MemoryError(), RuntimeError("oh")],
)
def test_a_dial_that_fails_in_whatever_way_is_told_and_tried_elsewhere(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tried: list[Address] = []

    async def dial(addresses: list[Address], **_: Any) -> Any:
        tried.append(addresses[0])
        raise error

    monkeypatch.setattr("pccl.membership.agent.dial", dial)
    agent = _agent()
    for _ in range(2):
        asyncio.run(agent._dial())
        assert isinstance(agent._events.popleft(), e.Disconnected)
    assert tried == [FIRST, SECOND]  # one that swallows every SYN must not hide the others
