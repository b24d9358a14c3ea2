"""Asks members what they hold, several at once, and remembers what each of them is worth.

Invariant: who has said what cannot be true, or sent wrong bytes, gives nothing to this newcomer any
more, has no voice while others have, and has been named in the log once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pccl.base.clock import Deadline
from pccl.base.errors import PcclError, RemoteError
from pccl.base.log import get_logger
from pccl.membership.messages import MemberInfo
from pccl.outcome import Peer
from pccl.state import messages as m
from pccl.state.election import Election, Target, confirmed
from pccl.state.opening import Opened, Wrong, open_source
from pccl.state.shared import SharedState
from pccl.state.stream import StreamLost, identity_of, stream_tls_of

if TYPE_CHECKING:
    from pccl.session import Session

SOURCES_MAX = 8  # asked at once; more would only share the same way to this process
DESCRIBE_S = 30.0  # a donor may have to hash its state first
OTHERS_S = 1.0  # for further answers, once there is one
OTHERS_PART = 0.25  # of what members wait, at most: a late answer must leave time for the rest
CONFIRM_PART = 0.5  # likewise, while what has been claimed is not confirmed
MOST_S = 5.0  # beside the run, for the answers of more than half
Found = Sequence["Opened | PcclError | None"]
_log = get_logger("state")


class Inquiry:
    """What one newcomer asks, and knows of those that it has asked."""

    def __init__(self, session: Session, state: SharedState) -> None:
        self._session = session
        self._state = state
        self.identity = identity_of(session, stream_tls_of(session))
        self._whys: dict[bytes, str] = {}  # what was wrong with members that gave nothing
        self._barred: dict[bytes, str] = {}  # those that were found wrong
        self._idle: set[bytes] = set()  # those of whom the last fetch got nothing
        self._hasty: set[bytes] = set()  # those that answered, and nobody confirmed it in time
        self.asked = 0  # how many have answered the last question with a state, or still may

    def members(self) -> list[MemberInfo]:
        me = bytes(self._session.peer_id)
        return [x for x in self._session.agent.standing.met if x.peer_id != me]

    def ranks(self) -> dict[bytes, int]:
        """Of the members, in the view if this peer is in it."""
        known = self._session.engine.view().members
        ids = known or tuple(x.peer_id for x in self._session.agent.standing.met)
        return {bytes(peer): rank for rank, peer in enumerate(ids)}

    # ---- what they are worth

    def bar(self, peer: bytes, why: str) -> None:
        """Takes nothing of this member any more, and says so."""
        if peer not in self._barred:
            _log.warning("peer %s is excluded as a source of state: it %s", Peer(peer), why)
            self._barred[peer] = why

    def judge(self, elected: Election, claims: Mapping[bytes, Target]) -> None:
        """Names those whose claims cannot be if what was elected is right."""
        right = elected.target
        for peer in elected.odd:
            self.bar(peer, _claim(claims[peer], right, "most of those asked"))
        for peer in elected.tied:
            _log.warning(
                "peer %s %s; nothing says which is right, the lower rank is believed",
                Peer(peer),
                _claim(claims[peer], right, f"peer {Peer(elected.holders[0])}"),
            )

    def gave_nothing(self, peers: Sequence[bytes]) -> None:
        """These held what was fetched, and nothing came of them: the others are asked first."""
        self._idle = set(peers)

    def believed(self, opened: Sequence[Opened]) -> Sequence[Opened]:
        """Of these those that were not found wrong, if there are any."""
        return [one for one in opened if one.member.peer_id not in self._barred] or opened

    def usable(self, opened: Sequence[Opened], elected: Election) -> list[Opened]:
        """Of these streams those by which what was elected may be fetched, by a third peer only
        where none goes without."""
        alike = [
            one
            for one in opened
            if one.member.peer_id in elected.holders and one.member.peer_id not in self._barred
        ]
        return [one for one in alike if not one.stream.by_third] or alike

    def forget_waiting(self) -> None:
        """Who waited for the state itself may have it by now."""
        self._whys = {who: why for who, why in self._whys.items() if why != m.WAITS_ITSELF}

    def all_wait_themselves(self) -> bool:
        return all(self._whys.get(x.peer_id) == m.WAITS_ITSELF for x in self.members())

    def said(self, otherwise: str) -> str:
        """What the members that gave nothing said, or what was wrong with them."""
        met = {member.peer_id for member in self.members()}
        whys = {**self._whys, **self._barred}
        told = [f"peer {who.hex()[:8]} {why}" for who, why in whys.items() if who in met]
        return "; ".join(told) or otherwise

    # ---- asking

    def beside_the_run(self, deadline: Deadline, patience: Deadline) -> list[Opened]:
        """Asks what they hold now, of those that are believed; those that gave nothing last."""
        trusted = [x for x in self.members() if x.peer_id not in self._barred]
        first = [x for x in trusted if x.peer_id not in self._idle]
        for members in (first, trusted if self._idle else []):
            opened, errors = self._ask(members, m.CURRENT, deadline, patience=patience)
            if opened or errors:
                return _without(errors, opened)
        return []

    def at_step(
        self,
        step: int,
        deadline: Deadline,
        hold_s: float,
        meanwhile: Callable[[], None],
        answered: Callable[[Opened], None],
    ) -> list[Opened]:
        """Asks all for the state with which this step began, and goes on with `meanwhile`.

        `answered` is called at once with each answer that starts the time for which members wait:
        of who was not found wrong, nor answered before what nobody has confirmed.
        """

        def counts(one: Opened) -> None:
            if one.member.peer_id not in self._hasty | self._barred.keys():
                answered(one)

        opened, errors = self._ask(self.members(), step, deadline, hold_s, counts, meanwhile)
        return _without(errors, opened)

    def was_not_confirmed(self, opened: Sequence[Opened]) -> None:
        """What these say of a step was not said by anybody else in time."""
        self._hasty |= {one.member.peer_id for one in opened}

    def _ask(
        self,
        members: Sequence[MemberInfo],
        at_step: int,
        deadline: Deadline,
        hold_s: float | None = None,
        answered: Callable[[Opened], None] = lambda _: None,
        meanwhile: Callable[[], None] = lambda: None,
        patience: Deadline | None = None,
    ) -> tuple[list[Opened], list[PcclError]]:
        """Opens streams to some of them at once; those that have nothing to give are left out."""
        if not members:
            return [], []
        start = int.from_bytes(self._session.peer_id[:4], "little") % len(members)
        count = min(SOURCES_MAX, len(members))
        chosen = [members[(start + i) % len(members)] for i in range(count)]
        answers = Answers([member.peer_id for member in chosen], answered)
        for member in chosen:
            name = f"pccl-ask-{member.peer_id.hex()[:8]}"
            work = partial(
                answers.put, partial(self._open, member, at_step, hold_s), member.peer_id
            )
            threading.Thread(target=work, name=name, daemon=True).start()
        meanwhile()
        if hold_s is None:
            found = answers.take(deadline, OTHERS_S, patience, _most_have_answered, MOST_S)
        else:
            others_s = min(OTHERS_S, OTHERS_PART * hold_s)
            found = answers.take(deadline, others_s, None, _confirmed, CONFIRM_PART * hold_s)
        for member in chosen:
            if member.peer_id in answers.silent:
                self._whys[member.peer_id] = "has not said in time what it holds"
        opened = [one for one in found if isinstance(one, Opened)]
        self.asked = len(opened) + len(answers.silent)
        return opened, [one for one in found if isinstance(one, PcclError)]

    def _open(
        self,
        member: MemberInfo,
        at_step: int,
        hold_s: float | None,
        accepted: Callable[[], None],
    ) -> Opened | PcclError | None:
        try:
            return open_source(
                member,
                self.identity,
                self._state,
                at_step=at_step,
                describe_s=DESCRIBE_S,
                said_within_s=hold_s,
                accepted=accepted,
            )
        except (StreamLost, RemoteError) as error:
            known = self._whys.get(member.peer_id)
            self._whys[member.peer_id] = why = str(error)
            if isinstance(error, Wrong):
                self.bar(member.peer_id, why)
            log = _log.info if member.port == 0 and known != why else _log.debug
            log("no state from peer %s: %s", member.peer_id.hex()[:8], why)
            return None
        except PcclError as error:
            return error


class Answers:
    """Answers as they come.  Nobody waits long for a stopped member once another has answered."""

    def __init__(
        self, asked: Sequence[bytes], answered: Callable[[Opened], None] = lambda _: None
    ) -> None:
        """`answered` is called with each state that is told, on the thread that has heard it."""
        self._turn = threading.Condition()
        self._answered = answered
        self._silent = set(asked)
        self._accepted = 0  # streams to members that find out what they hold, which may take long
        self._found: list[Opened | PcclError | None] = []
        self._over = False
        self.silent = frozenset(asked)
        """Who had not answered when `take` returned."""

    @property
    def _open(self) -> int:
        return len(self._silent)

    def put(
        self, ask: Callable[[Callable[[], None]], Opened | PcclError | None], peer: bytes
    ) -> None:
        mine = 0

        def accepted() -> None:
            nonlocal mine
            mine = 1
            with self._turn:
                self._accepted += 1
                self._turn.notify_all()

        answer = ask(accepted)
        if isinstance(answer, Opened):
            self._answered(answer)
        with self._turn:
            self._silent.discard(peer)
            self._accepted -= mine
            late = self._over
            self._found.append(answer)
            self._turn.notify_all()
        if late and isinstance(answer, Opened):
            answer.stream.close()

    def take(
        self,
        deadline: Deadline,
        others_s: float = OTHERS_S,
        patience: Deadline | None = None,
        enough: Callable[[Found, int], bool] = lambda _, __: True,
        enough_s: float = 0.0,
    ) -> list[Opened | PcclError | None]:
        """Returns what has come when all have answered, or a while after the first.

        Args:
            others_s: that while.
            patience: ends the wait for the first as long as nobody has accepted a stream.
            enough: says whether what has come will do, with so many that may still answer; else it
                is waited on for `enough_s` in all.
        """
        with self._turn:
            first = Deadline(min(2 * DESCRIBE_S, deadline.remaining_s()))
            while self._open and not any(self._found):
                until = first if patience is None or self._accepted else patience
                if until.passed() or first.passed():
                    break
                self._turn.wait(min(until.remaining_s(), first.remaining_s()))
            if any(self._found):
                more = Deadline(min(enough_s, deadline.remaining_s()))
                self._turn.wait_for(lambda: self._open == 0, min(others_s, deadline.remaining_s()))
                self._turn.wait_for(
                    lambda: not self._open or enough(self._found, self._open), more.remaining_s()
                )
            self._over, self.silent = True, frozenset(self._silent)
            return list(self._found)


def _most_have_answered(found: Found, pending: int) -> bool:
    return sum(isinstance(one, Opened) for one in found) > pending


def _confirmed(found: Found, pending: int) -> bool:
    claims = [target_of(one) for one in found if isinstance(one, Opened)]
    return confirmed(claims, len(claims) + pending)


def target_of(one: Opened) -> Target:
    said = one.described
    return Target(said.revision, said.lineage, said.root)


def claims_of(opened: Sequence[Opened]) -> dict[bytes, Target]:
    return {one.member.peer_id: target_of(one) for one in opened}


def close_all(opened: Sequence[Opened]) -> None:
    for one in opened:
        one.stream.close()


def _without(errors: Sequence[PcclError], opened: list[Opened]) -> list[Opened]:
    """Raises the first error, if most have one: else it is they whose layout is another one."""
    if errors and len(errors) >= len(opened):
        close_all(opened)
        raise errors[0]
    for error in errors:
        _log.warning("a member is no source of state: %s", error)
    return opened


def _claim(wrong: Target, right: Target, who: str) -> str:
    if (wrong.revision, wrong.lineage) == (right.revision, right.lineage):
        return f"claims another content of revision {wrong.revision} than is held by {who}"
    return f"claims revision {wrong.revision}, where {right.revision} is held by {who}"
