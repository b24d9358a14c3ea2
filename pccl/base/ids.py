"""The names of things: who a peer is, which view, which step.

A PeerId is 16 bytes drawn once per process, so it never returns after a death; an incarnation is
the coordinator's count of admissions and tells two lives of one id apart.  People see the first
eight hex digits.
"""

from typing import Final, NewType

PeerId = NewType("PeerId", bytes)
RunId = NewType("RunId", bytes)
Epoch = NewType("Epoch", int)  # one per view and per abort; only grows; 32 bits on the wire
Rank = NewType("Rank", int)  # index in the view's members; valid for one epoch only
StepId = NewType("StepId", int)  # agreed by program order; 64 bits on the wire

ID_BYTES: Final = 16
SHORT_HEX_DIGITS: Final = 8  # two of 1024 random ids look alike once in 8000 runs


def peer_id(value: bytes) -> PeerId:
    """Returns `value` as a PeerId.  Raises ValueError if it is not 16 bytes long."""
    if len(value) != ID_BYTES:
        raise ValueError(f"a peer id has {ID_BYTES} bytes, not {len(value)}")
    return PeerId(bytes(value))


def hex_id(value: bytes) -> str:
    """Returns the whole id as hex digits."""
    return value.hex()


def short_id(value: bytes) -> str:
    """Returns the form of an id that people see."""
    return value.hex()[:SHORT_HEX_DIGITS]
