"""The operations of a step besides all-reduce.

They differ in what comes from whom; how they begin, fail and end is the step's (`pccl.step`).  Each
returns a Work whose result may be read when the block has ended.

Invariant: an operation whose shape depends on the members (`reduce_scatter`, `all_gather`,
`gather`, `scatter`, `all_to_all`) never runs among others than those its step began with; if one of
them is lost the step ends with ViewChanged on all, inputs as they were.  `broadcast` and `reduce`
run again among those that are left, unless the root is lost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from pccl.collectives import requests
from pccl.collectives.ops import ReduceOp
from pccl.collectives.placed import Request
from pccl.work import Work


class StepCollectives(ABC):
    """The operations that Step has in common with nothing else.

    Arrays are numpy arrays, torch CPU tensors or other shared memory, C-contiguous, and borrowed
    until the step ends.  `root` is a rank of the view that the step began in, or a peer id.  Sizes,
    dtype, root and tag that do not fit together are a DescriptorMismatch on all members, naming two
    peers and what each posted.  Every function raises UsageError if an argument is not as
    described, or does not fit the view; then nothing was sent or changed.
    """

    @abstractmethod
    def _post(self, request: Request, tag: int | None) -> Work: ...

    def broadcast(self, array: Any, root: int | bytes = 0, *, tag: int | None = None) -> Work:
        """Fills every member's `array` with the root's.

        Args:
            array: any supported dtype; element count and dtype alike on all members.  Only the
                root's may be read-only.
            root: whose array it is.

        Cost: up to 64 KiB the root sends everything to all (from nine members on, along a binomial
        tree); above, 1/n of it to each, who pass it on: (1 + (n-2)/n) times its bytes leave the
        root, n = world size.
        """
        return self._post(requests.broadcast(array, root), tag)

    def reduce(
        self,
        array: Any,
        root: int | bytes = 0,
        op: str | ReduceOp = "sum",
        *,
        weight: float = 1.0,
        out: Any = None,
        tag: int | None = None,
        deterministic: bool = False,
    ) -> Work:
        """Reduces `array` element-wise over the members; the result is the root's alone.

        Args:
            out: at the root, where the result goes; None reduces in place.  Elsewhere ignored:
                arrays of others are only read, and the Work's result is None.
            op, weight, deterministic: as in `all_reduce`.

        Cost: up to 64 KiB all send to the root; above, each folds 1/n and sends that to the root.
        """
        return self._post(requests.reduce(array, root, op, weight, out, deterministic), tag)

    def reduce_scatter(
        self,
        array: Any,
        out: Any = None,
        op: str | ReduceOp = "sum",
        *,
        counts: Any = None,
        weight: float = 1.0,
        tag: int | None = None,
        deterministic: bool = False,
    ) -> Work:
        """Reduces `array` element-wise; each member gets its rank's part of the result.

        Args:
            array: shape and dtype alike on all members; its first dimension is divided among the
                ranks, equally or by `counts`.
            out: this rank's part, of shape [rows, *array.shape[1:]] or as many elements; None makes
                a new array.  May be exactly that part of `array` itself, and is then reduced in
                place.
            counts: rows for each rank, alike on all members; they add up to the first dimension.
            op, weight, deterministic: as in `all_reduce`.

        Cost: sends (n-1)/n of the array's bytes; one latency.
        """
        request = requests.reduce_scatter(array, op, weight, out, deterministic, counts)
        return self._post(request, tag)

    def all_gather(
        self, array: Any, out: Any = None, *, counts: Any = None, tag: int | None = None
    ) -> Work:
        """Collects the members' arrays, in rank order, on every member.

        Args:
            array: any supported dtype; shape and dtype alike on all members, but for the first
                dimension if there are `counts`.
            out: of shape [world, *array.shape], with counts [sum(counts), *array.shape[1:]], or as
                many elements; None makes a new array.  `array` may be exactly its own place in it.
            counts: rows (size of the first dimension) of each rank's array, alike on all members.

        Cost: sends n-1 times the array's bytes; one latency, or on one machine a ring.
        """
        return self._post(requests.all_gather(array, out, counts), tag)

    def gather(
        self,
        array: Any,
        root: int | bytes = 0,
        out: Any = None,
        *,
        counts: Any = None,
        tag: int | None = None,
    ) -> Work:
        """Collects the members' arrays, in rank order, at the root.

        Args:
            out: as in `all_gather`, at the root; elsewhere ignored, and the result is None.
            counts: rows of each rank's array, which only the root needs to know, if they differ.

        Cost: the root takes in n-1 arrays; one latency.
        """
        return self._post(requests.gather(array, root, out, counts), tag)

    def scatter(
        self, array: Any = None, root: int | bytes = 0, out: Any = None, *, tag: int | None = None
    ) -> Work:
        """Gives each member its rank's part of the root's array.

        Args:
            array: at the root, of shape [world, ...], or a list of one array per rank, which may
                differ in size and are copied into one first.  Elsewhere ignored.
            out: where this member's part goes, of as many elements.  At the root None makes a new
                array; it may be exactly the root's part of `array`.

        Cost: the root sends n-1 parts; one latency.
        """
        return self._post(requests.scatter(array, root, out), tag)

    def all_to_all(
        self,
        array: Any,
        out: Any = None,
        send_counts: Any = None,
        receive_counts: Any = None,
        *,
        tag: int | None = None,
    ) -> Work:
        """Sends part q of `array` to rank q, and collects what the members send here, in rank
        order.

        Args:
            array: its first dimension is divided among the ranks, equally or by `send_counts`.
            out: of shape [sum(receive_counts), *array.shape[1:]] or as many elements; None makes a
                new array.  Shares no memory with `array`.
            send_counts: rows for each rank, 0 included.
            receive_counts: rows expected of each rank: what it has for this one in its send_counts.

        Cost: sends the array's bytes but for the own part; one latency.
        """
        return self._post(requests.all_to_all(array, out, send_counts, receive_counts), tag)

    def barrier(self, *, tag: int | None = None) -> Work:
        """Moves nothing.  Any step ends only when all members have come to its end, so inside a
        block this says no more than that."""
        return self._post(requests.barrier(), tag)
