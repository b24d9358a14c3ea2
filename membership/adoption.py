"""Rebuilds a coordinator's record from what living peers can testify, when the journal is lost.

    gathering --a Hello--> Recall --Testimony--> noted ... --expected, or time--> finished

Every peer that dials is asked and kept waiting; nobody is admitted, refused or evicted meanwhile,
and the peers go on with their steps.  The newest view anybody has in force is the run's view: its
epoch was made durable before anybody heard of it, so no later one with other members can have
decided anything that none of the living has installed.  What this record cannot know it makes
harmless: generations, epochs and incarnations begin far above all that were seen, and the record
says that a flush is on, so that the members are asked what became of their open steps.

Invariant: a record is made of one run's testimony only, each of which shows the secret that the
view knows its sender by.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from pccl.base.errors import PcclError
from pccl.membership.events import (
    Close,
    ConnDown,
    ConnUp,
    Effect,
    Event,
    Log,
    NativeFrame,
    PeerMessage,
    Send,
)
from pccl.membership.messages import (
    Hello,
    MemberInfo,
    Recall,
    StatusReply,
    StatusRequest,
    Testimony,
)
from pccl.membership.record import NO_NOTE, VIEWS_MAX, AdmittedPeer, Record
from pccl.membership.view import FIRST_STEP_UNKNOWN, Member, View

SETTLE_S: Final = 1.0  # for others, once all members of the newest view have testified
GENERATIONS_ABOVE: Final = 1024  # restarts that the lost journal may have seen since
EPOCHS_ABOVE: Final = 1 << 16
INCARNATIONS_ABOVE: Final = 1 << 20
TESTIMONIES_MAX: Final = 2048


class AdoptionError(PcclError):
    """No record can be made of what was testified; the text says what to do."""


class Adoption:
    """The machine behind `pccl coordinator adopt`; it runs where a coordinator's would.

    Args:
        wait_s: how long peers may take to find it.
        expect: so many testimonies are all there is to wait for; 0: all of the newest view.
    """

    def __init__(self, *, wait_s: float, expect: int, now_s: float) -> None:
        self._ends_s = now_s + wait_s
        self._expect = expect
        self._hosts: dict[int, str] = {}
        self._testimonies: dict[bytes, tuple[Testimony, str]] = {}  # by peer id
        self._settled_s: float | None = None
        self.finished = False
        self.dropped_frames = 0

    # -------------------------------------------------------------- as a machine

    @property
    def deadline_s(self) -> float | None:
        if self.finished:
            return None
        return self._ends_s if self._settled_s is None else min(self._ends_s, self._settled_s)

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        match event:
            case ConnUp(conn, host):
                self._hosts[conn] = host
            case ConnDown(conn):
                self._hosts.pop(conn, None)
            case PeerMessage(conn, StatusRequest()):
                effects.append(Send(conn, StatusReply(self._status())))
            case PeerMessage(conn, Hello()):
                effects.append(Send(conn, Recall()))
            case PeerMessage(conn, Testimony() as testimony):
                effects += self._note(testimony, self._hosts.get(conn, ""), now_s)
            case NativeFrame(conn, _) | PeerMessage(conn, _):
                effects.append(Close(conn))  # without an answer: who dials comes again
            case _:
                pass
        return effects + self.on_deadline(now_s)

    def on_deadline(self, now_s: float) -> list[Effect]:
        deadline_s = self.deadline_s
        if deadline_s is not None and now_s >= deadline_s:
            self.finished = True
        return []

    def dropped_frame(self) -> None:
        self.dropped_frames += 1

    def _status(self) -> bytes:
        return json.dumps({"adopting": True, "testified": len(self._testimonies)}).encode()

    def _note(self, testimony: Testimony, host: str, now_s: float) -> list[Effect]:
        known = self._testimonies.get(testimony.peer_id)
        if known is None and len(self._testimonies) >= TESTIMONIES_MAX:
            return []
        if known is not None and known[0].incarnation > testimony.incarnation:
            return []
        self._testimonies[testimony.peer_id] = (testimony, host)
        if self._expect:
            if len(self._testimonies) >= self._expect:
                self.finished = True
        elif self._all_members_have_testified():
            self._settled_s = now_s + SETTLE_S
        else:
            self._settled_s = None
        text = (
            f"peer {testimony.peer_id.hex()[:8]}.{testimony.incarnation} on {testimony.hostname} "
            f"testifies: run {testimony.run_id.hex()[:8]}, generation {testimony.generation}, "
            f"epoch {testimony.epoch} with {len(testimony.members)} members"
        )
        return [Log("info", text)]

    def _all_members_have_testified(self) -> bool:
        newest = max((t for t, _ in self._testimonies.values()), key=_age)
        return bool(newest.members) and all(x.peer_id in self._testimonies for x in newest.members)

    # -------------------------------------------------------------- the result

    def testimonies(self) -> tuple[Testimony, ...]:
        """Returns what was said, oldest incarnation first."""
        every = (testimony for testimony, _ in self._testimonies.values())
        return tuple(sorted(every, key=lambda t: t.incarnation))

    def record(self) -> Record:
        """Returns the record with which a coordinator can go on.

        Raises:
            AdoptionError: nobody testified, peers of several runs did, or nobody has a view.
        """
        said = self.testimonies()
        if not said:
            raise AdoptionError(
                "no peer testified; are they alive, and is this the address they dial? "
                "Try again with a longer --wait"
            )
        runs = sorted({t.run_id.hex() for t in said})
        if len(runs) > 1:
            raise AdoptionError(
                f"peers of {len(runs)} runs testified ({', '.join(runs)}); "
                "stop those of all but one, and try again"
            )
        newest = max(said, key=_age)
        if not newest.members:
            raise AdoptionError(
                "no peer that testified is a member of a view, so there is nothing to go on with; "
                "start a new run with `pccl coordinator`"
            )
        believed = [t for t in said if _fits(t, newest)]
        generation = max(t.generation for t in said) + GENERATIONS_ABOVE
        views = _views(believed)
        return Record(
            run_id=newest.run_id,
            lineage=max(t.lineage for t in believed),
            generation=generation,
            min_world=max(t.min_world for t in believed),
            incarnations=max(_incarnations(said)) + INCARNATIONS_ABOVE,
            epochs_reserved=max(t.epoch for t in said) + EPOCHS_ABOVE,
            flushing=True,
            view=views[-1],
            history=views[:-1][-(VIEWS_MAX - 2) :],
            activation=None,
            note=NO_NOTE,
            carried=(),
            peers=self._peers(believed, newest),
            adopted=True,
        )

    def missing(self) -> tuple[MemberInfo, ...]:
        """Returns the members of the newest view that have not testified."""
        newest = max(self.testimonies(), key=_age)
        return tuple(x for x in newest.members if x.peer_id not in self._testimonies)

    def _peers(self, believed: list[Testimony], newest: Testimony) -> tuple[AdmittedPeer, ...]:
        peers = {
            x.incarnation: AdmittedPeer(
                peer_id=x.peer_id,
                incarnation=x.incarnation,
                secret=x.secret,
                host=x.host,
                port=x.port,
                host_key=x.host_key,
                hostname="",
                pid=0,
                group=x.group,
            )
            for x in newest.members
        }
        for t in believed:
            known = peers.get(t.incarnation)
            peers[t.incarnation] = AdmittedPeer(
                peer_id=t.peer_id,
                incarnation=t.incarnation,
                secret=t.secret,
                host=known.host if known else t.data_host or self._testimonies[t.peer_id][1],
                port=t.data_port,
                host_key=t.host_key,
                hostname=t.hostname,
                pid=t.pid,
                group=known.group if known else 0,
            )
        return tuple(peers[i] for i in sorted(peers))


def _age(testimony: Testimony) -> tuple[int, int, int]:
    """Orders testimony by how new its view is; an epoch names one view, whoever made it."""
    return (testimony.epoch, testimony.generation, -testimony.incarnation)


def _fits(testimony: Testimony, newest: Testimony) -> bool:
    """Says whether a testimony shows the secret by which the newest view knows its sender."""
    known = {x.incarnation: (x.peer_id, x.secret) for x in newest.members}
    mine = (testimony.peer_id, testimony.secret)
    return testimony.members == () or known.get(testimony.incarnation, mine) == mine


def _views(believed: list[Testimony]) -> tuple[View, ...]:
    """Returns the views in force somewhere, oldest first; steps may be open in each of them."""
    told: dict[int, tuple[MemberInfo, ...]] = {}
    first_steps: dict[tuple[int, int], int] = {}
    for t in believed:
        for epoch, members in (*((v.epoch, v.members) for v in t.older), (t.epoch, t.members)):
            if members:
                told.setdefault(epoch, members)
            for x in members:  # whoever does not know a newcomer's first step says the greatest
                key = (epoch, x.incarnation)
                first_steps[key] = min(x.first_step, first_steps.get(key, FIRST_STEP_UNKNOWN))
    return tuple(
        View(epoch, tuple(_member(x, first_steps[epoch, x.incarnation]) for x in told[epoch]))
        for epoch in sorted(told)
    )


def _member(info: MemberInfo, first_step: int) -> Member:
    fields = {name: getattr(info, name) for name in Member.__slots__}
    return Member(**{**fields, "first_step": first_step})


def _incarnations(said: Iterable[Testimony]) -> list[int]:
    return [i for t in said for i in (t.incarnation, *(x.incarnation for x in t.members))]
