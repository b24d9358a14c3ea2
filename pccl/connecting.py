"""Connecting: from an address to a Communicator.

    dial the coordinator -> listen on the address that leads there -> Hello -> Admitted

Invariant: `connect` returns an admitted peer, or raises within `timeout_s` (and the second or two
that hanging up takes) having left nothing behind: no thread, no socket, no place in the run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, Self, TypedDict

from pccl.arguments import (
    addresses_of,
    check_number,
    check_seconds,
    find_ticket,
    optional_number,
    optional_seconds,
    parse_straggler,
    parse_underflow,
)
from pccl.base.errors import ConnectError, PcclError, UsageError
from pccl.base.log import get_logger
from pccl.communicator import Communicator
from pccl.drain_signal import DrainOnSigterm
from pccl.identity import load_or_make_key, peer_id_of, this_host_key
from pccl.membership.agent import AgentConfig, MemberAgent, Seat
from pccl.membership.agent_security import Credentials
from pccl.membership.messages import GROUP_MAX, SEAT_MAX
from pccl.outcome import Peer
from pccl.reaching import Whereabouts
from pccl.session import WAIT_QUIET_S, Session
from pccl.state.checkpoint import Checkpoints
from pccl.state.keeper import check_state, keep_state
from pccl.state.shared import SharedState
from pccl.transport.address import (
    Address,
    is_loopback,
    literal_to_dial,
)
from pccl.transport.engine import Engine, error_of
from pccl.transport.engine_tls import in_words
from pccl.transport.join_ticket import JoinTicket
from pccl.transport.native_core import load_native

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


_log = get_logger("face")
STEP_TIMEOUT_S = 300.0
LANES_MAX = 64
SPIN_US_MAX = 1_000_000
MIN_WORLD_MAX = 1024  # as many as a coordinator admits


def connect(
    address: str | Sequence[str] | None = None,
    *,
    ticket: str | None = None,
    min_world: int | None = None,
    on_underflow: Literal["wait", "alone", "raise"] | None = None,
    straggler: Literal["wait"] | float | None = None,
    peer_group: int = 0,
    seat: int | None = None,
    drain_on_sigterm_s: float | None = None,
    timeout_s: float = 60.0,
    listen: str | None = None,
    advertise: str | None = None,
    reachable: bool = True,
    lanes: int = 0,
    insecure: bool = False,
    identity: str | os.PathLike[str] | None = None,
    step_timeout_s: float = STEP_TIMEOUT_S,
    coordinator_grace_s: float | None = None,
    spin_us: int = -1,
    shared_memory: bool | None = None,
    transport: Literal["tcp", "ucx"] = "tcp",
    state: SharedState | None = None,
    checkpoint_dir: str | os.PathLike[str] | Checkpoints | None = None,
) -> Communicator:
    """Joins the run of a coordinator; blocks until this process is admitted.

    Args:
        address: host:port of the coordinator; IPv6 in brackets; several, with commas: in turn.
        ticket: of a secured run (`pccl ca ticket`); it has an address, too.  None: PCCL_TICKET.
        min_world: steps run only while at least that many members are in; alike on all peers;
            here and below None leaves it to the others.  Fixed from the first view on.
        on_underflow: else steps wait, run after a large enough first view, or raise; alike, too.
        straggler: "wait", or seconds (0.1 on) after which others exclude who is slow; alike, too.
        peer_group: peers of one group reduce among themselves; steps are committed by all groups.
        seat: its place among ranks; of peer groups: its replica, whose parts come in together.
        drain_on_sigterm_s: on SIGTERM `leave` with this deadline; main thread only.
        timeout_s: for everything until admission.
        listen: host:port where peers reach this process; None: as towards the coordinator.
        advertise: host or host:port where peers reach it, if that differs (NAT): see `reaching`.
        reachable: False where no peer can dial it, as behind NAT; two such meet at a third peer.
        lanes: connections per pair of peers; 0 chooses.
        insecure: allows an unencrypted listener that other machines can reach.
        identity: file that keeps this peer's key; None makes a new identity.
        step_timeout_s: default of `Communicator.step` and `all_reduce`.
        coordinator_grace_s: how long to go on without a coordinator while no step gets done.
        spin_us: how long a waiting call polls, giving way to other threads, before it sleeps; -1:
            100.
        shared_memory: large payloads within a machine go through memory; None: if not secured.
        transport: "ucx": lanes go through libucp, by RDMA where there is; not in a secured run.
        state: what all members hold alike; brought up to date before this peer's first step.
        checkpoint_dir: a local folder for checkpoints of `state`, or Checkpoints.

    Raises:
        UsageError: an argument is not as described.
        ConnectError: no coordinator in time, or it will not have this process; says what to do.
    """
    waits = _waits(step_timeout_s, drain_on_sigterm_s)
    kept = state, check_state(state, checkpoint_dir)
    joining = find_ticket(ticket)
    where = Whereabouts.parse(listen, advertise, reachable)
    wires = _Transport.parse(where, insecure, lanes, spin_us, shared_memory, transport, joining)
    config = AgentConfig(
        addresses=addresses_of(address, joining),
        **_rules(min_world, on_underflow, straggler, peer_group, seat),
        **_patience(timeout_s, coordinator_grace_s),
        **_who(load_or_make_key(identity), joining),  # last: it may make a file
    )
    agent = MemberAgent(config, partial(_make_engine, wires, config))
    return _with_state(admit(agent, config, *waits), *kept)


def _waits(step_timeout_s: float, drain_on_sigterm_s: float | None) -> tuple[float, float | None]:
    step_s = check_seconds("step_timeout_s", step_timeout_s)
    return step_s, optional_seconds("drain_on_sigterm_s", drain_on_sigterm_s)


class _Rules(TypedDict):
    min_world: int
    on_underflow: int
    straggler_s: float
    group: int
    seat: int


def _rules(
    min_world: int | None,
    on_underflow: str | None,
    straggler: str | float | None,
    peer_group: int,
    seat: int | None,
) -> _Rules:
    return _Rules(
        min_world=optional_number("min_world", min_world, 1, MIN_WORLD_MAX),
        on_underflow=parse_underflow(on_underflow),
        straggler_s=parse_straggler(straggler),
        group=check_number("peer_group", peer_group, 0, GROUP_MAX),
        seat=0 if seat is None else 1 + check_number("seat", seat, 0, SEAT_MAX - 1),
    )


class _Patience(TypedDict):
    connect_timeout_s: float
    coordinator_grace_s: float | None


def _patience(timeout_s: float, coordinator_grace_s: float | None) -> _Patience:
    return _Patience(
        connect_timeout_s=check_seconds("timeout_s", timeout_s),
        coordinator_grace_s=optional_seconds("coordinator_grace_s", coordinator_grace_s),
    )


class _Who(TypedDict):
    host_key: int
    peer_id: bytes
    credentials: Credentials | None


def _who(key: Ed25519PrivateKey, ticket: JoinTicket | None) -> _Who:
    credentials = None if ticket is None else Credentials(ticket, key)
    return _Who(host_key=this_host_key(), peer_id=bytes(peer_id_of(key)), credentials=credentials)


def _with_state(
    communicator: Communicator, state: SharedState | None, checkpoints: Checkpoints | None
) -> Communicator:
    keep_state(communicator.session, state, checkpoints)
    return communicator


def admit(
    agent: MemberAgent,
    config: AgentConfig,
    step_timeout_s: float,
    drain_on_sigterm_s: float | None = None,
) -> Communicator:
    """Starts an agent and returns the Communicator once it is admitted; else ends it and raises."""
    session: Session | None = None
    agent.start()
    try:
        quiet_s = min(WAIT_QUIET_S, config.connect_timeout_s)
        if not agent.wait_until(lambda now: now.admitted is not None, quiet_s):
            why = agent.standing.waits or f"no answer from {', '.join(map(str, config.addresses))}"
            _log.warning("not admitted for %g s: %s", quiet_s, why)
        # The agent keeps the time itself; the margin lets its own, better text come first.
        left_s = config.connect_timeout_s - quiet_s + 1.0
        agent.wait_until(lambda now: now.admitted is not None, left_s)
        standing = agent.standing
        if standing.admitted is None:
            raise _refusal(agent, config)
        assert agent.seat is not None
        session = Session(
            agent.seat.engine, agent, Peer(config.peer_id), step_timeout_s=step_timeout_s
        )
        communicator = Communicator(session)
    finally:
        if session is None:
            agent.stop("gave up connecting", 0.0)
            if agent.seat is not None:
                agent.seat.engine.close()
    if drain_on_sigterm_s is not None:
        drain = DrainOnSigterm(session, drain_on_sigterm_s)
        session.on_close = drain.restore
        try:
            drain.install()
        except UsageError:
            communicator.close()
            raise
    return communicator


@dataclass(frozen=True, slots=True)
class _Transport:
    """How this process talks with its peers, as far as the program says."""

    where: Whereabouts
    insecure: bool
    lanes: int
    spin_us: int
    shared_memory: bool | None  # None: unless the run is secured
    ucx: bool

    @classmethod
    def parse(
        cls,
        where: Whereabouts,
        insecure: bool,
        lanes: int,
        spin_us: int,
        shared_memory: bool | None,
        transport: str,
        joining: JoinTicket | None,
    ) -> Self:
        insecure = insecure or joining is not None
        if where.at is not None:
            _require_allowed(where.at.host, insecure)
        return cls(
            where=where,
            insecure=insecure,
            lanes=check_number("lanes", lanes, 0, LANES_MAX),  # 0: automatic
            spin_us=check_number("spin_us", spin_us, -1, SPIN_US_MAX),
            shared_memory=None if shared_memory is None else bool(shared_memory),
            ucx=_wants_ucx(transport, joining),
        )


def _make_engine(transport: _Transport, config: AgentConfig, local_host: str) -> Seat:
    where = transport.where
    at = where.at or Address(local_host, 0)
    _require_allowed(at.host, transport.insecure)
    told = where.told(at.host, local_host)
    material = None if config.credentials is None else config.credentials.material
    by_memory = material is None if transport.shared_memory is None else transport.shared_memory
    engine = Engine(
        peer_id=config.peer_id,
        listen_host=at.host,
        listen_port=at.port,
        lanes=transport.lanes,
        spin_us=transport.spin_us,
        host_key=config.host_key,
        shared_memory=by_memory,
        tls=material,
        ucx=transport.ucx,
    )
    seat = Seat(engine, "", 0)
    if told is not None:
        seat = Seat(engine, told.host, told.port or engine.port)
    home = None if told is None else Address(literal_to_dial(at.host), engine.port)
    secured = "" if material is None else in_words(load_native())
    return replace(seat, renewed=engine.set_tls, home=home, carried_by=secured)


def _refusal(agent: MemberAgent, config: AgentConfig) -> BaseException:
    where = ", ".join(map(str, config.addresses))
    standing = agent.standing
    if standing.failure is not None:
        return standing.failure
    if standing.ended is None:
        return ConnectError(f"{where}: no answer within {config.connect_timeout_s:g} s")
    code, text = standing.ended.code, standing.ended.text
    match code:
        case "unreachable":
            return ConnectError(
                f"no coordinator admitted this process within {config.connect_timeout_s:g} s "
                f"(tried {where}; last: {text}); is that address a `pccl coordinator`?"
            )
        case "foreign":
            return ConnectError(
                f"what answers at {where} does not speak this protocol ({text}); check that the "
                "address is that of a `pccl coordinator` of the same version"
            )
        case "refused":
            return ConnectError(f"the coordinator at {where} refused this process: {text}")
        case _:
            error: PcclError = error_of(code, text, deciding=False)
            return error


def _wants_ucx(transport: str, ticket: JoinTicket | None) -> bool:
    if transport not in ("tcp", "ucx"):
        raise UsageError(f"transport must be 'tcp' or 'ucx', not {transport!r}")
    if transport == "ucx" and ticket is not None:
        raise UsageError(
            "the run is secured, and UCX neither encrypts nor authenticates what it carries: join "
            "it without transport='ucx', or use UCX in a run without tickets on a network you trust"
        )
    return transport == "ucx"


def _require_allowed(host: str, insecure: bool) -> None:
    if not insecure and not is_loopback(host):
        raise UsageError(
            f"this process would listen on {host} without encryption, where other machines can "
            "reach it; join a secured run (ticket=...), pass insecure=True on a network you trust, "
            "or listen='127.0.0.1:0' for peers on this machine only"
        )
