"""The listening port: who is taken when."""

from __future__ import annotations

import asyncio
import socket

from pccl.transport.address import Address
from pccl.transport.doors import REST_S, TAKEN_PER_TURN, Doors, serve


def test_a_crowd_is_taken_many_at_a_time_with_rests_between_and_nobody_while_shut() -> None:
    async def story() -> None:
        clock = asyncio.get_running_loop().time
        taken_s: list[float] = []
        all_taken = asyncio.Event()

        def take(connection: socket.socket, said: bytes | None) -> bool:
            connection.close()
            taken_s.append(clock())
            if len(taken_s) == TAKEN_PER_TURN + 10:
                all_taken.set()
            return False

        doors = Doors(take, lambda: None)
        port = await doors.open(Address("127.0.0.1", 0))
        doors.shut()
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(TAKEN_PER_TURN + 10)]
        await asyncio.sleep(2 * REST_S)
        assert not taken_s
        doors.reopen()
        async with asyncio.timeout(10):
            await all_taken.wait()
        assert taken_s[TAKEN_PER_TURN] - taken_s[TAKEN_PER_TURN - 1] >= 0.9 * REST_S
        doors.close()
        for one in crowd:
            one.close()

    asyncio.run(story())


def test_a_connection_whose_task_never_ran_is_closed_and_any_other_by_its_task() -> None:
    ran = []

    async def run(connection: socket.socket) -> None:
        ran.append(connection)
        try:
            await asyncio.sleep(60)
        finally:
            connection.close()

    async def story() -> None:
        for steps in (0, 1):
            ours, theirs = socket.socketpair()
            task = serve(ours, run)
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert ours.fileno() == -1 and theirs.recv(1) == b"" and len(ran) == steps
            theirs.close()

    asyncio.run(story())
