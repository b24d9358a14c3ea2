"""What torchft tells a process group when a quorum has been found.

    0.1    configure(store_addr, rank, world_size)
    later  configure(store_addr, replica_id, rank, world_size)
    0.2    configure(store_addr, replica_id, rank, world_size, quorum_id, group_rank,
                     group_world_size, global_ranks)

`store_addr` is host:port/prefix, where the host may be a bare IPv6 address.  Pure: needs neither
torch nor torchft.

Invariant: a call that is of none of these forms raises TypeError or ValueError, naming what is
wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

OLD: Final = ("store_addr", "rank", "world_size")
NEW: Final = (
    *("store_addr", "replica_id", "rank", "world_size"),
    *("quorum_id", "group_rank", "group_world_size", "global_ranks"),
)
PORT_MAX: Final = 65535


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where the members of a quorum meet."""

    host: str
    port: int
    prefix: str


@dataclass(frozen=True, slots=True)
class Quorum:
    """One quorum, as this process sees it."""

    store: StoreAddress
    rank: int
    world_size: int
    name: str


def quorum_of(args: tuple[Any, ...], named: dict[str, Any]) -> Quorum:
    """Returns what a call of `configure` means, in any of its forms."""
    names = OLD if len(args) > 1 and isinstance(args[1], int) else NEW
    if len(args) > len(names):
        raise TypeError(f"configure takes {len(names)} arguments ({', '.join(names)})")
    given = dict(zip(names, args, strict=False))
    twice = sorted(given.keys() & named.keys())
    unknown = sorted(named.keys() - set(NEW))
    missing = sorted(set(OLD) - given.keys() - named.keys())
    for what, found in (("twice", twice), ("unknown", unknown), ("missing", missing)):
        if found:
            raise TypeError(f"configure: {what}: {', '.join(found)}")
    given |= named
    rank, world_size = int(given["rank"]), int(given["world_size"])
    if not 0 <= rank < world_size:
        raise ValueError(f"configure: rank {rank} in a world of {world_size}")
    number, replica = given.get("quorum_id"), given.get("replica_id")
    words = [
        "torchft quorum" if number is None else f"torchft quorum {number}",
        "" if replica is None else f"of replica {replica}",
    ]
    return Quorum(
        parse_store_address(str(given["store_addr"])),
        rank,
        world_size,
        " ".join(word for word in words if word),
    )


def parse_store_address(text: str) -> StoreAddress:
    """Raises ValueError if `text` is not host:port/prefix."""
    address, _, prefix = text.partition("/")
    host, _, port = address.rpartition(":")  # the last colon: others belong to IPv6
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) <= PORT_MAX:
        raise ValueError(f"{text!r} is no address of a store; it is written host:port/prefix")
    return StoreAddress(host, int(port), prefix)
