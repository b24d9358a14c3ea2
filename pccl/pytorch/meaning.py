"""What ranks of a group compare of a call that the engine knows nothing of: reduction and shape.

The engine compares what moves: kind, dtype, element count.  To it a bitwise reduction is an
all-gather, a sum of products a sum, and [2, 3] as good as [3, 2].  So the tag of a step's first
operation says the rest, and ranks whose calls differ in it find that they posted different ones.

    0                           nothing that the engine does not compare
    1 | kind | hash             1, 3 and 28 bits; hash: of the kinds and shapes of all operations

Invariant: ranks that call the same choose the same tag, below 2^32 and unlike those of the call's
later operations (1, 2, ...).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

Meaning = tuple[str, tuple[int, ...] | None]  # kind, and shape where that is compared
MEANT: Final = 1 << 31
_KIND_SHIFT: Final = 28
_NUMBERS: Final = {"": 8, "band": 9, "bor": 10, "bxor": 11, "premul_sum": 12}  # never changed
KINDS: Final = {number: kind for kind, number in _NUMBERS.items()}
_HASH: Final = (1 << _KIND_SHIFT) - 1
_POSTED: Final = re.compile(
    r"tag (\d+): (rank \S+) posted (.+?), (rank \S+) posted (.+?)(?=; tag \d+: |; all ranks |$)"
)
NOTHING: Final = "nothing"


def tag_of(meanings: Sequence[Meaning | None]) -> int:
    """Returns the tag of the first of a call's operations, given what each of them means."""
    return _tag_of(tuple(meanings))


@lru_cache(maxsize=1024)  # a program makes the same calls in every step
def _tag_of(meanings: tuple[Meaning | None, ...]) -> int:
    if not any(meanings):
        return 0
    said = [
        None if one is None else (one[0], one[1] and tuple(n for n in one[1] if n != 1))
        for one in meanings
    ]
    kind = next((one[0] for one in meanings if one is not None), "")
    return _NUMBERS[kind] << _KIND_SHIFT | zlib.crc32(repr(said).encode()) & _HASH


def as_called(text: str) -> str:
    """Returns the text of a mismatch with what ranks called, for what they posted by which tag."""
    found = list(_POSTED.finditer(text))
    if not any(int(one[1]) >= MEANT for one in found):
        return text
    calls: dict[str, list[str]] = {}
    for one in found:
        for rank, posted in ((one[2], one[3]), (one[4], one[5])):
            known = calls.setdefault(rank, [])
            if posted != NOTHING:
                known.append(_called(posted, int(one[1])))
    words = [f"{rank} posted {' and '.join(known) or NOTHING}" for rank, known in calls.items()]
    if len({tuple(known) for known in calls.values()}) == 1:
        words.append("of other shapes")
    return text[: found[0].start()] + ", ".join(words) + text[found[-1].end() :]


def _called(posted: str, tag: int) -> str:
    kind = KINDS.get(tag >> _KIND_SHIFT, "")
    if not kind:
        return posted
    if kind == "premul_sum":
        return posted.replace("(sum,", f"({kind},")
    return posted.replace("all_gather(", f"all_reduce({kind}, ").replace(" per rank", "")
