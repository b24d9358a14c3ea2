"""A peer made of two sockets: it says what a story tells it to, and nothing by itself."""

from __future__ import annotations

import asyncio
from typing import Self, TypeVar

from pccl.membership.messages import (
    PROTOCOL_VERSION,
    Admitted,
    CoordinatorMessageBody,
    Hello,
    PeerMessageBody,
    coordinator_codec,
    peer_codec,
)
from pccl.transport import native_frames as nf
from pccl.transport.address import parse_address
from pccl.transport.channel import Channel

M = TypeVar("M")
ANSWER_TIMEOUT_S = 10.0


async def dial(address: str) -> Channel:
    where = parse_address(address)
    reader, writer = await asyncio.open_connection(where.host, where.port)
    return Channel(reader, writer, trusted=True)


class ScriptedPeer:
    """An admitted peer with its agent's and its native connection, and a listening port."""

    def __init__(self, agent: Channel, native: Channel, admitted: Admitted, port: int) -> None:
        self.agent, self.native, self.admitted, self.port = agent, native, admitted, port

    @classmethod
    async def admit(cls, address: str, peer_id: bytes, port: int = 9) -> Self:
        """Connects and is admitted, as a real peer would."""
        agent = await dial(address)
        agent.send(peer_codec.encode(hello(peer_id, port)))
        admitted = await expect(agent, Admitted)
        native = await dial(address)
        greeting = nf.NativeHello(
            0, admitted.run_id, peer_id, admitted.incarnation, admitted.secret
        )
        native.send(nf.encode(greeting))
        peer = cls(agent, native, admitted, port)
        assert await peer.expect_native(nf.Welcome) == nf.Welcome(admitted.generation)
        return peer

    def say(self, message: PeerMessageBody) -> None:
        self.agent.send(peer_codec.encode(message))

    def beat(self, progress: int = 0) -> None:
        self.native.send(nf.encode(nf.Heartbeat(self.admitted.generation, 0, 0, 0, progress)))

    async def expect_native(self, kind: type[M]) -> M:
        while True:
            body = await self.native.receive(ANSWER_TIMEOUT_S)
            assert body is not None, f"the connection ended before {kind.__name__}"
            frame = nf.decode(body)
            if isinstance(frame, kind):
                return frame

    def close(self) -> None:
        self.agent.close()
        self.native.close()


def hello(peer_id: bytes, port: int = 9, *, protocol: int = PROTOCOL_VERSION) -> Hello:
    return Hello(
        protocol=protocol,
        run_id=b"",
        peer_id=peer_id,
        incarnation=0,
        generation=0,
        epoch=0,
        data_host="",
        data_port=port,
        host_key=1,
        min_world=0,
        hostname="test",
        pid=1,
    )


async def expect(channel: Channel, kind: type[M]) -> M:
    """Returns the next message of this kind; others before it are read and forgotten."""
    while True:
        body = await channel.receive(ANSWER_TIMEOUT_S)
        assert body is not None, f"the connection ended before {kind.__name__}"
        message: CoordinatorMessageBody = coordinator_codec.decode(body)
        if isinstance(message, kind):
            return message
