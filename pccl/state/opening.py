"""Opens a stream to a source of state, and hears what it holds.

Invariant: what is returned is of the same layout and hash as the state here, and its digests belong
to the root that the source claims.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pccl.base.clock import Deadline
from pccl.base.errors import RemoteError, UsageError
from pccl.membership.messages import MemberInfo
from pccl.outcome import Peer
from pccl.state import messages as m
from pccl.state.fetch import STALL_S
from pccl.state.layout import ENCODED_BYTES_MAX, Layout
from pccl.state.relaying import reach
from pccl.state.shared import SharedState
from pccl.state.stream import Identity, Stream, StreamLost
from pccl.state.tree import root_of


class Wrong(RemoteError):
    """A source that has said something false, not something late."""


@dataclass(slots=True)
class Opened:
    """A stream to a source, and what it has said of its state."""

    member: MemberInfo
    stream: Stream
    described: m.Described
    digests: bytes
    said_s: float = 0.0  # when it began to say it, by the monotonic clock


def open_source(
    member: MemberInfo,
    identity: Identity,
    state: SharedState,
    *,
    at_step: int = m.CURRENT,
    stall_s: float = STALL_S,
    describe_s: float = STALL_S,
    deadline: Deadline | None = None,
    said_within_s: float | None = None,
    accepted: Callable[[], None] = lambda: None,
) -> Opened:
    """Dials a source (then calls `accepted`) and asks what it holds: `describe_s` to find out,
    `said_within_s` to say it.

    Raises:
        StreamLost: it is not there, or has nothing to give.
        Wrong: its digests do not fit its root, or its answer is none.
        UsageError: its layout or hash is another one; names the first difference.
    """
    stream = reach(member, identity, stall_s, deadline)
    try:
        accepted()
        stream.patience(describe_s)
        if deadline is None:  # it may find out for as long, and then must not drip
            stream.until(Deadline(2 * describe_s))
        stream.send(m.question_codec.encode(m.Describe(m.PROTOCOL, at_step)))
        answer = m.answer_codec.decode(stream.receive())
        said_s = time.monotonic()
        stream.patience(stall_s)
        if said_within_s is not None:
            stream.until(Deadline(said_within_s))
        if isinstance(answer, m.Sorry):
            raise StreamLost(answer.text)
        if not isinstance(answer, m.Described) or answer.layout_bytes > ENCODED_BYTES_MAX:
            raise Wrong("answered what was not asked")
        layout = stream.receive_bytes(answer.layout_bytes)
        if layout != state.layout.encoded:
            raise UsageError(difference(state, Layout.decode(layout), member.peer_id))
        if answer.hashing != state.hashing.name:
            raise UsageError(
                f"peer {Peer(member.peer_id)} hashes its state with {answer.hashing}, this process "
                f"with {state.hashing.name}; choose one"
            )
        size = state.hashing.digest_bytes * len(state.layout.leaves)
        if answer.digests_bytes != size:
            raise Wrong("sent a wrong number of digests")
        digests = stream.receive_bytes(size)
        if root_of(state.layout, digests, state.hashing) != answer.root:
            raise Wrong("sent digests that do not belong to its root")
        stream.until(deadline)
        return Opened(member, stream, answer, digests, said_s)
    except BaseException:
        stream.close()
        raise


def difference(state: SharedState, theirs: Layout, peer_id: bytes) -> str:
    """Says what differs first between this process's state and a peer's."""
    first = state.layout.first_difference(theirs) or f"it is hashed with {state.hashing.name} here"
    return f"the state of this process is not that of peer {Peer(peer_id)}: {first}"
