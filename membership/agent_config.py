"""How a member agent finds its run, what it says of itself, and the engine it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pccl.transport.address import Address
from pccl.transport.engine_api import EngineLike
from pccl.transport.identity import TlsMaterial

if TYPE_CHECKING:
    from pccl.membership.agent_security import Credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """How an agent finds its run, and what it says of itself."""

    addresses: tuple[Address, ...]
    peer_id: bytes
    host_key: int
    min_world: int
    group: int = 0
    seat: int = 0
    on_underflow: int = 0  # an Underflow; 0 = no opinion
    straggler_s: float = 0.0  # 0 = no opinion
    connect_timeout_s: float
    coordinator_grace_s: float | None  # None: as the coordinator's profile says
    credentials: Credentials | None = None  # None: the run is not secured

    def __post_init__(self) -> None:
        assert self.addresses and self.connect_timeout_s > 0
        assert self.coordinator_grace_s is None or self.coordinator_grace_s > 0
        assert self.credentials is None or self.credentials.peer_id == self.peer_id


@dataclass(frozen=True, slots=True)
class Seat:
    """An engine that listens, and where peers find it ("" = where the coordinator sees us)."""

    engine: EngineLike
    data_host: str
    data_port: int
    renewed: Callable[[TlsMaterial], None] | None = None  # told each new certificate
    carried_by: str = ""  # what moves its lanes' bytes, for people
    home: Address | None = None  # where this process itself reaches its port, if others do, too


MakeSeat = Callable[[str], Seat]
"""Makes the engine, given the literal local address used towards the coordinator."""
