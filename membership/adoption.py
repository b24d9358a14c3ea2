"""Rebuilds a coordinator's record from what living peers can testify, when the journal is lost.

    gathering --a Hello--> Recall --Testimony--> noted ... --expected, or time--> finished

Every peer that dials is asked and kept waiting; nobody is admitted, refused or evicted meanwhile,
and the peers go on with their steps.  The newest view any member has in force is the run's view:
its epoch was made durable before anybody heard of it, so no later one with other members can have
decided anything that none of the living has installed.  What this record cannot know it makes
harmless: generations, epochs and incarnations begin far above all that were seen, and the record
says that a flush is on, so that the members are asked what became of their open steps.

Anybody can dial and testify.  A *member* is who shows the secret that some view knows it by;
whoever has no view is taken for a newcomer, which the record lets come back and learns nothing
from.  A number that leaves no room above it is no run's, and its sender is not heard at all.

Invariant: a record is made of one run's testimony only, and what it says of the run (the views, the
lineage, the generation, the rules) of its members' alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

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
from pccl.membership.message_parts import EPOCH_MAX
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
COUNT_MAX: Final = 1 << 62  # of what only grows; a journal holds generations below 2^63
EPOCH_HEARD_MAX: Final = EPOCH_MAX - 2 * EPOCHS_ABOVE

_Names = tuple[int, bytes, bytes]  # incarnation, peer id, secret: all that a view knows a peer by


class _Heard(NamedTuple):
    said: Testimony
    host: str
    is_member: bool


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
        self._heard: dict[_Names, _Heard] = {}
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
        return json.dumps({"adopting": True, "testified": len(self._heard)}).encode()

    def _note(self, testimony: Testimony, host: str, now_s: float) -> list[Effect]:
        who = f"peer {testimony.peer_id.hex()[:8]}.{testimony.incarnation} on {testimony.hostname}"
        beyond = _beyond(testimony)
        if beyond:
            return [Log("warning", f"{who} is not heard: {beyond} leaves no room above it")]
        names = _names(testimony)
        is_member = bool(testimony.members) and names in map(_names, _told_by(testimony))
        if names not in self._heard and len(self._heard) >= TESTIMONIES_MAX:
            newcomer = next((n for n, heard in self._heard.items() if not heard.is_member), None)
            if newcomer is None or not is_member:
                return []
            self._heard.pop(newcomer)
        self._heard[names] = _Heard(testimony, host, is_member)
        if self._expect:
            if len(self._members()) >= self._expect:
                self.finished = True
        elif self._all_members_have_testified():
            self._settled_s = now_s + SETTLE_S
        else:
            self._settled_s = None
        text = (
            f"{who} testifies: run {testimony.run_id.hex()[:8]}, "
            f"generation {testimony.generation}, "
            f"epoch {testimony.epoch} with {len(testimony.members)} members"
        )
        return [Log("info", text)]

    def _all_members_have_testified(self) -> bool:
        return bool(self._members()) and not self.missing()

    def _members(self) -> list[Testimony]:
        """Returns who shows the secret that a view knows it by, oldest incarnation first."""
        return [t for t in self.testimonies() if self._heard[_names(t)].is_member]

    # -------------------------------------------------------------- the result

    def testimonies(self) -> tuple[Testimony, ...]:
        """Returns what was said, oldest incarnation first."""
        every = (heard.said for heard in self._heard.values())
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
        members = self._members()
        runs = sorted({t.run_id.hex() for t in members})
        if len(runs) > 1:
            raise AdoptionError(
                f"peers of {len(runs)} runs testified ({', '.join(runs)}); "
                "stop those of all but one, and try again"
            )
        if not members:
            raise AdoptionError(
                "no peer that testified is a member of a view, so there is nothing to go on with; "
                "start a new run with `pccl coordinator`"
            )
        newest = max(members, key=_age)
        believed = [t for t in members if _fits(t, newest)]
        views = _views(believed)
        generation = max(t.generation for t in believed) + GENERATIONS_ABOVE
        incarnations = max(_incarnations(believed)) + INCARNATIONS_ABOVE
        newcomers = [
            t
            for t in said
            if not self._heard[_names(t)].is_member
            and _fits(t, newest)
            and t.run_id == newest.run_id
            and t.generation <= generation
            and t.incarnation <= incarnations
        ]
        return Record(
            run_id=newest.run_id,
            lineage=max(t.lineage for t in believed),
            generation=generation,
            min_world=max(t.min_world for t in believed),
            incarnations=incarnations,
            epochs_reserved=newest.epoch + EPOCHS_ABOVE,
            flushing=True,
            view=views[-1],
            history=views[:-1][-(VIEWS_MAX - 2) :],
            activation=None,
            note=NO_NOTE,
            carried=(),
            peers=self._peers([*newcomers, *believed], newest),
            adopted=True,
        )

    def missing(self) -> tuple[MemberInfo, ...]:
        """Returns the members of the newest view that have not testified."""
        newest = max(self._members(), key=_age)
        return tuple(x for x in newest.members if _names(x) not in self._heard)

    def _peers(self, said: list[Testimony], newest: Testimony) -> tuple[AdmittedPeer, ...]:
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
                seat=x.seat,
            )
            for x in newest.members
        }
        for t in said:  # members after newcomers, whose word counts less
            known = peers.get(t.incarnation)
            peers[t.incarnation] = AdmittedPeer(
                peer_id=t.peer_id,
                incarnation=t.incarnation,
                secret=t.secret,
                host=known.host if known else t.data_host or self._heard[_names(t)].host,
                port=t.data_port,
                host_key=t.host_key,
                hostname=t.hostname,
                pid=t.pid,
                group=known.group if known else 0,
                was_native=self._heard[_names(t)].is_member,
                seat=known.seat if known else 0,
            )
        return tuple(peers[i] for i in sorted(peers))


def _age(testimony: Testimony) -> tuple[int, int, int]:
    """Orders testimony by how new its view is; an epoch names one view, whoever made it."""
    return (testimony.epoch, testimony.generation, -testimony.incarnation)


def _names(of: Testimony | MemberInfo) -> _Names:
    return (of.incarnation, of.peer_id, of.secret)


def _told_by(testimony: Testimony) -> Iterator[MemberInfo]:
    for _, members in _views_of(testimony):
        yield from members


def _views_of(testimony: Testimony) -> Iterator[tuple[int, tuple[MemberInfo, ...]]]:
    yield from ((v.epoch, v.members) for v in testimony.older if v.epoch < testimony.epoch)
    yield testimony.epoch, testimony.members


def _beyond(testimony: Testimony) -> str:
    """Names a number above which there is no room for a run to go on; "" if there is none."""
    counts = (
        ("generation", testimony.generation, COUNT_MAX),
        ("lineage", testimony.lineage, COUNT_MAX),
        ("incarnation", max(_incarnations([testimony])), COUNT_MAX),
        ("epoch", testimony.epoch, EPOCH_HEARD_MAX),
    )
    return next((f"{what} {n}" for what, n, most in counts if n > most), "")


def _fits(testimony: Testimony, newest: Testimony) -> bool:
    """Says whether the newest view does not know this incarnation by another id or secret."""
    known = {x.incarnation: _names(x) for x in newest.members}
    return known.get(testimony.incarnation, _names(testimony)) == _names(testimony)


def _views(believed: list[Testimony]) -> tuple[View, ...]:
    """Returns the views in force somewhere, oldest first; steps may be open in each of them."""
    told: dict[int, tuple[MemberInfo, ...]] = {}
    first_steps: dict[tuple[int, int], int] = {}
    for t in believed:
        for epoch, members in _views_of(t):
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
    return [i for t in said for i in (t.incarnation, *(x.incarnation for x in _told_by(t)))]
