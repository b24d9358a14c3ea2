"""The library's texts in torch's terms: ranks instead of peers, and advice that fits a group.

The library speaks to programs that begin a step again under another view.  In a group of torch
calls are made by all ranks in one order, and nothing is begun again by hand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pccl.base.ids import short_id
from pccl.pytorch.meaning import as_called

GROUP_OVER: Final = (
    "the group is over: destroy it and make a new one, or end this process and have all ranks "
    "started again, as torchrun --max-restarts does (with Options(elastic=True) the others go on)"
)
GONE: Final = "its process has ended, is stopped or cannot be reached"
CALL_ALIKE: Final = (
    "all ranks must call the same collectives in the same order, with the same shapes and dtypes"
)
_PEER: Final = re.compile(
    r"\b(peer|root) ([0-9a-f]{8})(?:\.\d+)?((?:, [0-9a-f]{8}\b)*)(?![0-9a-f])"
)
NAMED_MAX: Final = 8
SEE_THERE: Final = " (its own error says why)"
THIS_PROCESS: Final = " (this process)"  # whoever reads of ranks knows its own
AGREE: Final = "make shape, dtype, op, tag and options agree on all peers"
_STEP: Final = re.compile(r"\bstep \d+: ")  # counted by the library, for its own programs
_WRONG: Final = (  # for a group: nobody comes in, and no view is tried again
    "; steps run again when enough have come in",
    "; retry under the next view",
    "; retry it under the present view",
    "; post them again",
    "; connect again",
)


def name_ranks(text: str, members: Sequence[bytes]) -> str:
    """Returns `text` with `rank 2` for `peer 0a1b2c3d` where that is member 2; others stay.

    An id that two members share in its first digits stays as well: better no name than a wrong one.
    """
    shorts = [short_id(bytes(member)) for member in members]
    ranks = {short: rank for rank, short in enumerate(shorts) if shorts.count(short) == 1}

    def named(found: re.Match[str]) -> str:
        ids = [found[2], *found[3].split(", ")[1:]]
        if not all(one in ranks for one in ids):
            return found[0]
        word = "rank" if found[1] == "peer" else "root"
        return f"{word} {', '.join(str(ranks[one]) for one in ids)}"

    return _PEER.sub(named, text)


def gone(ranks: Sequence[int], world: int) -> str:
    """Says which ranks are gone; those that left because of a loss are among them."""
    if len(ranks) == 1:
        return f"rank {ranks[0]} of {world} is gone"
    named = ", ".join(f"rank {rank}" for rank in ranks[:NAMED_MAX])
    more = f" and {len(ranks) - NAMED_MAX} more" if len(ranks) > NAMED_MAX else ""
    return f"{named}{more} of {world} are gone"


def by_ranks(text: str, members: Sequence[bytes]) -> str:
    """Returns what an error of the library says, of ranks and of what they called."""
    text = _STEP.sub("", text.replace(AGREE, CALL_ALIKE).replace(THIS_PROCESS, ""))
    called = as_called(name_ranks(text, members))
    return called.replace(" posted nothing", f" posted nothing{SEE_THERE}")


def in_torchs_terms(text: str, members: Sequence[bytes]) -> str:
    """As `by_ranks`, without advice that does not fit a group whose world is fixed."""
    for advice in _WRONG:
        text = text.replace(advice, "")
    return by_ranks(text, members)
