"""Those who listen for denials: bounded places, and turns where peers are more than these."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from pccl.base.errors import DeadlineExceeded, RemoteError
from pccl.membership import service_denials
from pccl.membership.enrolment import Denials, EnrolRefused, enrolment_codec
from pccl.membership.service_audit import Audit
from pccl.membership.service_denials import TURN_S, WATCHES_EACH, Watchers
from pccl.transport.channel import Channel

PLACES = 8
DENIED = frozenset({b"d" * 16})


class Ear:
    """One connection that listens, without a socket."""

    remote_host = "10.0.0.1"

    def __init__(self) -> None:
        self.closed = False
        self.heard: set[bytes] = set()
        self.refused = ""

    def send(self, body: bytes) -> bool:
        match enrolment_codec.decode(body):
            case Denials(peers):
                self.heard |= set(peers)
            case EnrolRefused(code, _):
                self.refused = code
        return True

    def close(self, reason: str = "") -> None:
        self.closed = True

    async def receive(self, timeout_s: float) -> bytes | None:
        await asyncio.sleep(0)
        raise DeadlineExceeded("nothing")


class Room:
    """The places, the clock, and who tries to come in."""

    def __init__(self, folder: Path) -> None:
        self.now_s = 100.0
        self.denied: frozenset[bytes] = frozenset()
        self.audit = Audit(folder / "audit.log", clock=lambda: self.now_s)
        self.watchers = Watchers(self.audit, clock=lambda: self.now_s)
        self._tasks: list[asyncio.Task[None]] = []

    async def come(self, peer: int) -> Ear:
        ear = Ear()
        served = self.watchers.serve(cast(Channel, ear), peer.to_bytes(16), self.denied)
        self._tasks.append(asyncio.create_task(served))
        for _ in range(3):
            await asyncio.sleep(0)
        return ear

    def deny(self) -> None:
        self.denied = DENIED
        self.watchers.tell(DENIED)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert ended is None or isinstance(ended, asyncio.CancelledError | RemoteError)
        assert not len(self.watchers)
        self.audit.close()


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(service_denials, "WATCHERS_MAX", PLACES)
    yield


def test_more_peers_than_places_take_turns_and_all_hear_of_a_denial(
    places: None, tmp_path: Path
) -> None:
    """Each asks again whenever its connection has ended, as Credentials.keep_informed does."""

    async def story() -> None:
        room, peers = Room(tmp_path), 3 * PLACES
        ears = [await room.come(peer) for peer in range(peers)]
        assert [ear.refused for ear in ears] == [""] * PLACES + ["later"] * (peers - PLACES)
        room.deny()
        knows = {peer for peer in range(peers) if ears[peer].heard}
        turns = 0
        while len(knows) < peers and turns < 9:
            turns += 1
            room.now_s += TURN_S
            for peer in range(peers):
                if ears[peer].closed:
                    ears[peer] = await room.come(peer)
                assert len(room.watchers) <= PLACES
            knows |= {peer for peer in range(peers) if ears[peer].heard}
        assert turns <= 3, "so many times as many as there are places"
        await room.end()

    asyncio.run(story())


def test_nobody_is_put_out_before_its_turn_is_over(places: None, tmp_path: Path) -> None:
    async def story() -> None:
        room = Room(tmp_path)
        first = [await room.come(peer) for peer in range(PLACES)]
        room.now_s += TURN_S - 1
        crowd = [await room.come(100 + peer) for peer in range(50)]
        assert all(ear.refused == "later" for ear in crowd)
        assert not any(ear.closed for ear in first)
        room.deny()
        assert all(ear.heard == DENIED for ear in first)
        await room.end()

    asyncio.run(story())


def test_one_peer_has_a_few_places_and_its_newest_connections_keep_them(
    places: None, tmp_path: Path
) -> None:
    async def story() -> None:
        room = Room(tmp_path)
        greedy = [await room.come(7) for _ in range(32)]
        assert [ear.closed for ear in greedy] == [True] * (32 - WATCHES_EACH) + [
            False
        ] * WATCHES_EACH
        others = [await room.come(peer) for peer in range(PLACES - WATCHES_EACH)]
        assert not any(ear.closed for ear in others)
        room.deny()
        assert all(ear.heard == DENIED for ear in (*others, *greedy[-WATCHES_EACH:]))
        await room.end()

    asyncio.run(story())
