"""Messages from one program to another, beside steps.

A message belongs to no step and has no outcome that all agree on: two ends agree, or one of them
was lost.  It outlives every change of the view in which both ends stay.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, overload

from pccl.arguments import check_number
from pccl.base.errors import PcclError, UsageError
from pccl.collectives.buffers import describe, require_writable
from pccl.collectives.placed import NOTHING, check_root
from pccl.session import Session
from pccl.transfer import Transfer

TAG_MAX = (1 << 32) - 1
FROM_ANY = -1


class Messaging(ABC):
    """Sends and receives.

    Messages of one tag between two peers are received in the order in which they were sent, one by
    each receive, in the order in which those were posted.  Both ends name the same element count
    and dtype, else both get DescriptorMismatch, naming both.  Either end may be posted first.  An
    end whose array is refused counts as posted: the other end gets DescriptorMismatch for it.
    """

    @abstractmethod
    def _transfer(
        self, array: Any, peer: int | bytes, tag: int, sends: bool, timeout_s: float | None
    ) -> Transfer: ...

    @overload
    def send(
        self,
        array: Any,
        to: int | bytes,
        tag: int = ...,
        *,
        async_op: Literal[False] = ...,
        timeout_s: float | None = ...,
    ) -> None: ...

    @overload
    def send(
        self,
        array: Any,
        to: int | bytes,
        tag: int = ...,
        *,
        async_op: Literal[True],
        timeout_s: float | None = ...,
    ) -> Transfer: ...

    def send(
        self,
        array: Any,
        to: int | bytes,
        tag: int = 0,
        *,
        async_op: bool = False,
        timeout_s: float | None = None,
    ) -> Transfer | None:
        """Sends `array` to one member, and waits until it is in that one's array.

        Args:
            array: as in `Step.all_reduce`, of any supported dtype; it may be read-only.
            to: a rank of this peer's group in the view in force, or a member's id.
            tag: 0 to 2**32 - 1; what the receive must name, too.
            async_op: returns a Transfer instead; the array is borrowed until that is done.
            timeout_s: then the message is given up, also while nobody waits for it; None takes the
                communicator's default.

        Raises:
            UsageError: an argument is not as described, or this peer is no member yet, which its
                first step makes it; nothing of the array was sent.
            DescriptorMismatch, PeerLost, DeadlineExceeded and others as `Transfer.wait` says.

        Two peers that both send first wait for each other: use `async_op=True`.

        Cost: its bytes once.  Up to 256 KiB they go at once, 8 MiB in all to a peer that receives
        nothing; more waits for the receive.
        """
        transfer = self._transfer(array, check_root(to, "to"), tag, True, timeout_s)
        if async_op:
            return transfer
        transfer.wait()
        return None

    @overload
    def recv(
        self,
        array: Any,
        source: int | bytes | None = ...,
        tag: int = ...,
        *,
        async_op: Literal[False] = ...,
        timeout_s: float | None = ...,
    ) -> int: ...

    @overload
    def recv(
        self,
        array: Any,
        source: int | bytes | None = ...,
        tag: int = ...,
        *,
        async_op: Literal[True],
        timeout_s: float | None = ...,
    ) -> Transfer: ...

    def recv(
        self,
        array: Any,
        source: int | bytes | None = None,
        tag: int = 0,
        *,
        async_op: bool = False,
        timeout_s: float | None = None,
    ) -> Transfer | int:
        """Receives a message into `array`.

        Args:
            array: as in `send`, and writable.
            source: a rank or a member's id; None receives from any member of this peer's group, of
                several messages the one that came first.
            tag, async_op, timeout_s: as in `send`.

        Returns:
            The sender's rank; with `async_op` a Transfer, which has it as `source`.

        Raises as `send`; after an error the array may hold parts of a message.
        """
        peer = FROM_ANY if source is None else check_root(source, "source")
        transfer = self._transfer(array, peer, tag, False, timeout_s)
        if async_op:
            return transfer
        transfer.wait()
        return transfer.source


def post(
    session: Session, array: Any, peer: int | bytes, tag: int, sends: bool, timeout_s: float
) -> Transfer:
    """Starts one end of a message.  Raises UsageError if an argument is not as described."""
    number = check_number("tag", tag, 0, TAG_MAX)
    try:
        buffer = describe(array)
        if not sends:
            require_writable(buffer, "the array", "pass a writable one")
        reads, writes = (buffer, NOTHING) if sends else (NOTHING, buffer)
        session.check_free(reads, writes)
    except UsageError:
        refuse(session, peer, number, sends, timeout_s)
        raise
    where = buffer.address, buffer.count, int(buffer.dtype)
    return _keep(
        Transfer(session, reads, writes, _words(session, peer, number, sends), timeout_s),
        lambda: session.engine.post_letter(sends, peer, number, *where, timeout_s),
    )


def refuse(session: Session, peer: int | bytes, tag: int, sends: bool, timeout_s: float) -> None:
    """Posts what stands for a call that was refused here: the other end's is an error, too, at
    once.  Raises nothing, and waits for nothing."""
    words = f"{_words(session, peer, tag, sends)}, which was refused"
    with contextlib.suppress(PcclError):
        _keep(
            Transfer(session, NOTHING, NOTHING, words, timeout_s),
            lambda: session.engine.post_nothing(sends, peer, tag, timeout_s),
        )


def _keep(transfer: Transfer, post_it: Callable[[], int]) -> Transfer:
    session = transfer.session
    session.keep_transfer(transfer)  # first: the engine must never outlive its memory
    try:
        transfer.letter = post_it()
    except PcclError:
        session.forget_transfer(transfer)
        raise
    return transfer


def _words(session: Session, peer: int | bytes, tag: int, sends: bool) -> str:
    return f"{'send to' if sends else 'receive from'} {_name(session, peer)}, tag {tag}"


def _name(session: Session, peer: int | bytes) -> str:
    if isinstance(peer, bytes):
        return f"peer {session.peers((peer,))[0]}"
    return "any" if peer == FROM_ANY else f"rank {peer}"
