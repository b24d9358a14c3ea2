"""What publisher and receivers say to each other, and the bytes of it.  Pure.

A message is a frame of `transport.framing` (u32 length, two checks) around a MessagePack array
with its tag in front, as on the control plane.  Behind a `ChunkHead` follow as many raw bytes as
it announces; whoever reads them knows from the manifest how many these must be, and which digest.

    receiver to publisher     Join, Want, Held, Released, Alive
    publisher to receiver     Joined, Manifest, Dropped, Source, Alive
    fetcher to holder         Fetch
    holder to fetcher         ChunkHead (and a chunk), Waiting, Gone

Manifests come from the publisher itself, chunks from anybody: so who relays can refuse or delay
bytes but has none accepted that the publisher did not announce.

Invariant: tags are never reused, fields are appended with defaults, and no size is believed before
it was compared with a limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from pccl.transport.codec import Codec, message
from pccl.transport.digests import XXH3_BYTES

PROTOCOL: Final = 1
ID_BYTES: Final = 16
ROOT: Final = b""  # as a source: the publisher itself
CHUNK_BYTES_MIN: Final = 256 << 10
CHUNK_BYTES_MAX: Final = 4 << 20  # what is lost when a source dies, and fetched again
CHUNKS_MAX: Final = 16_000  # their digests fit the 256 KiB that a field may have
HEADS_BYTES_MAX: Final = 256 << 20  # beyond the elements: 100 bytes per tensor, as a rule
UPDATE_BYTES_MAX: Final = CHUNK_BYTES_MAX * CHUNKS_MAX  # 62 GiB
PORT_MAX: Final = 65_535


class Trouble(IntEnum):
    """Why a receiver asks for another source."""

    NONE = 0
    LOST = 1  # cannot be reached, or its connection ended
    SILENT = 2  # neither a chunk nor a word within the time for one
    CORRUPT = 3  # a chunk that is not what the manifest says
    GONE = 4  # it does not hold the update any more


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _require_id(*values: bytes) -> None:
    _require(all(len(value) == ID_BYTES for value in values), f"an id has {ID_BYTES} bytes")


@message(1)
@dataclass(frozen=True, slots=True)
class Join:
    """A receiver's first word.  Port 0: nobody can fetch from it; host "": as it is seen."""

    protocol: int
    receiver: bytes
    host: str
    port: int

    def __post_init__(self) -> None:
        _require_id(self.receiver)
        _require(self.port <= PORT_MAX, f"{self.port} is no port")


@message(2)
@dataclass(frozen=True, slots=True)
class Joined:
    """Who publishes, and what opens its receivers' doors.  Newest: 0 while nothing is published."""

    lineage: bytes
    secret: bytes
    newest: int

    def __post_init__(self) -> None:
        _require_id(self.lineage, self.secret)


@message(3)
@dataclass(frozen=True, slots=True)
class Manifest:
    """One update: what it leads from and to, and the digest of each chunk of its bytes."""

    update: int
    revision: int
    base: bytes  # "" of an anchor
    digest: bytes
    state_bytes: int
    byte_count: int
    chunk_bytes: int
    chunk_digests: bytes

    def __post_init__(self) -> None:
        _require_id(self.digest, *([self.base] if self.base else []))
        _require(0 < self.byte_count <= UPDATE_BYTES_MAX, f"{self.byte_count} bytes of an update")
        most = self.state_bytes + self.state_bytes // 1000 + HEADS_BYTES_MAX
        _require(self.byte_count <= most, "an update that is larger than its state")
        fits = CHUNK_BYTES_MIN <= self.chunk_bytes <= CHUNK_BYTES_MAX
        _require(fits, f"chunks of {self.chunk_bytes} bytes")
        _require(len(self.chunk_digests) == self.chunks * XXH3_BYTES, "not a digest per chunk")

    @property
    def is_anchor(self) -> bool:
        return not self.base

    @property
    def chunks(self) -> int:
        return -(-self.byte_count // self.chunk_bytes)

    def span(self, index: int) -> tuple[int, int]:
        """Where a chunk begins and ends."""
        start = index * self.chunk_bytes
        return start, min(start + self.chunk_bytes, self.byte_count)

    def chunk_digest(self, index: int) -> bytes:
        return self.chunk_digests[index * XXH3_BYTES : (index + 1) * XXH3_BYTES]


@message(4)
@dataclass(frozen=True, slots=True)
class Dropped:
    """The publisher serves an update no more."""

    update: int


@message(5)
@dataclass(frozen=True, slots=True)
class Want:
    """Asks from whom to fetch an update; says what was wrong with whom it was fetched from."""

    update: int
    blamed: bytes | None = None  # ROOT: the publisher
    trouble: Trouble = Trouble.NONE

    def __post_init__(self) -> None:
        _require(
            self.blamed in (None, ROOT) or len(self.blamed or b"") == ID_BYTES, "blames nobody"
        )


@message(6)
@dataclass(frozen=True, slots=True)
class Source:
    """The answer: fetch from this holder.  Holder ROOT: from the publisher, where it was joined."""

    update: int
    holder: bytes
    host: str
    port: int

    def __post_init__(self) -> None:
        _require(self.holder == ROOT or len(self.holder) == ID_BYTES, "no holder")
        _require(self.port <= PORT_MAX, f"{self.port} is no port")


@message(7)
@dataclass(frozen=True, slots=True)
class Held:
    """A receiver has all of an update, and gives it to others."""

    update: int


@message(8)
@dataclass(frozen=True, slots=True)
class Released:
    """A receiver does not keep an update any longer."""

    update: int


@message(9)
@dataclass(frozen=True, slots=True)
class Alive:
    """Nothing new."""


@message(10)
@dataclass(frozen=True, slots=True)
class Fetch:
    """The first word to a holder: send this update from this chunk on."""

    protocol: int
    secret: bytes
    update: int
    chunk: int

    def __post_init__(self) -> None:
        _require_id(self.secret)
        _require(self.chunk <= CHUNKS_MAX, f"chunk {self.chunk}")


@message(11)
@dataclass(frozen=True, slots=True)
class ChunkHead:
    """A chunk follows, of so many bytes."""

    index: int
    byte_count: int

    def __post_init__(self) -> None:
        _require(0 < self.byte_count <= CHUNK_BYTES_MAX, f"a chunk of {self.byte_count} bytes")


@message(12)
@dataclass(frozen=True, slots=True)
class Waiting:
    """The holder lives and has no further chunk itself yet."""


@message(13)
@dataclass(frozen=True, slots=True)
class Gone:
    """The holder does not have this update."""


ToPublisher = Join | Want | Held | Released | Alive
ToReceiver = Joined | Manifest | Dropped | Source | Alive
ToFetcher = ChunkHead | Waiting | Gone
Message = ToPublisher | ToReceiver | ToFetcher | Fetch

codec: Final[Codec[Message]] = Codec(
    Join, Joined, Manifest, Dropped, Want, Source, Held, Released, Alive, Fetch, ChunkHead,
    Waiting, Gone,
)  # fmt: skip


def chunk_bytes_for(byte_count: int) -> int:
    """Returns the size of chunk for an update: the smallest whose digests fit a manifest."""
    size = CHUNK_BYTES_MIN
    while size < CHUNK_BYTES_MAX and -(-byte_count // size) > CHUNKS_MAX:
        size *= 2
    return size
