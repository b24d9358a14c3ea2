"""A real coordinator on a loopback port, scripted peers and strangers around it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from pccl.base.config import LAN, WAN, ControlLimits
from pccl.base.errors import ConnectError, PcclError, UsageError
from pccl.membership.messages import AtEntry, Install, LinksUp, Refused, ViewPlan, peer_codec
from pccl.membership.service import CoordinatorOptions, CoordinatorThread, choose_profile
from pccl.membership.service_status import fetch_status, fetch_status_now
from pccl.transport import native_frames as nf
from pccl.transport.address import Address, parse_address
from pccl.transport.framing import frame
from tests.integration.scripted_peer import ScriptedPeer, dial, expect, hello

A, B = b"a" * 16, b"b" * 16
STORY_TIMEOUT_S = 20.0


async def closed_by_the_other_end(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(4096):
            pass
    except ConnectionResetError:
        pass


def test_two_peers_are_admitted_form_the_first_view_and_show_in_the_status() -> None:
    async def story(address: str) -> None:
        peers = [await ScriptedPeer.admit(address, peer_id) for peer_id in (A, B)]
        assert [peer.admitted.incarnation for peer in peers] == [1, 2]
        for peer in peers:
            peer.beat()
            assert (await peer.expect_native(nf.Pong)).epoch == 0
            peer.say(AtEntry("train", 0))
        for peer in peers:
            plan = await expect(peer.agent, ViewPlan)
            assert [member.peer_id for member in plan.members] == [A, B]
            assert [member.host for member in plan.members] == ["127.0.0.1"] * 2
            peer.say(LinksUp(plan.epoch))
        installed = [await expect(peer.agent, Install) for peer in peers]
        assert installed[0] == installed[1]
        assert [member.first_step for member in installed[0].members] == [0, 0]

        status = await fetch_status([parse_address(address)], timeout_s=5)
        assert status["epoch"] == installed[0].epoch
        assert [member["peer_id"] for member in status["members"]] == [A.hex(), B.hex()]
        assert status["connections"]["open"] == 5
        assert status["connections"]["dropped"] == 0
        for peer in peers:
            peer.close()

    with CoordinatorThread(CoordinatorOptions(min_world=2)) as coordinator:
        asyncio.run(asyncio.wait_for(story(coordinator.address), STORY_TIMEOUT_S))
    assert coordinator.failure is None


def test_garbage_oversized_and_silent_connections_are_counted_while_a_peer_goes_on() -> None:
    strangers = (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff\xff\xff\xff",
        frame(b"\x95abcd"),
        frame(b"\xc1\x01\x02ab"),
        b"",
    )

    async def story(address: str) -> None:
        peer = await ScriptedPeer.admit(address, A)
        where = parse_address(address)
        for number, stranger in enumerate(strangers):
            reader, writer = await asyncio.open_connection(where.host, where.port)
            writer.write(stranger)
            await closed_by_the_other_end(reader)
            writer.close()
            peer.beat(number)
            await peer.expect_native(nf.Pong)
        status = await fetch_status([where], timeout_s=5)
        assert status["connections"]["dropped_by_reason"] == {"protocol": 4, "silent": 1}
        assert status["counters"]["dropped_frames"] == 5
        assert [learner["peer_id"] for learner in status["learners"]] == [A.hex()]
        peer.close()

    limits = ControlLimits(first_frame_timeout_s=0.3)
    with CoordinatorThread(CoordinatorOptions(limits=limits)) as coordinator:
        asyncio.run(asyncio.wait_for(story(coordinator.address), STORY_TIMEOUT_S))


def test_a_peer_of_another_protocol_version_is_refused_with_a_reason() -> None:
    async def story(address: str) -> None:
        channel = await dial(address)
        channel.send(peer_codec.encode(hello(A, protocol=99)))
        refused = await expect(channel, Refused)
        assert refused.code == "protocol"
        assert "99" in refused.text
        assert await channel.receive() is None

    with CoordinatorThread() as coordinator:
        asyncio.run(asyncio.wait_for(story(coordinator.address), STORY_TIMEOUT_S))


def test_a_dead_member_is_found_by_its_refused_port_long_before_its_lease_ends() -> None:
    async def story(address: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = int(listener.getsockname()[1])
            survivor = await ScriptedPeer.admit(address, A, port)
            victim = await ScriptedPeer.admit(address, B)  # nobody listens on port 9
            for peer in (survivor, victim):
                peer.say(AtEntry("train", 0))
            for peer in (survivor, victim):
                peer.say(LinksUp((await expect(peer.agent, ViewPlan)).epoch))
            for peer in (survivor, victim):
                epoch = (await expect(peer.agent, Install)).epoch
            loop = asyncio.get_running_loop()
            died_s = loop.time()
            victim.agent.abort()
            victim.native.abort()
            flush = await survivor.expect_native(nf.Flush)
            assert flush.target > epoch
            assert loop.time() - died_s < LAN.lease_s / 2
            report = nf.Report(flush.generation, flush.target, epoch, False, 0, 0, 0)
            survivor.native.send(nf.encode(report))
            installed = await expect(survivor.agent, Install)
            assert [member.peer_id for member in installed.members] == [A]
            assert installed.lost == (B,)
            survivor.close()

    with CoordinatorThread(CoordinatorOptions(min_world=1)) as coordinator:
        asyncio.run(asyncio.wait_for(story(coordinator.address), STORY_TIMEOUT_S))


def test_a_restarted_coordinator_remembers_the_run_and_is_a_new_generation(tmp_path: Path) -> None:
    options = CoordinatorOptions(journal=tmp_path / "run.journal")
    seen = []
    for _ in range(2):
        with CoordinatorThread(options) as coordinator:
            seen.append(fetch_status_now([parse_address(coordinator.address)], timeout_s=5))
    assert seen[0]["run_id"] == seen[1]["run_id"]
    assert [status["generation"] for status in seen] == [1, 2]


def test_a_coordinator_without_a_journal_begins_a_new_run() -> None:
    runs = set()
    for _ in range(2):
        with CoordinatorThread() as coordinator:
            runs.add(fetch_status_now([parse_address(coordinator.address)], timeout_s=5)["run_id"])
    assert len(runs) == 2


def test_a_coordinator_thread_that_cannot_start_says_why(tmp_path: Path) -> None:
    with CoordinatorThread() as coordinator:
        taken = parse_address(coordinator.address)
        with pytest.raises(ConnectError, match="address already in use"):
            CoordinatorThread(CoordinatorOptions(listen=taken)).start()
    with pytest.raises(UsageError, match="insecure"):
        CoordinatorThread(CoordinatorOptions(listen=Address("0.0.0.0", 0))).start()
    with pytest.raises(PcclError, match="journal"):
        CoordinatorThread(CoordinatorOptions(journal=tmp_path / "no" / "where")).start()
    with pytest.raises(PcclError, match="not running"):
        _ = CoordinatorThread().address


def test_a_stopped_coordinator_thread_leaves_no_port_behind() -> None:
    with CoordinatorThread() as coordinator:
        address = parse_address(coordinator.address)
    coordinator.stop()
    with pytest.raises(ConnectError, match="refused"):
        fetch_status_now([address], timeout_s=1)


@pytest.mark.parametrize(
    ("first_bytes", "reason"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "no pccl coordinator"), (b"", "closed it")],
)
def test_a_status_from_something_else_is_an_error_that_says_so(
    first_bytes: bytes, reason: str
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(first_bytes)
        writer.close()

    async def story() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            where = Address("127.0.0.1", server.sockets[0].getsockname()[1])
            with pytest.raises(ConnectError, match=reason):
                await fetch_status([where], timeout_s=5)

    asyncio.run(asyncio.wait_for(story(), STORY_TIMEOUT_S))


def test_a_status_from_somebody_who_is_silent_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = Address("127.0.0.1", silent.getsockname()[1])
        with pytest.raises(ConnectError, match=r"did not answer within 0\.2 s"):
            fetch_status_now([where], timeout_s=0.2)


@pytest.mark.parametrize(
    ("name", "host", "profile"),
    [
        ("lan", "8.8.8.8", LAN),
        ("wan", "127.0.0.1", WAN),
        ("auto", "127.0.0.1", LAN),
        ("auto", "10.1.2.3", LAN),
        ("auto", "0.0.0.0", LAN),
        ("auto", "localhost", LAN),
        ("auto", "node-7", LAN),
        ("auto", "8.8.8.8", WAN),
        ("auto", "train.example.org", WAN),
    ],
)
def test_the_profile_follows_the_network_unless_it_is_named(
    name: str, host: str, profile: object
) -> None:
    assert choose_profile(name, host) is profile
