"""Asks a coordinator how things are, as `pccl status` does; admits nobody and changes nothing."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any, Final

from pccl.base.clock import Deadline
from pccl.base.errors import ConnectError, DeadlineExceeded, RemoteError
from pccl.membership.agent_security import open_for_status
from pccl.membership.messages import (
    Refused,
    StatusReply,
    StatusRequest,
    coordinator_codec,
    peer_codec,
)
from pccl.transport.address import Address
from pccl.transport.channel import Channel
from pccl.transport.dial import dial
from pccl.transport.join_ticket import JoinTicket

AGAIN_S: Final = (0.02, 0.2)  # between two tries at a port that turned this connection away


async def fetch_status(
    addresses: Sequence[Address], *, timeout_s: float, ticket: JoinTicket | None = None
) -> dict[str, Any]:
    """Returns the status document of the first coordinator that accepts a connection.

    A coordinator with a crowd at its port may close a connection unheard; that is tried again.

    Args:
        ticket: of a secured run; asking uses nothing of it up.

    Raises:
        ConnectError: nobody accepted, or what did gave no answer that pccl understands.
    """
    deadline = Deadline(timeout_s)
    rng = random.Random()
    while True:
        left_s = max(deadline.remaining_s(), 0.01)
        if ticket is None:
            channel, address = await dial(addresses, timeout_s=left_s, rng=rng, rounds_max=2)
            channel.send(peer_codec.encode(StatusRequest()))
        else:
            channel, address = await open_for_status(addresses, ticket, timeout_s=left_s, rng=rng)
        document = await _ask(channel, address, deadline, timeout_s)
        if document is not None:
            return document
        wait_s = rng.uniform(*AGAIN_S)
        if deadline.remaining_s() <= wait_s:
            raise ConnectError(
                f"{address} accepted each connection and closed it, for {timeout_s:g} s: it is no "
                "pccl coordinator, or it is overloaded"
            )
        await asyncio.sleep(wait_s)


async def _ask(
    channel: Channel, address: Address, deadline: Deadline, timeout_s: float
) -> dict[str, Any] | None:
    """Returns the status; None if the connection was closed before it came."""
    try:
        while (body := await channel.receive(deadline.remaining_s())) is not None:
            reply = coordinator_codec.decode(body)
            if isinstance(reply, StatusReply):
                return _document(reply)
            if isinstance(reply, Refused):
                raise ConnectError(f"{address} does not tell its status: {reply.text}")
        return None
    except DeadlineExceeded as error:
        raise ConnectError(
            f"{address} accepted the connection but did not answer within {timeout_s:g} s: it is "
            "no pccl coordinator, or it is stuck"
        ) from error
    except RemoteError as error:
        raise ConnectError(f"{address} is no pccl coordinator: {error}") from error
    finally:
        channel.abort()


def fetch_status_now(
    addresses: Sequence[Address], *, timeout_s: float, ticket: JoinTicket | None = None
) -> dict[str, Any]:
    """`fetch_status` for callers without an event loop."""
    return asyncio.run(fetch_status(addresses, timeout_s=timeout_s, ticket=ticket))


def _document(reply: StatusReply) -> dict[str, Any]:
    try:
        document = json.loads(reply.json)
    except ValueError as error:
        raise RemoteError("its status is not JSON") from error
    if not isinstance(document, dict):
        raise RemoteError("its status is not a JSON object")
    return document
