"""What a receiver and a donor say on a stream.  Bytes: docs/PROTOCOL.md, "Shared state".

The receiver asks, the donor answers each question in turn; contents follow their message as bare
bytes, whose number it says.  Compatibility is that of every message (`transport.codec`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, get_args

from pccl.transport.codec import Codec, message

PROTOCOL: Final = 1
BODY_BYTES_MAX: Final = 64 << 10
LEAVES_PER_ASK_MAX: Final = 64
HASHING_CHARACTERS_MAX: Final = 16
TEXT_CHARACTERS_MAX: Final = 1024
DIGEST_BYTES_MAX: Final = 32
CURRENT: Final = (1 << 64) - 1
"""As a revision: the one in force at the donor."""
WAITS_ITSELF: Final = "this peer waits for the state itself"
"""As the text of a Sorry: by it newcomers of one view know that no member is left in it."""


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


@message(1)
@dataclass(frozen=True, slots=True)
class Describe:
    """What do you hold?  `at_step` asks for the state with which that step began; CURRENT: now."""

    protocol: int
    at_step: int = CURRENT


@message(2)
@dataclass(frozen=True, slots=True)
class Fetch:
    """Send these leaves of this revision."""

    revision: int
    root: bytes
    leaves: tuple[int, ...]

    def __post_init__(self) -> None:
        _demand(0 < len(self.leaves) <= LEAVES_PER_ASK_MAX, f"{len(self.leaves)} leaves")
        _demand(len(self.root) <= DIGEST_BYTES_MAX, "root")


@message(3)
@dataclass(frozen=True, slots=True)
class Replay:
    """Send the committed results that led from this revision to the next."""

    revision: int


@message(16)
@dataclass(frozen=True, slots=True)
class Described:
    """The layout and the leaves' digests follow."""

    revision: int
    lineage: int
    hashing: str
    root: bytes
    layout_bytes: int
    digests_bytes: int

    def __post_init__(self) -> None:
        _demand(len(self.hashing) <= HASHING_CHARACTERS_MAX, "hashing")
        _demand(len(self.root) <= DIGEST_BYTES_MAX, "root")


@message(17)
@dataclass(frozen=True, slots=True)
class Leaves:
    """The leaves follow, in the order in which they were asked for."""

    byte_count: int


@message(18)
@dataclass(frozen=True, slots=True)
class Sorry:
    """No.  `code`: state (none that could be given), gone (another revision is in force), usage."""

    code: str
    text: str

    def __post_init__(self) -> None:
        _demand(len(self.code) <= HASHING_CHARACTERS_MAX, "code")
        _demand(len(self.text) <= TEXT_CHARACTERS_MAX, "text")


@message(19)
@dataclass(frozen=True, slots=True)
class Results:
    """One committed update: its arrays' layout and contents follow."""

    revision: int
    layout_bytes: int
    byte_count: int


Question = Describe | Fetch | Replay
Answer = Described | Leaves | Sorry | Results

question_codec: Codec[Question] = Codec(*get_args(Question))
answer_codec: Codec[Answer] = Codec(*get_args(Answer))
