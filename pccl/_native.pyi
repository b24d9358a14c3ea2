"""The native core.  Buffers are given as addresses: the caller keeps their memory alive.

Numbers that cross this border:
    dtype      f64 0, f32 1, f16 2, bf16 3, i8 4, u8 5, i16 6, u16 7, i32 8, u32 9, i64 10, u64 11,
               bool 12, c64 13, c128 14, f8_e4m3fn 15, f8_e5m2 16, f8_e4m3fnuz 17, f8_e5m2fnuz 18,
               f8_e8m0fnu 19
    op         sum 0, avg 1, prod 2, min 3, max 4
    algorithm  automatic 0, exchange 1, direct 2, ring 3
    codec      none 0, else kind + 256 * log2(block) + 65536 if stochastic; int8 1, int4 2, fp8 3
Members cross as tuples (peer_id, incarnation, secret, host, port, host_key, first_step, group),
decisions as tuples (step, outcome, code, text) with outcome 1 COMMIT, 2 RETRY, 3 FAIL.
"""

from collections.abc import Sequence
from typing import Any

class Engine:
    """Lanes, steps and the control thread of this process; reached through transport/engine.py."""

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
        tls: tuple[bytes, bytes, bytes] | None = None,
        ucx_libraries: Sequence[str] = [],
    ) -> None:
        """Starts to listen.  `lanes=0` chooses; OSError if the port cannot be bound."""

    @property
    def port(self) -> int: ...
    @property
    def event_fd(self) -> int:
        """Readable while `drain_events` has something to give."""

    def set_tls(self, certificate_pem: bytes, key_pem: bytes, ca_pem: bytes) -> None: ...
    def drain_events(self) -> list[tuple[Any, ...]]: ...
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
        """Starts, or on re-attaching restarts, the native connection to the coordinator.

        `host` is a literal address.
        """

    def prepare_view(self, generation: int, epoch: int, members: Sequence[tuple[Any, ...]]) -> None:
        """Opens links in the background; a links_up or links_failed event follows."""

    def hold(self, generation: int, epoch: int) -> int:
        """Returns the step from which this process promises to start none."""

    def entry_within(self, name: str) -> int:
        """Returns within how many steps it is expected to begin one of that name; 0: not at all."""

    def activate(
        self,
        generation: int,
        epoch: int,
        members: Sequence[tuple[Any, ...]],
        step: int,
        name: str,
        paused: int = 0,
    ) -> None:
        """Switches at the first step >= `step` of that name; "" is any name.  `paused` is as in
        `install`, for the view that begins.

        Without this process among the members, that step and all later ones are not for it: a left
        event follows, and `begin_step` fails with code left.
        """

    def cancel_plan(self, generation: int, epoch: int) -> None: ...
    def install(
        self,
        generation: int,
        epoch: int,
        members: Sequence[tuple[Any, ...]],
        paused: int,
        committed_below: int,
        decisions: Sequence[tuple[int, int, int, str]],
    ) -> None:
        """`paused`: 0 runs, 1 waits at the gate, 2 `begin_step` fails with code underflow."""

    def exclude(self, generation: int, epoch: int, text: str, code: int) -> None:
        """Back among the learners: open steps are undone and fail with `code`, a later install as a
        newcomer lets it in again.  Without an open step the next `begin_step` fails with code
        excluded, once."""

    def fail(self, code: str, text: str) -> None:
        """Ends every present and later wait with (code, text)."""

    def view(self) -> tuple[int, int, int, bool, list[bytes], list[int], int]:
        """Returns epoch, rank in the own group (-1: not a member), generation, paused; then for all
        groups, in order, the members' ids and their groups; and the own group."""

    def begin_step(self, name: str, timeout_s: float) -> tuple[int, int, int, int]:
        """Waits at the gate; returns step, epoch, rank, world size."""

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
    ) -> None: ...
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
    ) -> None: ...
    def seal(self, step: int) -> None: ...
    def wait_step(self, step: int, timeout_s: float) -> bool:
        """Waits for the decision without the GIL; False when the time ran out first.

        Drives the reactor meanwhile, and looks for signals about every 50 ms.
        """

    def step_result(self, step: int) -> tuple[int, int, int, list[bytes], list[int], int, int, str]:
        """Returns state, epoch, retries, contributors, groups, wire bytes, code, text.

        State is 0 open, 1 committed, 2 failed.
        """

    def release_step(self, step: int) -> None:
        """Forgets a decided step: its buffers may go."""

    def propose_failure(self, step: int, code: int, text: str, after_s: float = 0.0) -> None:
        """Tells the coordinator of a passed deadline or a local error.

        With `after_s` the control thread does so then, and with each heartbeat while the step is
        open, whether this process runs Python or not; the newest such call counts, and one of code
        0 takes it back.
        """

    def set_notify(self, step: int) -> None:
        """Queues a ("decided", step) event when the step is decided."""

    def post_letter(
        self,
        sends: bool,
        peer: int | bytes,
        tag: int,
        address: int,
        count: int,
        dtype: int,
        timeout_s: float,
    ) -> int:
        """Sends a message, or receives one, with or without waiting for it: returns its number.

        `peer` is a rank of the view in force, a member's id, or, to receive from any, -1.  The
        memory is borrowed until the letter has ended, as it does when `timeout_s` is over.
        """

    def post_nothing(self, sends: bool, peer: int | bytes, tag: int, timeout_s: float) -> int:
        """Stands for a call that was refused: what the other end posts for it differs from it."""

    def wait_letter(self, letter: int, timeout_s: float) -> bool:
        """As `wait_step`: False when the time ran out and it is still open."""

    def letter_result(self, letter: int) -> tuple[int, int, bytes, int, int, str]:
        """Returns state, end, the other end's id and rank, epoch, text.

        State is 0 open, 1 done, 2 failed; end is 1 differs, 2 lost, 3 given up by the other end, 4
        late, 5 cancelled, 6 left, 7 excluded.
        """

    def cancel_letter(self, letter: int) -> None: ...
    def release_letter(self, letter: int) -> None:
        """Forgets a letter that has ended."""

    def set_letter_notify(self, letter: int) -> None:
        """Queues a ("letter", number) event when it has ended."""

    def stats(self) -> dict[str, int]: ...
    def close(self) -> None: ...

class EngineError(RuntimeError):
    """Its args are (code, text).

    Codes: closed, evicted, coordinator_lost, timeout, usage, forked, left, underflow, excluded,
    memory.
    """

class OutcomeMachine:
    """What decides a step, without I/O; simulations drive it directly.

    Its members are (peer_id, incarnation, first_step, group); effects are tuples that begin with a
    word: send_done, committed, failed, undo, start, switched, left, accuse.  A manifest or digest
    is 16 bytes.
    """

    def __init__(self, peer_id: bytes, incarnation: int) -> None: ...
    def begin(self, name_hash: int) -> tuple[int | None, list[tuple[Any, ...]]]: ...
    def bind(self, step: int) -> None: ...
    def seal(self, step: int, manifest: bytes) -> list[tuple[Any, ...]]: ...
    def complete(self, step: int, epoch: int, digest: bytes) -> list[tuple[Any, ...]]: ...
    def done(
        self, peer_id: bytes, step: int, epoch: int, manifest: bytes, digest: bytes
    ) -> list[tuple[Any, ...]]: ...
    def fence(self, generation: int, target: int) -> dict[str, Any]:
        """Freezes the epoch and returns the report."""

    def hold(self, generation: int, epoch: int) -> int: ...
    def entry_within(self, name_hash: int) -> int: ...
    def activate(
        self,
        generation: int,
        epoch: int,
        members: Sequence[tuple[bytes, int, int, int]],
        step: int,
        name_hash: int | None,
        paused: int = 0,
    ) -> list[tuple[Any, ...]]: ...
    def cancel_plan(self, generation: int, epoch: int) -> list[tuple[Any, ...]]: ...
    def install(
        self,
        generation: int,
        epoch: int,
        members: Sequence[tuple[bytes, int, int, int]],
        paused: int,
        committed_below: int,
        decisions: Sequence[tuple[int, int, int, str]],
    ) -> tuple[bool, list[tuple[Any, ...]]]: ...
    def exclude(
        self, generation: int, epoch: int, text: str, code: int
    ) -> list[tuple[Any, ...]]: ...
    def refusal(self) -> str:
        """Why `begin` will go on saying no: left, underflow, excluded (told once), or nothing."""

    def participants(self, step: int) -> list[bytes]: ...
    def newcomers_to(self, step: int) -> list[bytes]: ...
    @property
    def epoch(self) -> int: ...
    @property
    def paused(self) -> bool: ...
    @property
    def rank(self) -> int: ...
    @property
    def frozen(self) -> bool: ...
    @property
    def watermark(self) -> int: ...
    @property
    def next_step(self) -> int: ...

def coded_bytes(codec: int, count: int) -> int: ...
def encode(codec: int, out_address: int, in_address: int, count: int, seed: int = 0) -> None:
    """Quantises `count` f32; `seed` counts if the codec is stochastic."""

def decode(codec: int, out_address: int, in_address: int, count: int) -> None:
    """Makes f32 of what `encode` has made."""

def count_not_finite(dtype: int, in_address: int, count: int) -> int:
    """Counts NaN and infinities; f64, f32, f16 and bf16 only."""

def tls_library() -> tuple[str, str, str]: ...
def kernels_name() -> str: ...
def xxh3_64(data: bytes, seed: int = 0) -> int: ...
def xxh3_128_blocks(address: int, byte_count: int, block_bytes: int) -> bytes: ...
def xxh3_128(data: bytes, seed: int = 0) -> bytes: ...
def top_k(
    values: int,
    rows: int,
    columns: int,
    block_rows: int,
    block_columns: int,
    k: int,
    positions: int,
) -> None:
    """Writes, for each block of an f32 matrix, the ascending positions of its k largest
    magnitudes as u16.  ValueError if the blocks do not fill the matrix."""
