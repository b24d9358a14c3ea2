"""Computes a run of a low-communication method anew, in numpy and in one process.

From what was committed (which members' pseudo-gradients are in which reduction) follows everything:
the shared parameters, the outer momentum and each member's residual, bit by bit.  Only SparseLoCo's
encoding is the library's own; it has a reference of its own in its unit tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pccl.diloco.compression import ModelCode, Settings
from pccl.diloco.layers import strided_fragments
from tests.torch.outer_members import (
    ALPHA,
    FRAGMENTS,
    OVERLAP,
    TOKENS,
    WIDTH,
    H,
    Trained,
    change,
    make_model,
)

F32 = np.float32


@dataclass(slots=True)
class Committed:
    """One reduction: its fragment, and who contributed, as (peer, member) in rank order."""

    fragment: int
    who: list[tuple[bytes, int]]
    tokens: int


def committed_by(found: Sequence[Trained], numbers: Mapping[bytes, int]) -> list[Committed]:
    """Returns the history.  Fails unless all tell the same one, and held the same state."""
    told: dict[int, tuple[int | None, tuple[bytes, ...], int]] = {}
    digests: dict[int, int] = {}
    for one in found:
        for step, fragment, contributors, tokens in one.history:
            entry = (fragment, contributors, tokens)
            assert told.setdefault(step, entry) == entry, f"reduction {step}: histories differ"
        for step, digest in one.digests.items():
            assert digests.setdefault(step, digest) == digest, f"reduction {step}: states differ"
    assert sorted(told) == list(range(1, len(told) + 1)), sorted(told)
    return [
        Committed(fragment or 0, [(peer, numbers[peer]) for peer in who], tokens)
        for _, (fragment, who, tokens) in sorted(told.items())
    ]


@dataclass(slots=True)
class Peer:
    """What one member holds for itself, section by section."""

    number: int
    local: list[Any]
    begin: list[Any]
    carried: Any = None
    carried_tokens: int = 0
    tokens: int = 0
    used: list[int] = field(default_factory=list)
    ahead: Any = None
    residual: Any = None
    produced: Any = None
    sent: Any = None


class Replay:
    """The run, advanced inner step by inner step; `failing` numbers reductions that fail, and
    `failing_entries` entries, the first of which follows the founders' own."""

    def __init__(
        self,
        method: str,
        history: Sequence[Committed],
        *,
        width: int = WIDTH,
        failing: Sequence[int] = (),
        failing_entries: Sequence[int] = (),
        momentum: float = 0.9,
        rate: float | None = None,
    ) -> None:
        self.method, self.history, self.failing = method, list(history), set(failing)
        named = [(n, tuple(p.shape)) for n, p in make_model(width).named_parameters()]
        self.numbers = {name: number for number, (name, _) in enumerate(named)}
        self.shapes = dict(named)
        sizes = [(name, int(np.prod(shape))) for name, shape in named]
        streaming = method == "streaming"
        self.names = (
            strided_fragments(sizes, FRAGMENTS) if streaming else [[name for name, _ in named]]
        )
        self.rate = F32(rate if rate is not None else 0.4 if streaming else 0.7)
        self.momentum = F32(momentum)
        self.theta = [self.change(99, 0, s) for s in range(len(self.names))]
        self.velocity = [np.zeros_like(theta) for theta in self.theta]
        self.peers: dict[bytes, Peer] = {}
        self.failing_entries = set(failing_entries)
        self.applied = self.posted = self.now = self.entries = 0
        if method == "sparse":
            settings = Settings(top_k=8, value_bits=32, decay=1.0)
            self.code = ModelCode([shape for _, shape in named], settings)

    def change(self, member: int, inner_step: int, section: int) -> Any:
        parts = [
            change(member, inner_step, self.numbers[name], self.shapes[name]).reshape(-1)
            for name in self.names[section]
        ]
        return np.concatenate(parts)

    def run(self) -> Replay:
        self.present(first=True)
        {
            "diloco": self.run_diloco,
            "async": self.run_async,
            "eager": self.run_async,
            "streaming": self.run_streaming,
            "sparse": self.run_diloco,
        }[self.method]()
        return self

    # ---- what the methods share

    def present(self, *, first: bool = False) -> list[Peer]:
        """Returns the members of the next reduction, and whether they are new to it."""
        for peer, number in self.history[self.applied].who:
            if peer not in self.peers:
                one = Peer(number, [t.copy() for t in self.theta], [t.copy() for t in self.theta])
                one.used = [0] * len(self.theta)
                one.ahead = np.zeros_like(self.theta[0])
                one.residual, one.produced, one.sent = (
                    np.zeros_like(self.theta[0]) for _ in range(3)
                )
                self.peers[peer] = one
        return [self.peers[peer] for peer, _ in self.history[self.applied].who]

    def learn(self) -> None:
        for peer in self.peers.values():
            for section, local in enumerate(peer.local):
                local -= self.change(peer.number, self.now, section)
            peer.tokens += TOKENS[peer.number]
        self.now += 1

    def pass_entry(self) -> list[Peer]:
        """Joiners come in.  While an entry is due, peers learn, and their schedule stands still."""
        self.entries += 1
        if self.entries in self.failing_entries:
            self.learn()
            self.now -= 1
        return self.present()

    def mean(self, parts: Sequence[tuple[Any, int]]) -> Any:
        """Adds in rank order, each operation rounded to f32, as the kernels do."""
        total = np.zeros_like(parts[0][0])
        for number, (payload, tokens) in enumerate(parts):
            weighted = payload * F32(tokens)
            total = weighted if number == 0 else total + weighted
        assert sum(tokens for _, tokens in parts) == self.history[self.applied].tokens
        return total / F32(sum(tokens for _, tokens in parts))

    def apply(self, section: int, parts: Sequence[tuple[Any, int]]) -> None:
        assert self.history[self.applied].fragment == section
        mean, mu = self.mean(parts), self.momentum
        self.velocity[section] = self.velocity[section] * mu + mean
        self.theta[section] = self.theta[section] - self.rate * (self.velocity[section] * mu + mean)
        self.applied += 1

    def restart(self, peer: Peer) -> None:
        peer.local[0], peer.tokens = self.theta[0].copy(), 0

    # ---- the methods

    def run_diloco(self) -> None:
        since = 0
        while self.applied < len(self.history):
            self.learn()
            since += 1
            if since < H[self.method]:
                continue
            self.posted += 1
            if self.posted in self.failing:
                continue
            peers = self.present()
            theta = self.theta[0]
            if self.method == "sparse":
                self.apply_sparse([(p, theta - p.local[0]) for p in peers])
            else:
                self.apply(0, [(theta - peer.local[0], peer.tokens) for peer in peers])
            for peer in self.peers.values():
                self.restart(peer)
            since = 0
            if self.applied < len(self.history):
                self.pass_entry()  # joiners have an interval before they contribute

    def apply_sparse(self, parts: Sequence[tuple[Peer, Any]]) -> None:
        encoded = []
        for peer, delta in parts:
            data, residual = self.code.compress(
                torch.from_numpy(peer.residual), torch.from_numpy(delta)
            )
            encoded.append(data)
            peer.produced += delta
            peer.sent += self.code.dense(self.code.decode(data)).numpy()
            peer.residual = residual.numpy()
        mean = self.code.mean(encoded, [float(peer.tokens) for peer, _ in parts])
        self.theta[0] = self.theta[0] - mean.numpy()
        self.applied += 1

    def run_async(self) -> None:
        since = 0
        flying: dict[bytes, tuple[Peer, tuple[Any, int]]] = {}
        while self.applied < len(self.history):
            self.learn()
            since += 1
            if since < H[self.method]:
                continue
            if flying:
                if self.posted in self.failing:
                    for peer, (payload, tokens) in flying.values():
                        peer.carried, peer.carried_tokens = payload, tokens
                    flying = {}
                    continue
                self.land(flying)
                flying = {}
                if self.applied == len(self.history):
                    return
            since, known = 0, set(self.peers)
            self.pass_entry()
            for peer_id, _ in self.history[self.applied].who:
                flying[peer_id] = self.start_async(peer_id, new=peer_id not in known)
            for peer_id in known - set(flying):
                self.restart(self.peers[peer_id])  # it is dead
            self.posted += 1
        # The last reduction is applied by finish().

    def land(self, flying: Mapping[bytes, tuple[Peer, tuple[Any, int]]]) -> None:
        self.apply(0, [flying[peer][1] for peer, _ in self.history[self.applied].who])

    def start_async(self, peer_id: bytes, *, new: bool) -> tuple[Peer, tuple[Any, int]]:
        peer = self.peers[peer_id]
        own = peer.begin[0] - peer.local[0]
        tokens = 0 if new else peer.tokens
        payload = np.zeros_like(own) if new else own
        begin = self.theta[0].copy()
        if self.method == "eager":
            own_share = own * F32(1.0 / len(self.history[self.applied].who))
            peer.ahead = peer.ahead * self.momentum + own_share
            begin = begin - self.rate * (peer.ahead * self.momentum + own_share)
        if peer.carried is not None:
            payload, tokens = payload + peer.carried, tokens + peer.carried_tokens
            peer.carried = None
        peer.local[0], peer.begin[0], peer.tokens = begin.copy(), begin, 0
        return peer, (payload, tokens)

    def run_streaming(self) -> None:
        distance = H["streaming"] // FRAGMENTS
        while self.applied < len(self.history):
            self.learn()
            if self.now % distance:
                continue
            section = self.now // distance % FRAGMENTS
            known = set(self.peers)
            self.posted += 1
            peers = self.pass_entry() if section == 0 else self.present()
            parts = []
            for (peer_id, _), peer in zip(self.history[self.applied].who, peers, strict=True):
                payload = self.theta[section] - peer.local[section]
                tokens = peer.tokens - peer.used[section] if peer_id in known else 0
                parts.append((payload, tokens))
            seen = [peer.tokens for peer in peers]
            for _ in range(OVERLAP):
                self.learn()
            if self.posted in self.failing:
                continue
            self.apply(section, parts)
            for peer, tokens in zip(peers, seen, strict=True):
                peer.used[section] = tokens
                kept = peer.local[section] * F32(ALPHA)
                peer.local[section] = kept + self.theta[section] * F32(1.0 - ALPHA)


def check(
    found: Sequence[Trained], numbers: Mapping[bytes, int], method: str, **options: Any
) -> list[list[int]]:
    """Fails unless all hold the same bits, and those of a replay of what was committed.

    Returns which members' pseudo-gradients are in each reduction, sorted.
    """
    history = committed_by(found, numbers)
    replay = Replay(method, history, **options).run()
    for one in found:
        for section, theta in enumerate(replay.theta):
            assert one.parameters[section].tobytes() == theta.tobytes(), f"{one.number} differs"
            if method != "sparse":
                velocity = replay.velocity[section].tobytes()
                assert one.momentum[section].tobytes() == velocity, f"{one.number}: momentum"
        if method == "sparse":
            last = [p for p, n in numbers.items() if n == one.number and p in replay.peers][-1]
            check_residual(one, replay.peers[last])
    return [sorted(number for _, number in entry.who) for entry in history]


def check_residual(one: Trained, peer: Peer) -> None:
    """What was sent and what is left together are what was produced; all of them whole numbers."""
    assert one.residual.tobytes() == peer.residual.tobytes(), f"{one.number}: residual"
    assert (peer.sent + one.residual == peer.produced).all(), f"{one.number} lost something"
    assert (peer.produced == np.rint(peer.produced)).all() and (peer.produced != 0).any()
