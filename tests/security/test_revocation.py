"""Who is revoked is out within seconds wherever it is served, long before its certificate ends: of
weights and of state streams, and when the coordinator is back after it was away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import pccl
from pccl.base.errors import DeadlineExceeded
from pccl.membership.agent_denials import Denied
from pccl.membership.service import CoordinatorThread
from pccl.state import messages as sm
from pccl.state.fetch import STALL_S
from pccl.state.stream import Identity, Stream, StreamLost, identity_of, stream_tls_of
from pccl.state.stream_tls import StreamTls
from pccl.transport.address import parse_address
from pccl.transport.identity import Role
from pccl.transport.tls import client_context
from pccl.weights import Publisher, Receiver
from pccl.weights.channels import Way
from pccl.weights.frames import PROTOCOL, Fetch, Join
from pccl.weights.stream import StreamEnded, open_stream
from tests.integration.weight_states import empty_state, make_state, sha_of
from tests.security.laboratory import Laboratory, eventually, laboratory
from tests.security.strangers import enrol

__all__ = ["laboratory"]
SOON_S = 10.0  # as loaded as a machine may be; certificates last a day


def revoke(lab: Laboratory, peer_id: bytes) -> None:
    lab.ca.ledger.revoke(peer_id.hex(), int(time.time()), "stolen")


@contextmanager
def publisher(lab: Laboratory) -> Iterator[Publisher]:
    ticket = lab.ticket(Role.TRAINER).text
    with Publisher(ticket=ticket, coordinator=lab.address) as made:
        made.publish(make_state(0))
        yield made


def receiver(lab: Laboratory, made: Publisher) -> Receiver:
    ticket = lab.ticket(Role.RECEIVER).text
    return Receiver(made.address, ticket=ticket, coordinator=lab.address)


def test_a_receiver_that_is_revoked_is_cut_off_and_the_others_go_on(laboratory: Laboratory) -> None:
    with (
        laboratory.coordinator(),
        publisher(laboratory) as made,
        receiver(laboratory, made) as stays,
        receiver(laboratory, made) as goes,
    ):
        for one in (stays, goes):
            one.pull(empty_state(), timeout_s=30)
        assert made.receivers == 2
        revoke(laboratory, goes._channels.own_id)
        eventually(lambda: made.receivers == 1, SOON_S)
        made.publish(make_state(1), 2)
        into = empty_state()
        stays.pull(into, timeout_s=30, at_least=2, on_mismatch="anchor")
        assert sha_of(into) == sha_of(make_state(1))
        with pytest.raises(DeadlineExceeded):
            goes.pull(empty_state(), timeout_s=2, at_least=2)
        assert list(made._hub._receivers) == [stays._channels.own_id], "it does not come back"


def test_no_door_of_weights_gives_a_revoked_key_anything(laboratory: Laboratory) -> None:
    """Neither the publisher's nor a receiver's, also over a connection that was open before."""
    with laboratory.coordinator():
        thief = enrol(laboratory.address, laboratory.ticket(Role.RECEIVER))
        assert thief.material is not None
        way, peer_id = Way(client_context(thief.material)), thief.peer_id
        with publisher(laboratory) as made, receiver(laboratory, made) as one:
            one.pull(empty_state(), timeout_s=30)
            doors = (made.address, f"127.0.0.1:{one._fetcher._port}")
            fetch = Fetch(PROTOCOL, one._fetcher._secret, 1, 0)

            async def story() -> None:
                opened = [await open_stream(parse_address(a), timeout_s=5, way=way) for a in doors]
                for stream in opened:
                    await stream.send(fetch, timeout_s=5)
                    await stream.receive(5)
                revoke(laboratory, peer_id)
                for stream in opened:
                    with pytest.raises(StreamEnded):
                        while True:
                            await stream._exactly(1 << 20, SOON_S)
                    await stream.end()
                for at in doors:
                    for first in (fetch, Join(PROTOCOL, peer_id, "", 0)):
                        stream = await open_stream(parse_address(at), timeout_s=5, way=way)
                        await stream.send(first, timeout_s=5)
                        with pytest.raises(StreamEnded):
                            await stream.receive(5)
                        await stream.end()

            asyncio.run(story())


def test_a_publisher_that_is_revoked_is_left_by_its_receivers(laboratory: Laboratory) -> None:
    with (
        laboratory.coordinator(),
        publisher(laboratory) as made,
        receiver(laboratory, made) as one,
    ):
        one.pull(empty_state(), timeout_s=30)
        # It may be gone itself by now; what counts is that its receiver believes it no more.
        revoke(laboratory, made._channels.own_id)
        eventually(lambda: "was revoked" in one._fetcher.trouble, SOON_S)
        eventually(lambda: made.receivers == 0, SOON_S)


def test_a_denial_from_while_the_coordinator_was_away_is_heard_when_it_is_back(
    laboratory: Laboratory,
) -> None:
    first = CoordinatorThread(laboratory.options()).start()
    laboratory.address = first.address
    port = parse_address(first.address).port
    with publisher(laboratory) as made, receiver(laboratory, made) as goes:
        goes.pull(empty_state(), timeout_s=30)
        first.stop()
        revoke(laboratory, goes._channels.own_id)
        time.sleep(1.0)
        assert made.receivers == 1, "without a coordinator nobody knows"
        with laboratory.coordinator(listen=parse_address(f"127.0.0.1:{port}")):
            eventually(lambda: made.receivers == 0, 2 * SOON_S)


def test_a_trainer_that_is_revoked_is_given_no_more_of_the_state(laboratory: Laboratory) -> None:
    with laboratory.coordinator():
        state = pccl.SharedState({"weights": np.arange(1000, dtype=np.float32)})
        with laboratory.connect(laboratory.ticket(), state=state) as comm:
            comm.all_reduce(np.ones(3, np.float32))
            own = identity_of(comm.session, stream_tls_of(comm.session))
            admitted = comm.session.agent.standing.met
            here = next(one for one in admitted if one.peer_id == bytes(comm.peer_id))
            thief = enrol(laboratory.address, laboratory.ticket())
            material = thief.material
            assert material is not None
            identity = Identity(
                own.run_id, thief.peer_id, 9, b"s" * 16, StreamTls(lambda: material)
            )
            describe = sm.question_codec.encode(sm.Describe(sm.PROTOCOL, sm.CURRENT))
            stream = Stream.dial(here, identity, STALL_S)
            stream.send(describe)
            said = sm.answer_codec.decode(stream.receive())
            assert isinstance(said, sm.Described)
            stream.receive_bytes(said.layout_bytes + said.digests_bytes)
            revoke(laboratory, thief.peer_id)
            stream.patience(SOON_S)
            with pytest.raises(StreamLost, match=r"closed|gone"):
                stream.receive()
            stream.close()
            with pytest.raises(StreamLost):
                Stream.dial(here, identity, STALL_S).send(describe)
            comm.all_reduce(np.ones(3, np.float32))  # and the run goes on


def test_what_is_served_to_a_denied_peer_ends_and_a_mistake_in_one_end_costs_no_other() -> None:
    denials, ended = Denied(), list[str]()

    def fails() -> None:
        ended.append("fails")
        raise ZeroDivisionError

    with (
        denials.ends(b"a" * 16, fails),
        denials.ends(b"a" * 16, lambda: ended.append("a")),
        denials.ends(b"b" * 16, lambda: ended.append("b")),
    ):
        with denials.ends(b"a" * 16, lambda: ended.append("over before")):
            pass
        denials.add([b"a" * 16])
        assert ended == ["fails", "a"]
        denials.add([b"a" * 16])
        assert ended == ["fails", "a"], "once"
    assert b"a" * 16 in denials and b"b" * 16 not in denials
    with denials.ends(b"a" * 16, lambda: ended.append("late")):
        assert ended == ["fails", "a", "late"]
    denials.add([b"b" * 16])
    assert ended == ["fails", "a", "late"]


def test_who_listens_for_denials_and_is_revoked_itself_hears_so_and_stops(
    laboratory: Laboratory,
) -> None:
    with laboratory.coordinator():
        credentials = enrol(laboratory.address, laboratory.ticket())

        async def story() -> None:
            listening = asyncio.create_task(
                credentials.keep_informed([parse_address(laboratory.address)])
            )
            while not credentials.denials.heard:
                await asyncio.sleep(0.01)
            revoke(laboratory, credentials.peer_id)
            async with asyncio.timeout(SOON_S):
                await listening

        asyncio.run(story())
