"""The life of the native engine.

`engine_api.EngineLike` is what the rooms above use; `Engine` is the native one of that kind.
Every method raises errors of `pccl.base.errors`: the native codes are mapped here, once.

Invariant: in a fork of the process that made an engine nothing native is ever touched again.  The
reactor threads do not exist there and its locks may be held by them, so right after the fork the
native object is replaced by one that raises Forked, and is leaked rather than destroyed.
"""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
from collections.abc import Sequence
from typing import Any, NoReturn

from pccl.base.errors import (
    Closed,
    ConnectError,
    CoordinatorLost,
    DeadlineExceeded,
    Evicted,
    Excluded,
    Forked,
    Left,
    OutcomeUnknown,
    OutOfMemory,
    PcclError,
    UsageError,
    WorldTooSmall,
)
from pccl.transport.engine_api import (
    RUNS,
    BegunStep,
    DecisionTuple,
    EngineView,
    MemberTuple,
    StepResult,
)
from pccl.transport.engine_events import EngineEvent, StreamOpened, parse_event
from pccl.transport.engine_letters import LetterCalls
from pccl.transport.engine_tls import parts, tls_arguments
from pccl.transport.identity import TlsMaterial
from pccl.transport.native_core import load_native
from pccl.transport.ucx import Wire, libraries, refusal


class _Gone:
    """Stands where a native engine stood; whatever is asked of it, the answer is `error`."""

    def __init__(self, error: type[PcclError]) -> None:
        self._error = error

    def __getattr__(self, name: str) -> NoReturn:
        raise self._error()


def _reason(error: OSError) -> str:
    """The system's words for an error; the core's own text says again what was tried."""
    return os.strerror(error.errno) if error.errno else str(error)


class Engine(LetterCalls):
    """The native engine, with typed results and errors.

    One per connection to a run; it owns the listening port, the data lanes and the native threads
    until `close`.  Memory passed to `post_...` must live until the step is released or the
    engine is closed.

    Args:
        tls: what this peer proves itself by; None: the run is not secured.

    Raises:
        ConnectError: the port cannot be bound; with `ucx`, there is no libucp that can be used.
        ImportError: the native core is not built.
        UsageError: `tls` is given, and the native core has no TLS.
    """

    def __init__(
        self,
        *,
        peer_id: bytes,
        listen_host: str,
        listen_port: int = 0,
        lanes: int = 0,
        spin_us: int = -1,
        host_key: int = 0,
        shared_memory: bool = True,
        ucx: bool = False,
        native: Any = None,
        tls: TlsMaterial | None = None,
    ) -> None:
        self.leaving = False
        self.wire = Wire()
        module: Any = load_native() if native is None else native
        self._error_type: type[Exception] = module.EngineError
        secured: dict[str, Any] = tls_arguments(module, tls)
        try:
            self._native: Any = module.Engine(
                peer_id=peer_id,
                listen_host=listen_host,
                listen_port=listen_port,
                lanes=lanes,
                spin_us=spin_us,
                host_key=host_key,
                shared_memory=shared_memory,
                ucx_libraries=libraries(os.environ, sys.prefix, sys.base_prefix) if ucx else [],
                **secured,
            )
        except self._error_type as error:
            raise refusal(*error.args) or self._mapped(error, deciding=False) from error
        except OSError as error:
            raise ConnectError(
                f"cannot listen on {listen_host} port {listen_port}: {_reason(error)}; "
                "pass listen='host:port' with an address of this machine and a free port"
            ) from error
        self._port = int(self._native.port)
        _alive.add(self)

    @property
    def port(self) -> int:
        return self._port

    def set_tls(self, tls: TlsMaterial) -> None:
        """Takes a renewed certificate; connections that are up go on."""
        if hasattr(self._native, "set_tls"):
            self._call(self._native.set_tls, *parts(tls))

    @property
    def event_fd(self) -> int:
        return int(self._native.event_fd)

    def drain_events(self) -> Sequence[EngineEvent | StreamOpened]:
        return [self.wire.note(parse_event(raw)) for raw in self._native.drain_events()]

    def admit(
        self,
        *,
        run_id: bytes,
        incarnation: int,
        secret: bytes,
        generation: int,
        host: str,
        port: int,
        heartbeat_s: float,
        lease_s: float,
    ) -> None:
        self._call(
            self._native.admit,
            run_id=run_id,
            incarnation=incarnation,
            secret=secret,
            generation=generation,
            host=host,
            port=port,
            heartbeat_s=heartbeat_s,
            lease_s=lease_s,
        )

    def prepare_view(self, generation: int, epoch: int, members: Sequence[MemberTuple]) -> None:
        self._call(self._native.prepare_view, generation, epoch, members)

    def hold(self, generation: int, epoch: int) -> int:
        return int(self._call(self._native.hold, generation, epoch))

    def entry_within(self, name: str) -> int:
        return int(self._call(self._native.entry_within, name))

    def activate(
        self,
        generation: int,
        epoch: int,
        members: Sequence[MemberTuple],
        step: int,
        name: str,
        paused: int = RUNS,
    ) -> None:
        self._call(self._native.activate, generation, epoch, members, step, name, paused)

    def cancel_plan(self, generation: int, epoch: int) -> None:
        self._call(self._native.cancel_plan, generation, epoch)

    def install(
        self,
        generation: int,
        epoch: int,
        members: Sequence[MemberTuple],
        paused: int,
        committed_below: int,
        decisions: Sequence[DecisionTuple],
    ) -> None:
        self._call(
            self._native.install, generation, epoch, members, paused, committed_below, decisions
        )

    def exclude(self, generation: int, epoch: int, text: str, code: int) -> None:
        self._call(self._native.exclude, generation, epoch, text, code)

    def fail(self, code: str, text: str) -> None:
        self._call(self._native.fail, code, text)

    def view(self) -> EngineView:
        epoch, rank, generation, paused, members, groups, group = self._call(self._native.view)
        return EngineView(epoch, rank, generation, paused, tuple(members), tuple(groups), group)

    # The methods below are on the path of every step: they do without the helper.

    def begin_step(self, name: str, timeout_s: float) -> BegunStep:
        try:
            return BegunStep(*self._native.begin_step(name, timeout_s))
        except self._error_type as error:
            raise self._mapped(error, deciding=False) from error

    def post_all_reduce(
        self,
        step: int,
        tag: int,
        input_address: int,
        output_address: int,
        count: int,
        dtype: int,
        op: int,
        weight: float,
        deterministic: bool,
        algorithm: int,
        last: bool = False,
        codec: int = 0,
        left_out: bool = False,
    ) -> None:
        try:
            self._native.post_all_reduce(
                step,
                tag,
                input_address,
                output_address,
                count,
                dtype,
                op,
                weight,
                deterministic,
                algorithm,
                last,
                codec,
                left_out,
            )
        except self._error_type as error:
            raise self._mapped(error, deciding=True) from error

    def post_collective(
        self,
        step: int,
        tag: int,
        collective: int,
        input_address: int,
        output_address: int,
        count: int,
        dtype: int,
        op: int,
        weight: float,
        deterministic: bool,
        root: int | bytes,
        uneven: bool,
        send_counts: Sequence[int],
        receive_counts: Sequence[int],
        last: bool = False,
    ) -> None:
        try:
            self._native.post_collective(
                step,
                tag,
                collective,
                input_address,
                output_address,
                count,
                dtype,
                op,
                weight,
                deterministic,
                root,
                uneven,
                send_counts,
                receive_counts,
                last,
            )
        except self._error_type as error:
            raise self._mapped(error, deciding=True) from error

    def seal(self, step: int) -> None:
        try:
            self._native.seal(step)
        except self._error_type as error:
            raise self._mapped(error, deciding=True) from error

    def wait_step(self, step: int, timeout_s: float) -> bool:
        try:
            return bool(self._native.wait_step(step, timeout_s))
        except self._error_type as error:
            raise self._mapped(error, deciding=True) from error

    def step_result(self, step: int) -> StepResult:
        try:
            state, epoch, retries, peers, groups, wire_bytes, code, text = self._native.step_result(
                step
            )
        except self._error_type as error:
            raise self._mapped(error, deciding=True) from error
        return StepResult(
            state, epoch, retries, tuple(peers), tuple(groups), wire_bytes, code, text
        )

    def release_step(self, step: int) -> None:
        try:
            self._native.release_step(step)
        except self._error_type as error:
            raise self._mapped(error, deciding=False) from error

    def propose_failure(self, step: int, code: int, text: str, after_s: float = 0.0) -> None:
        self._call(self._native.propose_failure, step, code, text, after_s)

    def set_notify(self, step: int) -> None:
        self._call(self._native.set_notify, step)

    def stats(self) -> dict[str, int]:
        return dict(self._call(self._native.stats))

    def close(self) -> None:
        """Ends the native threads and closes every socket.  Idempotent; waits for no peer."""
        native = self._native
        if isinstance(native, _Gone):
            return
        native.close()
        self._native = _Gone(Closed)
        _alive.discard(self)

    def _call(self, function: Any, *args: Any, **named: Any) -> Any:
        try:
            return function(*args, **named)
        except self._error_type as error:
            raise self._mapped(error, deciding=False) from error

    def _mapped(self, error: Exception, *, deciding: bool) -> PcclError:
        code, text = (*map(str, error.args), "", "")[:2]
        if code == "evicted" and self.leaving:
            code = "left"  # the coordinator lets go whoever asked for it
        return error_of(code, text, deciding=deciding)

    def _forked(self) -> None:
        """In the child: forgets the native object without ever running its destructor."""
        if isinstance(self._native, _Gone):
            return
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._native))
        self._native = _Gone(Forked)


def error_of(code: str, text: str, *, deciding: bool) -> PcclError:
    """Returns the error for one of the engine's codes.

    `deciding`: a step had begun, so that a lost coordinator leaves its outcome unknown.
    """
    match code:
        case "closed":
            return Closed(text) if text else Closed()
        case "evicted":
            return Evicted(text or "the run went on without this process; connect again")
        case "left":
            return Left(text or "this process has left the run, as it had asked to")
        case "excluded":
            return Excluded(text or "the run went on without this process; it may come in again")
        case "underflow":
            return WorldTooSmall(text or "the view has fewer members than min_world")
        case "coordinator_lost":
            lost = text or "no coordinator for longer than the grace period; connect again"
            return OutcomeUnknown(lost) if deciding else CoordinatorLost(lost)
        case "memory":
            return OutOfMemory(text or "this process has no memory left")
        case "timeout":
            return DeadlineExceeded(text or "the time for this call ran out")
        case "usage":
            return UsageError(text)
        case "forked":
            return Forked()
        case "refused" | "protocol" | "unreachable":
            return ConnectError(text)
        case _:
            return PcclError(f"{code}: {text}" if text else code)


_alive: weakref.WeakSet[Engine] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for engine in list(_alive):
        engine._forked()
    _alive.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
