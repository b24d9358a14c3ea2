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
from pccl.membership.enrolment import (
    EnrolmentRefused,
    EnrolRefused,
    WrongRun,
    enrolment_codec,
    is_enrolment,
)
from pccl.membership.messages import (
    REFUSALS_FOR_NOW,
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

DEPTH_MAX: Final = 32  # of a status document: what shows it walks down
AGAIN_S: Final = (0.02, 0.2)  # between two tries at a port that turned this connection away


class StatusRefused(ConnectError):
    """A coordinator does not tell its status; so it lives."""

    def __init__(self, address: Address, refused: Refused) -> None:
        how = "; `pccl status` takes it by --ticket" if refused.code == "secured" else ""
        super().__init__(f"{address} does not tell its status: {refused.text}{how}")
        self.for_now = refused.code in REFUSALS_FOR_NOW


async def fetch_status(
    addresses: Sequence[Address], *, timeout_s: float, ticket: JoinTicket | None = None
) -> dict[str, Any]:
    """Returns the status document of the first coordinator that accepts a connection.

    A coordinator with a crowd at its port may close a connection unheard, or refuse it for now;
    that is tried again.

    Args:
        ticket: of a secured run; asking uses nothing of it up.

    Raises:
        StatusRefused: a coordinator refused, for the whole time if it was for now.
        EnrolmentRefused: it does not accept the ticket.
        ConnectError: nobody accepted, or what did gave no answer that pccl understands.
        RemoteError, DeadlineExceeded: with a ticket, likewise.
    """
    deadline = Deadline(timeout_s)
    rng = random.Random()
    refusal: StatusRefused | None = None
    while True:
        try:
            channel, address = await _open(addresses, ticket, deadline, rng)
            document = await _ask(channel, address, deadline, timeout_s)
        except StatusRefused as error:
            if not error.for_now:
                raise
            document, refusal = None, error
        except (ConnectError, DeadlineExceeded) as error:
            if refusal is None or isinstance(error, EnrolmentRefused | WrongRun):
                raise
            raise refusal from error  # the time was over before another try came to its end
        if document is not None:
            return document
        wait_s = rng.uniform(*AGAIN_S)
        if deadline.remaining_s() <= wait_s:
            raise refusal or ConnectError(
                f"{address} accepted each connection and closed it, for {timeout_s:g} s: it is no "
                "pccl coordinator, or it is overloaded"
            )
        await asyncio.sleep(wait_s)


async def _open(
    addresses: Sequence[Address], ticket: JoinTicket | None, deadline: Deadline, rng: random.Random
) -> tuple[Channel, Address]:
    """Returns a connection on which the status was asked for."""
    left_s = max(deadline.remaining_s(), 0.01)
    if ticket is not None:
        return await open_for_status(addresses, ticket, timeout_s=left_s, rng=rng)
    channel, address = await dial(addresses, timeout_s=left_s, rng=rng, rounds_max=2)
    channel.send(peer_codec.encode(StatusRequest()))
    return channel, address


async def _ask(
    channel: Channel, address: Address, deadline: Deadline, timeout_s: float
) -> dict[str, Any] | None:
    """Returns the status; None if the connection was closed before it came.

    Raises:
        StatusRefused: it was refused.
        EnrolmentRefused: the ticket was.
        ConnectError: something else came, or nothing in time.
    """
    try:
        while (body := await channel.receive(deadline.remaining_s())) is not None:
            if is_enrolment(body):
                refused = enrolment_codec.decode(body)
                if isinstance(refused, EnrolRefused):  # a proof was judged, and the ticket
                    raise EnrolmentRefused(refused.code, refused.text)
            reply = coordinator_codec.decode(body)
            if isinstance(reply, StatusReply):
                return document_of(reply)
            if isinstance(reply, Refused):
                raise StatusRefused(address, reply)
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


def document_of(reply: StatusReply) -> dict[str, Any]:
    """Raises RemoteError if it is no document that can be shown."""
    try:
        document = json.loads(reply.json)
    except (ValueError, RecursionError) as error:
        raise RemoteError("its status is not JSON") from error
    if not isinstance(document, dict):
        raise RemoteError("its status is not a JSON object")
    if not _within(document, DEPTH_MAX):
        raise RemoteError(f"its status is nested more than {DEPTH_MAX} levels deep")
    return document


def _within(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    items = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_within(item, levels - 1) for item in items)
