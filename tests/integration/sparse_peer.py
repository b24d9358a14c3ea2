"""One peer that averages sparse contributions.

`python sparse_peer.py ADDRESS HOW INDEX COUNT`; HOW is a comma-separated list of the words dense
(sums, whatever is cheaper), odd=SHAPE (of this peer's tensor), nan=POLICY and victim (contributes a
NaN, or waits to be killed inside a step).  It tells, line by line, what its steps came to: the
result's hash, and whether it is exactly the mean over those who contributed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from typing import Any

import numpy as np

import pccl
from pccl.sparse import exchange
from tests.integration.peer_wire import wire

SHAPES = [(64, 128), (64, 64), (30,)]
TOP = 16


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def key_of(peer: bytes) -> int:
    return int.from_bytes(peer[:7], "little")


def produced(index: int, step: int) -> list[Any]:
    """Whole numbers, so that sums of them are exact in any order."""
    rng = np.random.default_rng((index, step))
    return [rng.integers(-1000, 1000, shape).astype(np.float32) for shape in SHAPES]


def top_of(tensors: list[Any]) -> list[Any]:
    """The largest of each block of 64 x 64, and vectors whole, by a sort."""
    found = []
    for tensor in tensors:
        kept = np.zeros_like(tensor)
        if tensor.ndim == 1:  # two blocks would be cut at 30's divisors: 30 elements are one
            order = np.argsort(-np.abs(tensor), kind="stable")[:TOP]
            kept[order] = tensor[order]
        else:
            for left in range(0, tensor.shape[1], 64):
                block = tensor[:, left : left + 64]
                order = np.argsort(-np.abs(block).reshape(-1), kind="stable")[:TOP]
                rows, columns = np.divmod(order, 64)
                kept[rows, left + columns] = block[rows, columns]
        found.append(kept)
    return found


def expected_mean(inputs: list[list[Any]]) -> list[Any]:
    sent = [top_of(tensors) for tensors in inputs]
    means = []
    for parts in zip(*sent, strict=True):
        total = np.sum(parts, axis=0, dtype=np.float64)
        count = np.sum([part != 0 for part in parts], axis=0)
        # A zero among the largest is sent, too, but with TOP of 4096 there is none.
        means.append(np.divide(total, count, out=np.zeros_like(total), where=count > 0))
    return [mean.astype(np.float32) for mean in means]


def listen(ends: threading.Event) -> None:
    sys.stdin.readline()
    ends.set()


def loop(comm: pccl.Communicator, words: dict[str, str], index: int) -> None:
    ends = threading.Event()
    threading.Thread(target=listen, args=(ends,), daemon=True).start()
    indices: dict[int, int] = {}
    step = 0
    while True:
        mine = np.array([index, step, ends.is_set(), key_of(comm.peer_id)], np.int64)
        try:
            rows = np.asarray(comm.all_gather(mine))
        except pccl.ViewChanged:
            continue
        step, ended = int(rows[:, 1].max()), bool(rows[:, 2].any())
        if ended:
            return
        inputs = produced(index, step)
        before = [x.copy() for x in inputs]
        reduced = comm.sparse_all_reduce(inputs, top_k=TOP, value_bits=32)
        indices.update(dict(zip(rows[:, 3].tolist(), rows[:, 0].tolist(), strict=True)))
        contributors = [indices[key_of(peer)] for peer in reduced.outcome.contributors]
        wanted = expected_mean([produced(i, step) for i in contributors])
        exact = all(np.array_equal(m, w) for m, w in zip(reduced.mean, wanted, strict=True))
        kept = all(np.array_equal(x, b) for x, b in zip(inputs, before, strict=True))
        own = all(np.array_equal(s, t) for s, t in zip(reduced.sent, top_of(inputs), strict=True))
        digest = hashlib.sha256(b"".join(m.tobytes() for m in reduced.mean)).hexdigest()[:16]
        tell(
            step=step,
            contributors=len(contributors),
            exact=exact and kept and own,
            dense=reduced.dense,
            digest=digest,
        )
        step += 1


def one_bad(comm: pccl.Communicator, words: dict[str, str], index: int) -> None:
    """One exchange in which the victim has a NaN, and one without."""
    inputs = produced(index, 0)
    if "victim" in words:
        inputs[0][3, 5] = np.nan
    try:
        reduced = comm.sparse_all_reduce(inputs, top_k=TOP, value_bits=32, nonfinite=words["nan"])
        finite = bool(all(np.isfinite(m).all() for m in reduced.mean))
        nothing = all(not s.any() for s in reduced.sent)
        tell(left_out=reduced.left_out, finite=finite, sent_nothing=nothing)
    except pccl.NonFiniteContribution as error:
        tell(raised=str(error))
    weight = 0.0 if "victim" in words else 1.0
    one = comm.sparse_all_reduce(inputs, top_k=TOP, value_bits=32, nonfinite="allow", weight=weight)
    assert all(np.isfinite(m).all() for m in one.mean), "what has no weight is not looked at"
    try:
        comm.sparse_all_reduce(inputs[0])
    except pccl.UsageError as error:
        assert "[tensor]" in str(error)
    else:
        raise AssertionError("rows were taken for tensors")
    gathered = comm.sparse_all_gather(produced(index, 1), top_k=TOP, value_bits=2)
    tell(after=len(gathered.contributions), left_out=len(gathered.left_out))


def odd(comm: pccl.Communicator, shape: str) -> None:
    sides = tuple(map(int, shape.split("x")))
    comm.barrier()  # both are members now
    try:
        comm.sparse_all_reduce([np.ones(sides, np.float32)], top_k=TOP, value_bits=32)
    except pccl.PcclError as error:
        tell(error=type(error).__name__, text=str(error))
    else:
        tell(error="", text="")


def main() -> None:
    address, how, index, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    words = dict(word.partition("=")[::2] for word in how.split(","))
    if "dense" in words:
        exchange.dense_is_cheaper = lambda *_: True
    try:
        with pccl.connect(address, timeout_s=30.0, **wire()) as comm:
            tell(peer=str(comm.peer_id))
            comm.wait_for(count)
            if "nan" in words:
                one_bad(comm, words, index)
            elif "odd" in words:
                odd(comm, words["odd"])
            else:
                loop(comm, words, index)
    except pccl.PcclError as error:
        tell(failure=type(error).__name__, text=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
