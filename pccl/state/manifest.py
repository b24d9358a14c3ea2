"""What a checkpoint says of itself, and which of several disks' checkpoints to begin with.  Pure.

Invariant: `Manifest.decode` returns a manifest whose digests belong to its root, or raises
RemoteError; `choose` gives the same answer to the same offers, whoever asks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pccl.base.errors import PcclError, RemoteError
from pccl.state.layout import ENTRIES_MAX, Layout
from pccl.state.tree import Hashing, hashing_named, root_of

FORMAT: Final = 1
OFFERS_PER_PEER_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Manifest:
    """One checkpoint of one peer: a whole state's digests, and the tensors that lie beside it."""

    revision: int
    lineage: int
    hashing: Hashing
    root: bytes
    layout: Layout
    digests: bytes
    held: tuple[str, ...]  # names of the tensors in the file beside it
    when: str  # for people

    def encode(self) -> bytes:
        return json.dumps(
            {
                "format": FORMAT,
                "revision": self.revision,
                "lineage": self.lineage,
                "hashing": self.hashing.name,
                "root": self.root.hex(),
                "tensors": json.loads(self.layout.encoded),
                "digests": self.digests.hex(),
                "held": list(self.held),
                "when": self.when,
            },
            indent=1,
        ).encode()

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        try:
            found = json.loads(data)
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']}")
            rows = json.dumps(found["tensors"], ensure_ascii=True, separators=(",", ":"))
            manifest = cls(
                revision=_number(found["revision"]),
                lineage=_number(found["lineage"]),
                hashing=hashing_named(found["hashing"]),
                root=bytes.fromhex(found["root"]),
                layout=Layout.decode(rows.encode()),
                digests=bytes.fromhex(found["digests"]),
                held=tuple(str(name) for name in found["held"]),
                when=str(found["when"]),
            )
            size = manifest.hashing.digest_bytes * manifest.layout.leaf_count
            if len(manifest.digests) != size:
                raise ValueError("a wrong number of digests")
            if root_of(manifest.layout, manifest.digests, manifest.hashing) != manifest.root:
                raise ValueError("digests that do not belong to the root")
            return manifest
        except RemoteError:
            raise
        except (ValueError, TypeError, KeyError, RecursionError, PcclError) as error:
            raise RemoteError(f"no manifest: {error}") from error


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ValueError(f"{value!r} is no number of 64 bits")
    return value


@dataclass(frozen=True, slots=True, order=True)
class Revision:
    """Names one content: the same revision of one lineage may have been made twice."""

    revision: int
    lineage: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Offer:
    """Which tensors of a revision one peer's disk holds; bit i is tensor i of the layout."""

    what: Revision
    tensors: int


def encode_offers(offers: Sequence[Offer]) -> bytes:
    rows = [
        [o.what.revision, o.what.lineage, o.what.root.hex(), f"{o.tensors:x}"]
        for o in offers[:OFFERS_PER_PEER_MAX]
    ]
    return json.dumps(rows).encode()


def decode_offers(data: bytes) -> list[Offer]:
    """Raises RemoteError for bytes that are no offers."""
    try:
        rows = json.loads(data)
        if len(rows) > OFFERS_PER_PEER_MAX:
            raise ValueError("too many offers")
        offers = []
        for revision, lineage, root, tensors in rows:
            bits = int(tensors, 16)
            if not 0 <= bits < 1 << ENTRIES_MAX:
                raise ValueError("impossible tensors")
            what = Revision(_number(revision), _number(lineage), bytes.fromhex(root))
            offers.append(Offer(what, bits))
        return offers
    except (ValueError, TypeError, RecursionError) as error:
        raise RemoteError(f"no offers of checkpoints: {error}") from error


@dataclass(frozen=True, slots=True)
class Choice:
    """Attributes:
    what: the revision to begin with.
    owners: for each tensor the first peer (index of the table) that holds it.
    newer: revisions that somebody holds a part of, but that are not whole.
    odd: peers whose disks hold another content of the very revision, as fewer do.
    """

    what: Revision
    owners: tuple[int, ...]
    newer: tuple[Revision, ...]
    odd: tuple[int, ...] = ()


def choose(table: Sequence[Sequence[Offer]], tensor_count: int) -> Choice | None:
    """Returns the newest revision that all peers together hold; None if there is none.

    Of several contents of one revision the one that most disks hold comes first: a checkpoint of
    memory that was silently changed fits its own manifest.
    """
    wanted = (1 << tensor_count) - 1
    votes = Counter(what for offers in table for what in {offer.what for offer in offers})
    known = sorted(votes, key=lambda w: (w.revision, w.lineage, votes[w], w.root), reverse=True)
    newer: list[Revision] = []
    for what in known:
        held = [_held(offers, what) for offers in table]
        union = 0
        for bits in held:
            union |= bits
        if union & wanted == wanted:
            owners = tuple(
                next(peer for peer, bits in enumerate(held) if bits >> tensor & 1)
                for tensor in range(tensor_count)
            )
            return Choice(
                what,
                owners,
                tuple(other for other in newer if not _same_revision(other, what)),
                tuple(peer for peer, offers in enumerate(table) if _differs(offers, what)),
            )
        newer.append(what)
    return None


def _same_revision(one: Revision, other: Revision) -> bool:
    return (one.revision, one.lineage) == (other.revision, other.lineage)


def _differs(offers: Sequence[Offer], what: Revision) -> bool:
    return any(_same_revision(o.what, what) and o.what != what for o in offers)


def _held(offers: Sequence[Offer], what: Revision) -> int:
    bits = 0
    for offer in offers:
        if offer.what == what:
            bits |= offer.tensors
    return bits
