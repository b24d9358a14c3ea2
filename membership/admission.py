"""Who may speak: admission of new peers, and re-attachment of those that lost a connection.

An incarnation is given once, from a counter that is durable before the peer learns its number, and
proves itself by its secret: on the native connection, and on a member agent's that comes back.  Who
only knows the names of a peer can take nothing over.  What a returning agent missed is told again
by the parts that own it.  Whoever names an incarnation that is no longer admitted is told so,
whatever it says: a peer that slept through its own eviction must not wait for ever.  The exception
is who shows that the run is ahead of this journal (`outdated`): what the journal does not know of
it proves nothing.

Invariant: every connection belongs to nobody or to one admitted incarnation, and an incarnation
has at most one connection of each kind; a newer one replaces the older.
"""

from __future__ import annotations

import hmac
from collections import Counter
from typing import Final

from pccl.membership import rules
from pccl.membership.core import Core, Peer, name, native_text
from pccl.membership.events import Close, Send, SendNative
from pccl.membership.liveness import Liveness
from pccl.membership.messages import (
    ID_BYTES,
    PROTOCOL_VERSION,
    REFUSED_FOR_AN_OLD_COPY,
    Admitted,
    Evicted,
    Hello,
    Refused,
)
from pccl.membership.outdated import Outdated
from pccl.membership.peer import ENGINE_DUE_S, proven
from pccl.transport.native_frames import NativeHello, Purpose, RefusalCode, RefusedFrame, Welcome

NOT_IN_THE_RUN: Final = "this incarnation is not part of the run any more; connect again"
ANOTHER_RUN: Final = "this coordinator serves another run; the member agent is told more"


class Admission:
    def __init__(self, core: Core, outdated: Outdated, liveness: Liveness) -> None:
        self._core = core
        self._outdated = outdated
        self._liveness = liveness
        self._told_to_adopt = False

    def hello(self, conn: int, msg: Hello, now_s: float) -> Peer | None:
        """Returns the peer that is attached now, or None if it was turned away."""
        core = self._core
        if msg.protocol != PROTOCOL_VERSION:
            text = f"this coordinator speaks protocol {PROTOCOL_VERSION}, the peer {msg.protocol}"
            self._refuse(conn, "protocol", text)
            return None
        if msg.run_id not in (b"", core.run_id):
            self._refuse(conn, *self._another_run(msg))
            return None
        peer = self._named(msg.incarnation, msg.peer_id)
        proven = peer is not None and hmac.compare_digest(msg.secret, peer.secret)
        sign = self._outdated.sign(msg.generation, msg.epoch, msg.incarnation)
        doubt = self._doubt(sign, peer if proven and msg.run_id else None)
        if doubt:
            self._refuse(conn, REFUSED_FOR_AN_OLD_COPY, doubt)
            return None
        if msg.incarnation == 0:
            return self._admit(conn, msg, now_s)
        if peer is None or peer.gone is not None:
            text = core.abandoned.get(msg.incarnation, NOT_IN_THE_RUN)
            self._turn_away(conn, Evicted(core.generation, text))
            return None
        if not proven:
            self._refuse(conn, "secret", "this is not the secret of that incarnation")
            return None
        self._attach_agent(conn, peer)
        peer.epoch = max(peer.epoch, msg.epoch)
        peer.asked = rules.asked_by(msg)
        rules.said_again(core, peer)
        self._welcome(peer)
        core.log("info", f"peer {name(peer)} is attached again")
        return peer

    def _another_run(self, msg: Hello) -> tuple[str, str]:
        """Returns the code and the text for a peer of another run."""
        core = self._core
        text = f"this coordinator serves run {core.run_id.hex()}, not {msg.run_id.hex()}"
        if msg.incarnation == 0 or not core.config.began_anew:
            return "run", f"{text}; connect again to take part, or give the right address"
        # Who has an incarnation runs, and may run for long: it is not sent away for a lost file.
        text += (
            "; stop this coordinator and start it on that run's journal (--journal FILE), or, if "
            "that is lost, let one adopt the run: pccl coordinator adopt --journal FILE"
        )
        if not self._told_to_adopt:
            self._told_to_adopt = True
            core.log("error", f"a member of another run asks to come back: {text}")
        return "adopt", text

    def _named(self, incarnation: int, peer_id: bytes) -> Peer | None:
        """Returns the peer that goes by these names; whether it is that one, its secret tells."""
        peer = self._core.peers.get(incarnation)
        return peer if peer is not None and peer.peer_id == peer_id else None

    def _doubt(self, sign: str, proven: Peer | None) -> str:
        """Returns why nobody may be let in, or nobody with this sign; "" if nothing is wrong."""
        core = self._core
        if sign and proven is not None and proven.is_witness:
            self._outdated.learnt(proven, sign)
        if core.outdated:
            return core.outdated
        return self._outdated.doubt(sign) if sign else ""

    def native_hello(self, conn: int, frame: NativeHello, now_s: float) -> Peer | None:
        core = self._core
        if frame.purpose != Purpose.COORDINATOR:
            self._refuse_native(conn, RefusalCode.PURPOSE, "a coordinator has no data lanes")
            return None
        if frame.run_id != core.run_id:
            self._refuse_native(conn, RefusalCode.RUN, ANOTHER_RUN)
            return None
        peer = self._named(frame.incarnation, frame.peer_id)
        proven = peer is not None and hmac.compare_digest(frame.secret, peer.secret)
        sign = self._outdated.sign(frame.generation, frame.epoch, frame.incarnation)
        doubt = self._doubt(sign, peer if proven else None)
        if doubt:
            self._refuse_native(conn, RefusalCode.GENERATION, doubt)
            return None
        if peer is None or peer.gone is not None:
            text = core.abandoned.get(frame.incarnation, NOT_IN_THE_RUN)
            self._refuse_native(conn, RefusalCode.INCARNATION, text)
            return None
        if not proven:
            self._refuse_native(
                conn, RefusalCode.SECRET, "this is not the secret of that incarnation"
            )
            return None
        conflict = None if peer.was_native else rules.conflict(core, peer.asked)
        if conflict is not None:  # another came in between, and decided otherwise
            core.peers.pop(peer.incarnation)
            core.persist()  # else a restart would know it again
            self._refuse_native(conn, RefusalCode.INCARNATION, conflict[1])
            core.farewell(peer, conflict[1])
            return None
        if peer.native is not None and peer.native != conn:
            core.effects.append(Close(peer.native))
            core.conns.pop(peer.native, None)
        core.unwritten = core.unwritten or not peer.was_native
        peer.native, peer.was_native = conn, True
        connection = core.conns[conn]
        connection.incarnation, connection.native = peer.incarnation, True
        core.send_native(peer, Welcome(core.generation))
        return peer

    # -------------------------------------------------------------- new peers

    def _admit(self, conn: int, msg: Hello, now_s: float) -> Peer | None:
        core = self._core
        rules.choose(core)
        asked = rules.asked_by(msg)
        conflict = rules.conflict(core, asked)
        if conflict is not None:
            self._refuse(conn, *conflict)
            return None
        if not self._retire_namesake(msg.peer_id, now_s):
            text = "a living peer has the same peer id; if it is this one's last life, it ends soon"
            self._refuse(conn, "namesake", text)
            return None
        crowd = self._crowd(core.conns[conn].host, now_s)
        if crowd is not None:
            self._refuse(conn, *crowd)
            return None
        core.incarnations += 1
        peer = Peer(
            peer_id=msg.peer_id,
            incarnation=core.incarnations,
            secret=core.token_bytes(ID_BYTES),
            host=msg.data_host or core.conns[conn].host,
            port=msg.data_port,
            host_key=msg.host_key,
            hostname=msg.hostname,
            pid=msg.pid,
            group=msg.group,
            seat=msg.seat,
            asked=asked,
            came_from=core.conns[conn].host,
            last_beat_s=now_s,
            admitted_s=now_s,
        )
        core.peers[peer.incarnation] = peer
        core.persist()
        self._attach_agent(conn, peer)
        self._welcome(peer)
        core.log("info", f"peer {name(peer)} admitted from {peer.host}:{peer.port}")
        return peer

    def _crowd(self, host: str, now_s: float) -> tuple[str, str] | None:
        """Returns the code and the text of a refusal if there are too many peers already.

        Anybody can say hello.  So of those that have done no more, whose native connection has not
        come yet, only so many are admitted; who has been that for long makes room, and the others
        are asked to come again.  Final is only what proven peers leave no room for."""
        core, config = self._core, self._core.config
        unproven = [p for p in core.peers.values() if not p.was_native]
        if len(core.peers) - len(unproven) >= config.admitted_max:
            return "limit", f"{len(core.peers)} peers are admitted already"
        here = [p for p in unproven if p.came_from == host]
        if len(here) >= config.unproven_per_host_max:
            if self._make_room(here, now_s):
                return None  # as many as before, and there was room for them
            return "crowded", f"{len(here)} newcomers from {host} have not set up their engine yet"
        if len(unproven) >= config.unproven_max or len(core.peers) >= config.admitted_max:
            hosts = Counter(p.came_from for p in unproven)
            fullest = max(hosts, key=lambda h: hosts[h])
            if self._make_room([p for p in unproven if p.came_from == fullest], now_s):
                return None
            return "crowded", f"{len(unproven)} newcomers have not set up their engine yet"
        return None

    def _make_room(self, unproven: list[Peer], now_s: float) -> bool:
        """Gives up the oldest, if it has hung up or had time enough; says whether it did."""
        core = self._core
        oldest = min(unproven, key=lambda p: (p.agent is not None, p.admitted_s))
        due = oldest.agent is None or now_s >= oldest.admitted_s + ENGINE_DUE_S
        if core.is_member(oldest.incarnation) or not due:
            return False
        core.lose(oldest, "its engine did not come, and others wait for its place")
        return True

    def _retire_namesake(self, peer_id: bytes, now_s: float) -> bool:
        """Gives up an older incarnation of the same id; False while that one may be alive.

        Anybody can take an id, and a living peer may be without its connections: after a restart
        all are.  So only its lease ends it, or its port that refuses, which is asked for here; but
        who hung up before its engine had come, has no place to lose."""
        core = self._core
        for other in list(core.peers.values()):
            if other.peer_id != peer_id or other.gone is not None:
                continue
            never_was = not other.was_native and other.agent is None
            if not never_was and not self._liveness.is_over(other, now_s):
                self._liveness.asked_after(other, now_s)
                return False
            core.lose(other, "the same peer came back as a new incarnation")
        return True

    def _attach_agent(self, conn: int, peer: Peer) -> None:
        core = self._core
        if peer.agent is not None and peer.agent != conn:
            core.effects.append(Close(peer.agent))
            core.conns.pop(peer.agent, None)
        peer.agent = conn
        core.conns[conn].incarnation = peer.incarnation

    def _welcome(self, peer: Peer) -> None:
        core = self._core
        core.send(
            peer,
            Admitted(
                run_id=core.run_id,
                lineage=core.lineage,
                generation=core.generation,
                incarnation=peer.incarnation,
                secret=peer.secret,
                min_world=core.min_world or peer.asked[0] or 1,
                heartbeat_s=core.config.profile.heartbeat_s,
                lease_s=core.config.profile.lease_s,
                epoch=core.epoch(),
                members=len(proven(core.peers)) + (not peer.was_native),
                coordinator_grace_s=core.config.profile.coordinator_grace_s,
                decision_s=core.config.profile.decision_s,
            ),
        )

    # -------------------------------------------------------------- those turned away

    def _refuse(self, conn: int, code: str, text: str) -> None:
        core = self._core
        core.counters.refused += 1
        self._turn_away(conn, Refused(code, text))

    def _turn_away(self, conn: int, answer: Refused | Evicted) -> None:
        core = self._core
        if conn not in core.conns:
            return  # it was told together with all others
        core.effects += [Send(conn, answer), Close(conn)]
        if core.conns[conn].incarnation is None:
            core.conns.pop(conn)  # else a peer's own connection ends here, which its ConnDown tells

    def _refuse_native(self, conn: int, code: RefusalCode, text: str) -> None:
        core = self._core
        core.counters.refused += 1
        core.effects += [SendNative(conn, RefusedFrame(int(code), native_text(text))), Close(conn)]
        core.conns.pop(conn, None)
