"""The listening port: who is taken when."""

from __future__ import annotations

import asyncio
import socket

from pccl.transport.address import Address
from pccl.transport.doors import REST_S, TAKEN_PER_TURN, Doors


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
