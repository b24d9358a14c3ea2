"""The way to a member: straight, or, if it cannot be dialled, by a relay that calls it.

    dial a relay -> HELLO (purpose 3, its secret), RELAY (member, number of the call)
      -> the relay says CALL to the member, which dials the relay, too
      -> WELCOME; from here on the connection leads to the member, and goes on as a stream does

A process that others can dial is its own relay: then the member comes straight to it.  What secured
the talk with the relay ends with its WELCOME, and the stream's own TLS goes through it.

Where it was in vain is asked last from then on, so that one relay that has stopped costs its time
once, and however many have, one that works is come to.

Invariant: whatever a relay does costs its own time and one try; it cannot read a secured stream.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Sequence

from pccl.base.clock import Deadline
from pccl.base.errors import RemoteError
from pccl.membership.messages import MemberInfo
from pccl.state.stream import (
    HELLO_BYTES_MAX,
    Identity,
    Stream,
    StreamLost,
    Unreachable,
    why_unwelcome,
)
from pccl.state.stream_tls import HANDSHAKE_S
from pccl.transport import native_frames as nf
from pccl.transport.identity import Name, Role

RELAY_S = 4.0  # for the relay's answer: six round trips, with TLS at both, by way of a satellite
RELAYS_MAX = 3
TRIES = 2  # at one relay: the member gives a way up if the first words come before it listens


def reach(
    member: MemberInfo, identity: Identity, timeout_s: float, deadline: Deadline | None = None
) -> Stream:
    """Opens a stream to a member.

    Args:
        timeout_s: as of `Stream.dial`; each try of a relay has RELAY_S besides.
        deadline: nothing is tried after it.

    Raises:
        StreamLost: it is not there, refuses, or neither it nor a relay can be dialled in time.
    """
    why = "it connected with reachable=False"
    if member.port:
        try:
            return Stream.dial(member, identity, timeout_s, deadline)
        except Unreachable as error:
            why = str(error)
    relays = _in_turn(member, identity)
    for relay in relays[:RELAYS_MAX]:
        if deadline is not None and deadline.passed():
            break
        try:
            stream = _by(relay, member, identity, timeout_s, deadline)
        except StreamLost as error:
            why = str(error)
            identity.in_vain.pop(relay.peer_id, None)
            identity.in_vain[relay.peer_id] = None
        else:
            identity.in_vain.pop(relay.peer_id, None)
            return stream
    if not relays:
        why += "; no member is there that both could dial"
    raise StreamLost(f"cannot be dialled, nor met at a relay ({why})")


def _by(
    relay: MemberInfo,
    member: MemberInfo,
    identity: Identity,
    timeout_s: float,
    deadline: Deadline | None,
) -> Stream:
    """The same by one relay.  Raises StreamLost."""
    last = StreamLost("no try was made")
    for _ in range(TRIES):
        try:
            sock = _through(relay, member, identity, deadline)
        except (StreamLost, OSError, RemoteError) as error:
            raise StreamLost(f"at the relay {relay.peer_id.hex()[:8]}: {error}") from error
        try:
            stream = Stream.over(sock, member, identity, timeout_s, deadline)
        except (StreamLost, RemoteError) as error:  # who said so may be the relay
            last = StreamLost(str(error))
            continue
        stream.by_third = relay.peer_id != identity.peer_id
        return stream
    raise last


def _in_turn(member: MemberInfo, identity: Identity) -> Sequence[MemberInfo]:
    """Where to meet a member: this process, if others can dial it; then the others, each pair of
    peers beginning with another one, and last those where it was in vain, the last one last."""
    relays = [one for one in identity.relays() if one.peer_id != member.peer_id]
    own = [one for one in relays if one.peer_id == identity.peer_id and not member.port]
    others = [one for one in relays if one.peer_id != identity.peer_id]

    failed = {peer: at for at, peer in enumerate(list(identity.in_vain), start=1)}

    def distance(one: MemberInfo) -> tuple[int, int]:
        pair = zip(identity.peer_id[:8], member.peer_id[:8], one.peer_id[:8], strict=True)
        return failed.get(one.peer_id, 0), int.from_bytes(bytes(a ^ b ^ c for a, b, c in pair))

    return own + sorted(others, key=distance)


def _through(
    relay: MemberInfo, member: MemberInfo, identity: Identity, until: Deadline | None
) -> socket.socket:
    """Returns a connection that leads to the member.

    Raises:
        StreamLost, OSError, RemoteError: it cannot be met there.
    """
    left_s = RELAY_S if until is None else min(RELAY_S, until.remaining_s())
    deadline = Deadline(left_s)
    sock = socket.create_connection((relay.host, relay.port), max(0.001, left_s))
    return led(sock, relay, member, identity, deadline)


def led(
    sock: socket.socket,
    relay: MemberInfo,
    member: MemberInfo,
    identity: Identity,
    deadline: Deadline,
) -> socket.socket:
    """Has the relay at the other end of a connection lead it on to the member; takes over `sock`,
    and returns it, or what is left of it without what secured the talk with the relay.

    Raises:
        StreamLost, OSError, RemoteError: it does not.
    """
    if identity.tls is not None:
        name = Name(identity.run_id, relay.peer_id, Role.TRAINER)
        left_s = max(0.001, min(deadline.remaining_s(), HANDSHAKE_S))
        sock = identity.tls.dial(sock, name, left_s, preface=b"")
    talk = Stream(sock, max(0.001, deadline.remaining_s()))
    try:
        talk.until(deadline)
        talk.send(identity.hello(nf.Purpose.RELAY, relay.secret))
        call = secrets.randbits(63) | 1
        talk.send(nf.encode(nf.RelayFrame(member.peer_id, member.incarnation, call)))
        if (text := why_unwelcome(talk.receive(HELLO_BYTES_MAX))) is not None:
            raise StreamLost(text)
        return talk.bare()
    except BaseException:
        with contextlib.suppress(OSError):
            talk.close()
        raise
