"""What `pccl status` shows: one JSON document about the run, made on request."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from pccl.membership.core import Core, Peer
from pccl.membership.flushing import Flushing
from pccl.membership.links import Links
from pccl.membership.messages import STATUS_BYTES_MAX
from pccl.membership.planning import Planning
from pccl.membership.progress import Progress

TLS: Final = "TLS"  # what CarriedBy begins with where lanes are secured

PEERS_SHOWN_MAX: Final = 256  # members first; each takes some 400 bytes; links and waits too


@dataclass(frozen=True, slots=True)
class Parts:
    """The coordinator's parts that have something to say."""

    flushing: Flushing
    planning: Planning
    links: Links
    progress: Progress


def status_json(core: Core, parts: Parts, now_s: float) -> bytes:
    """Returns the document, UTF-8, at most STATUS_BYTES_MAX long; long lists are cut."""
    shown = PEERS_SHOWN_MAX
    while True:  # names that peers chose may be long
        document = _document(core, parts, now_s, shown)
        text = json.dumps(document, separators=(",", ":")).encode()
        if len(text) <= STATUS_BYTES_MAX:
            return text
        shown //= 2


def _document(core: Core, parts: Parts, now_s: float, shown: int) -> dict[str, Any]:
    view = core.current()
    members = core.members()
    learners = core.learners()
    steps = {} if view is None else {m.incarnation: m.first_step for m in view.members}
    unheard_s, why = parts.flushing.unheard_s(now_s), parts.flushing.why_wait(now_s)
    return {
        "run_id": core.run_id.hex(),
        "lineage": core.lineage,
        "generation": core.generation,
        "epoch": core.epoch(),
        "outdated": core.outdated or None,
        "paused": core.note.paused,
        "min_world": core.effective_min_world(),
        "on_underflow": core.underflow().name.lower(),
        "straggler_s": core.straggler_after_s(),  # null: they wait for it
        "abandon_after_s": core.config.abandon_after_s,  # null: never
        "profile": core.config.profile.name,
        "uptime_s": round(now_s - core.started_s, 3),
        "world_size": len(members),
        "admitted": len(core.peers),
        "flush": {
            "target": parts.flushing.target,
            "awaited": parts.flushing.awaited_names()[:shown],
            "unheard_s": None if unheard_s is None else round(unheard_s, 3),
            "held": parts.flushing.why_held(now_s),
        },
        "plan": parts.planning.describe(),
        "links": parts.links.describe()[:shown],
        "waits": parts.progress.describe(now_s)[:shown],
        "members": [
            {"rank": rank, "first_step": steps[p.incarnation], **_peer(core, p, now_s)}
            for rank, p in enumerate(members[:shown])
        ],
        "learners": [
            {**_peer(core, p, now_s), "held_back": why or p.misfit()}
            for p in learners[: max(0, shown - len(members))]
        ],
        "counters": {
            "views": core.counters.views,
            "flushes": core.counters.flushes,
            "joins": core.counters.joins,
            "leaves": core.counters.leaves,
            "exclusions": core.counters.exclusions,
            "evictions": core.counters.evictions,
            "refused": core.counters.refused,
            "dropped_frames": core.counters.dropped_frames,
            "commits": max((p.watermark for p in members), default=0),
        },
    }


def _peer(core: Core, peer: Peer, now_s: float) -> dict[str, Any]:
    return {
        "peer_id": peer.peer_id.hex(),
        "incarnation": peer.incarnation,
        "address": f"{peer.host}:{peer.port}",
        "hostname": peer.hostname,
        "pid": peer.pid,
        "state": _state(core, peer),
        "heartbeat_age_s": round(max(0.0, now_s - peer.last_beat_s), 3),
        "epoch": peer.epoch,
        "watermark": peer.watermark,
        "next_step": peer.next_step,
        "waiting": peer.waiting,
        "entry": peer.entry,
        # Both null: its lanes are sockets or memory.
        "tls": peer.carried_by if peer.carried_by.startswith(TLS) else None,
        "ucx": None if peer.carried_by.startswith(TLS) else peer.carried_by or None,
        "lag_ms": peer.lag_ms,
        "rtt_ms": round(peer.rtt_us / 1000, 3),
    }


def _state(core: Core, peer: Peer) -> str:
    """Returns where the peer is in its life; GLOSSARY.md says what the words mean."""
    if peer.out:
        return "left"
    if peer.gone is not None:
        return "evicted"
    if peer.leaving_s is not None or peer.drain_cut_s is not None:
        return "draining"
    if peer.silent:
        return "silent"
    if peer.agent is None or (peer.native is None and peer.was_native):
        return "suspect"
    if core.is_member(peer.incarnation):
        return "member"
    if peer.native is None:
        return "admitted"
    return "warm" if 0 < peer.warm_epoch == core.epoch() else "learner"
