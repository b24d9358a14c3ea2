"""Connecting, with the real agent and a coordinator that says what the story needs."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import pccl
from pccl.connecting import admit
from pccl.identity import load_or_make_key, peer_id_of, this_host_key
from pccl.membership import messages as m
from pccl.membership.agent import AgentConfig, MemberAgent, Seat
from pccl.reaching import Whereabouts
from pccl.transport.address import is_loopback, parse_address, parse_addresses
from pccl.transport.channel import Channel
from tests.unit.face.fake_run import FakeEngine, FakeRun

ADMITTED = m.Admitted(b"r" * 16, 1, 1, 7, b"s" * 16, 1, 0.25, 3.0, 0, 1)
Behaviour = Callable[["ScriptedCoordinator", Channel], Awaitable[None]]


class ScriptedCoordinator:
    """Accepts on loopback in a thread of its own; `behave` plays one connection after another."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.heard: list[m.PeerMessageBody] = []
        self._behaviours = list(behaviours)
        self._listening = threading.Event()
        self._end: Callable[[], Any] = lambda: None
        self.port = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._listening.wait(10)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        self._end()
        self._thread.join(10)

    async def hear(self, channel: Channel) -> m.PeerMessageBody | None:
        body = await channel.receive(10)
        if body is None:
            return None
        message = m.peer_codec.decode(body)
        self.heard.append(message)
        return message

    async def _serve(self) -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._end = lambda: loop.call_soon_threadsafe(ended.set)
        tasks: set[asyncio.Task[None]] = set()

        channels: list[Channel] = []

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            channels.append(Channel(reader, writer, trusted=True))
            tasks.add(loop.create_task(self._play(channels[-1])))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await ended.wait()
        for listener in server.sockets:
            loop.remove_reader(listener.fileno())
        await asyncio.sleep(0.01)  # a server that is closed meanwhile loses what it is accepting
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for channel in channels:  # also of a task that was cancelled before it ran
            channel.abort()
        await asyncio.sleep(0)  # lets the loop close what was aborted

    async def _play(self, channel: Channel) -> None:
        behave = self._behaviours.pop(0) if len(self._behaviours) > 1 else self._behaviours[0]
        try:
            await behave(self, channel)
        finally:
            await channel.finish(1.0)


def say(channel: Channel, message: m.CoordinatorMessageBody) -> None:
    channel.send(m.coordinator_codec.encode(message))


async def admits(coordinator: ScriptedCoordinator, channel: Channel) -> None:
    await coordinator.hear(channel)
    say(channel, ADMITTED)
    while (message := await coordinator.hear(channel)) is not None:
        if isinstance(message, m.Leaving):
            say(channel, m.Evicted(1, "left"))
            return


async def refuses(coordinator: ScriptedCoordinator, channel: Channel) -> None:
    await coordinator.hear(channel)
    say(channel, m.Refused("min_world", "this run has min_world 3, this process asks for 2"))
    await coordinator.hear(channel)


class WatchedEngine(FakeEngine):
    """A fake engine with a descriptor that a loop can watch, and a memory of what it was told."""

    def __init__(self) -> None:
        run = FakeRun()
        super().__init__(run, b"one".ljust(16, b"."), 0)
        run.live.append(self.peer_id)
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.told: list[tuple[str, Any]] = []
        self.admitted = threading.Event()

    def admit(self, **named: Any) -> None:
        self.told.append(("admit", named))
        self.admitted.set()

    def fail(self, code: str, text: str) -> None:
        self.told.append(("fail", code))
        super().fail(code, text)

    def close(self) -> None:
        if not self.closed:
            os.close(self.event_fd)
        super().close()


@pytest.fixture
def coordinators() -> Iterator[Callable[..., ScriptedCoordinator]]:
    started: list[ScriptedCoordinator] = []

    def start(*behaviours: Behaviour) -> ScriptedCoordinator:
        started.append(ScriptedCoordinator(*behaviours))
        return started[-1]

    yield start
    for coordinator in started:
        coordinator.close()


def connect_to(address: str, engine: WatchedEngine, timeout_s: float = 10.0) -> pccl.Communicator:
    config = AgentConfig(
        addresses=parse_addresses(address),
        peer_id=engine.peer_id,
        host_key=1,
        min_world=2,
        connect_timeout_s=timeout_s,
        coordinator_grace_s=30.0,
    )
    agent = MemberAgent(config, lambda local_host: Seat(engine, local_host, 4000))
    return admit(agent, config, step_timeout_s=10.0)


def agent_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "pccl-agent"]


def test_a_peer_is_admitted_works_and_says_goodbye(coordinators: Any) -> None:
    coordinator, engine = coordinators(admits), WatchedEngine()
    with connect_to(coordinator.address, engine) as comm:
        x = np.ones(3)
        assert comm.all_reduce(x).contributors == (comm.peer_id,)
        comm.wait_for(1)
    hello, leaving = coordinator.heard
    assert isinstance(hello, m.Hello) and isinstance(leaving, m.Leaving)
    assert (hello.data_host, hello.data_port, hello.min_world) == ("127.0.0.1", 4000, 2)
    kind, named = engine.told[0]
    assert kind == "admit" and (named["host"], named["port"]) == ("127.0.0.1", coordinator.port)
    assert engine.closed and agent_threads() == []


def test_a_refusal_is_told_in_the_coordinators_words(coordinators: Any) -> None:
    engine = WatchedEngine()
    with pytest.raises(pccl.ConnectError, match="asks for 2"):
        connect_to(coordinators(refuses).address, engine)
    assert engine.closed and agent_threads() == []


def test_a_server_of_another_kind_is_recognised_at_once(coordinators: Any) -> None:
    async def speaks_http(coordinator: ScriptedCoordinator, channel: Channel) -> None:
        await channel.receive(10)
        channel._writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with pytest.raises(pccl.ConnectError, match="does not speak this protocol"):
        connect_to(coordinators(speaks_http).address, WatchedEngine())


def test_a_server_that_says_nothing_is_given_up_in_time(coordinators: Any) -> None:
    async def is_silent(coordinator: ScriptedCoordinator, channel: Channel) -> None:
        await coordinator.hear(channel)
        await coordinator.hear(channel)

    engine = WatchedEngine()
    with pytest.raises(pccl.ConnectError, match=r"within 0\.3 s"):
        connect_to(coordinators(is_silent).address, engine, timeout_s=0.3)
    assert engine.closed and agent_threads() == []


def test_where_nobody_listens_the_error_says_what_was_tried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(pccl.ConnectError, match=f"127.0.0.1:{port}.*refused.*pccl coordinator"):
        connect_to(f"127.0.0.1:{port}", WatchedEngine(), timeout_s=1.5)
    assert agent_threads() == []


def test_a_lost_coordinator_is_found_again_under_the_same_incarnation(coordinators: Any) -> None:
    async def admits_and_dies(coordinator: ScriptedCoordinator, channel: Channel) -> None:
        await coordinator.hear(channel)
        say(channel, ADMITTED)

    coordinator, engine = coordinators(admits_and_dies, admits), WatchedEngine()
    with connect_to(coordinator.address, engine) as comm:
        assert engine.admitted.wait(10)
        engine.admitted.clear()
        assert engine.admitted.wait(10)  # again, by the second connection
        comm.all_reduce(np.ones(1))
    first, second = [heard for heard in coordinator.heard if isinstance(heard, m.Hello)]
    assert (first.incarnation, second.incarnation) == (0, 7)


def test_an_evicted_process_learns_it_in_the_next_call(coordinators: Any) -> None:
    async def evicts(coordinator: ScriptedCoordinator, channel: Channel) -> None:
        await coordinator.hear(channel)
        say(channel, ADMITTED)
        await coordinator.hear(channel)  # WaitFor
        say(channel, m.Evicted(1, "silent for 3 s; connect again"))
        await coordinator.hear(channel)

    engine = WatchedEngine()
    with connect_to(coordinators(evicts).address, engine) as comm:
        with pytest.raises(pccl.Evicted, match="silent for 3 s"):
            comm.wait_for(5, timeout_s=10)
        with pytest.raises(pccl.Evicted):
            comm.all_reduce(np.ones(1))
    assert ("fail", "evicted") in engine.told


def test_an_engine_that_cannot_listen_is_the_callers_error(coordinators: Any) -> None:
    def no_seat(local_host: str) -> Seat:
        raise pccl.UsageError("not here")

    config = AgentConfig(
        addresses=parse_addresses(coordinators(admits).address),
        peer_id=b"p" * 16,
        host_key=1,
        min_world=0,
        connect_timeout_s=5.0,
        coordinator_grace_s=30.0,
    )
    with pytest.raises(pccl.UsageError, match="not here"):
        admit(MemberAgent(config, no_seat), config, step_timeout_s=1.0)
    assert agent_threads() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"address": "nowhere"}, "no port"),
        ({"address": ""}, "no address"),
        ({"min_world": 0}, "min_world"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"lanes": 1000}, "lanes"),
        ({"listen": "0.0.0.0:0"}, "insecure=True"),
        ({"listen": "127.0.0.1"}, "no port"),
        ({"advertise": "no_such_host.invalid:1"}, "resolved"),
        ({"identity": "/dev/null"}, r"holds no private key in PEM form; name one"),
        ({"identity": "/etc/passwd"}, r"holds no private key in PEM form; name one [^(]*$"),
        ({"identity": "/nope/x"}, "/nope/x cannot be read or made: .*folder that exists"),
        ({"identity": 7}, "identity must be a path"),
        ({"address": 48601}, "address must be a text"),
        ({"address": ["127.0.0.1:1", 7]}, "address must be a text"),
        ({"listen": 48601}, "listen must be a text"),
        ({"advertise": 48601}, "advertise must be a text"),
        ({"advertise": "0.0.0.0"}, r"advertise='0\.0\.0\.0', leads nobody anywhere; give an"),
        ({"advertise": "0.0.0.0:48148"}, "leads nobody anywhere; give an address of this"),
        ({"advertise": "::"}, "leads nobody anywhere"),
        ({"advertise": "[::]:7"}, "leads nobody anywhere"),
        ({"min_world": "x"}, "min_world must be an integer"),
        ({"min_world": 2000}, "min_world must be within 1 to 1024, not 2000"),
        ({"peer_group": "a"}, "peer_group must be an integer"),
        ({"lanes": "2"}, "lanes must be an integer"),
        ({"lanes": np.array([1, 2])}, "lanes must be an integer"),
        ({"peer_group": torch.tensor([1, 2])}, "peer_group must be an integer"),
        ({"spin_us": -7}, "spin_us must be within -1"),
        ({"straggler": 0.01}, r"straggler must be at least 0\.1 s"),
        ({"straggler": "soon"}, "straggler must be 'wait' or seconds"),
        ({"straggler": -1}, "straggler must be finite and positive"),
        ({"on_underflow": "stop"}, "on_underflow must be one of wait, alone, raise"),
        ({"timeout_s": None}, "timeout_s must be a number"),
        ({"drain_on_sigterm_s": 0}, "^drain_on_sigterm_s must be"),
        ({"step_timeout_s": 0}, "^step_timeout_s must be"),
        ({"coordinator_grace_s": -4}, "^coordinator_grace_s must be"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_dialled(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(pccl.UsageError, match=words):
        pccl.connect(**({"address": "127.0.0.1:1"} | options))
    assert agent_threads() == []


def told(listen: str, advertise: str | None, local: str = "10.0.0.7") -> str:
    return str(Whereabouts.parse(None, advertise, True).told(listen, local))


def test_peers_find_an_engine_where_it_listens_or_where_it_says() -> None:
    assert told("10.0.0.7", None) == "10.0.0.7:0"
    assert told("0.0.0.0", None) == ":0", "the coordinator takes the address it sees"
    assert told("::", "203.0.113.9") == "203.0.113.9:0"
    assert told("10.0.0.7", "203.0.113.9:99") == "203.0.113.9:99"
    assert told("::", "[2001:db8::7]:99") == "[2001:db8::7]:99"
    assert Whereabouts.parse(None, None, False).told("::1", "::1") is None


@pytest.mark.parametrize("advertise", ["127.0.0.1", "127.3.2.1:99", "[::1]:99", "::1"])
def test_loopback_is_not_advertised_where_the_coordinator_is_elsewhere(advertise: str) -> None:
    for local in ("10.0.0.7", "2001:db8::7"):
        with pytest.raises(pccl.UsageError, match="to itself; give an address of this machine"):
            told("0.0.0.0", advertise, local)
    for local in ("127.0.0.1", "::1"):
        assert is_loopback(parse_address(told("0.0.0.0", advertise, local), port_min=0).host)


def test_a_name_is_advertised_by_its_address_of_the_listeners_family(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolver(host: str, port: int, **_: Any) -> list[Any]:
        kind = (socket.SOCK_STREAM, 6, "")
        four = "10.0.0.7" if host == "host-a" else "127.0.1.1"
        six = (socket.AF_INET6, *kind, ("2001:db8::7", port, 0, 0))
        return [six, (socket.AF_INET, *kind, (four, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    assert told("0.0.0.0", "host-a:99") == "10.0.0.7:99"
    assert told("::", "host-a:99") == "[2001:db8::7]:99"
    with pytest.raises(pccl.UsageError, match=r"'own-name', which is 127\.0\.1\.1, leads each"):
        told("10.0.0.7", "own-name")


def test_an_identity_is_new_unless_a_file_keeps_it(tmp_path: Any) -> None:
    kept = tmp_path / "peer.pem"
    first, again = (peer_id_of(load_or_make_key(kept)) for _ in range(2))
    assert first == again and len(first) == 16
    assert kept.stat().st_mode & 0o777 == 0o600
    assert peer_id_of(load_or_make_key(None)) != peer_id_of(load_or_make_key(None))
    assert this_host_key() == this_host_key() != 0
