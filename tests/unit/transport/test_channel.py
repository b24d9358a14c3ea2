"""The channel's socket: what the kernel is asked to watch."""

from __future__ import annotations

import asyncio
import socket

from pccl.transport.channel import Channel
from pccl.transport.keep_alive import UNACKNOWLEDGED_MS_MAX


def test_a_channel_asks_the_kernel_to_give_up_on_bytes_that_nobody_acknowledges() -> None:
    async def story() -> list[int]:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        channel = Channel(*await asyncio.open_connection("127.0.0.1", port))
        connection = channel._writer.get_extra_info("socket")
        asked = [
            connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        ]
        await channel.finish(1.0)
        server.close()
        await server.wait_closed()
        return asked

    assert asyncio.run(story()) == [UNACKNOWLEDGED_MS_MAX, 1]
