"""The demo's parent: starts the coordinator and the peers, kills one, and sees to it that all end.

The shell around `story`: it owns the processes, their pipes and the clock, and decides nothing.
Invariants: every child is ended before `run_demo` returns or raises, by SIGKILL if it does not end
when asked; a child outlives the parent in no case (`child`); every wait here has a deadline.
"""

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, assert_never

from pccl.demo.events import GO, LINE_BYTES_MAX, Event, Exited, parse_event
from pccl.demo.methods import last_join_at
from pccl.demo.peer_config import ModelShape, PeerConfig
from pccl.demo.story import Effect, End, Go, Kill, Launch, Plan, Story

HOST = "127.0.0.1"
COORDINATOR_WAIT_S = 30.0
COORDINATOR_TRIES = 3  # another program may take the free port in the moment between
ASKED_TO_END_WAIT_S = 3.0
POLL_S = 0.1
LOG_TAIL_BYTES = 4096
EVENTS_QUEUED_MAX = 1024  # a full queue stops the readers, and so the peers


class SetUpFailed(Exception):
    """The run could not begin; the text says what to do about it."""


class View(Protocol):
    """Shows the story while it happens."""

    def update(self, story: Story, children: "Children", now_s: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """All that a run of the demo depends on."""

    plan: Plan
    out: Path
    seed: int
    rows: int
    least_step_s: float
    shape: ModelShape
    method: str = "ddp"

    def __post_init__(self) -> None:
        steps, at = self.plan.steps, self.plan.join_at
        last = last_join_at(self.method, steps, self.shape.layers)
        if at is not None and at > last:
            raise ValueError(
                f"--join-at is {at}: after {last} of {steps} reductions nobody can have "
                "a part in the run any more; choose an earlier one, more --steps or --no-join"
            )

    @property
    def logs(self) -> Path:
        return self.out / "logs"


class Children:
    """The child processes by name, and the events that arrive from them."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[str]] = {}
        self.inbox: queue.Queue[tuple[str, Event]] = queue.Queue(EVENTS_QUEUED_MAX)

    def start(self, name: str, arguments: list[str], *, reports: bool) -> None:
        """Starts `python -m ARGUMENTS`; what it prints is logged, except a peer's reports."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        with self.log_path(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if reports else log,
                stderr=log,
                text=True,
                env=environment,
                # Out of the terminal's foreground group: Ctrl-C is for the parent to act on.
                start_new_session=True,
            )
        self._running[name] = process
        if reports:
            assert process.stdout is not None
            reader = threading.Thread(
                target=self._read, args=(name, process, process.stdout), daemon=True
            )
            reader.start()

    def tell(self, name: str, word: str) -> None:
        """Writes one line to the child; one that is gone does not hear it."""
        pipe = self._running[name].stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):  # its exit is on the way through the inbox
            pipe.write(f"{word}\n")
            pipe.flush()

    def kill(self, name: str) -> None:
        self._running[name].kill()

    def exit_code(self, name: str) -> int | None:
        """Returns the child's exit code, or None while it runs."""
        return self._running[name].poll()

    def pid(self, name: str) -> int | None:
        process = self._running.get(name)
        return None if process is None else process.pid

    def log_path(self, name: str) -> Path:
        return self._logs / f"{name.replace(' ', '-')}.log"

    def log_tail(self, name: str) -> str:
        """Returns the end of what the child logged, or an empty text."""
        try:
            return self.log_path(name).read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            return ""

    def end_all(self) -> None:
        """Ends every child that still runs: asks first, then kills."""
        for process in self._running.values():
            if process.poll() is None:
                process.terminate()
        deadline_s = time.monotonic() + ASKED_TO_END_WAIT_S
        for process in self._running.values():
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(ASKED_TO_END_WAIT_S)
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()

    def _read(self, name: str, process: subprocess.Popen[str], pipe: IO[str]) -> None:
        with pipe, self.log_path(name).open("ab") as log:
            while line := pipe.readline(LINE_BYTES_MAX):
                try:
                    event = parse_event(line)
                except ValueError as error:
                    log.write(f"[parent] not an event ({error}): {line[:200]!r}\n".encode())
                    log.flush()
                else:
                    self.inbox.put((name, event))
        self.inbox.put((name, Exited(process.wait())))


class Demo:
    """One run.  Use it as a context manager: leaving it ends all children."""

    def __init__(self, config: DemoConfig) -> None:
        self.config = config
        self.story = Story(config.plan)
        self.children = Children(config.logs)
        self.seconds = 0.0
        self._address = ""
        self._coordinator = "coordinator"

    def __enter__(self) -> "Demo":
        return self

    def __exit__(self, *_: object) -> None:
        self.children.end_all()

    def run(self, view: View) -> Story:
        """Runs the story to its end and returns it, problems and all.

        Raises:
            SetUpFailed: the folder cannot be written, or the coordinator did not start.
        """
        self._prepare_folder()
        self._start_coordinator()
        begin_s = time.monotonic()
        self._perform(self.story.start(0.0))
        while not self.story.over:
            try:
                said = self.children.inbox.get(timeout=POLL_S)
            except queue.Empty:
                said = None
            self.seconds = time.monotonic() - begin_s
            if said is not None:
                self._perform(self.story.handle(*said, self.seconds))
            if (code := self.children.exit_code(self._coordinator)) is not None:
                self._perform(self.story.on_coordinator_exit(code, self.seconds))
            self._perform(self.story.on_deadline(self.seconds))
            view.update(self.story, self.children, self.seconds)
        return self.story

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Launch():
                    config = self._peer_config(effect)
                    arguments = ["pccl.demo.train", config.to_json()]
                    self.children.start(effect.peer, arguments, reports=True)
                case Go():
                    self.children.tell(effect.peer, GO)
                case Kill():
                    self.children.kill(effect.peer)
                case End():
                    self.children.end_all()
                case _:
                    assert_never(effect)

    def _peer_config(self, launch: Launch) -> PeerConfig:
        config = self.config
        return PeerConfig(
            coordinator=self._address,
            shard=launch.shard,
            shards=config.plan.shards,
            founders=config.plan.peers,
            joining=launch.joining,
            newcomers=int(config.plan.join_at is not None),
            steps=config.plan.steps,
            rows=config.rows,
            seed=config.seed,
            least_step_s=config.least_step_s,
            shape=config.shape,
            method=config.method,
        )

    def _prepare_folder(self) -> None:
        try:
            self.config.logs.mkdir(parents=True, exist_ok=True)
            for old in self.config.logs.glob("*.log"):
                old.unlink()
        except OSError as error:
            raise SetUpFailed(f"cannot write to {self.config.out}: {error}; see --out") from error

    def _start_coordinator(self) -> None:
        for _ in range(COORDINATOR_TRIES):
            port = _free_port()
            self._address = f"{HOST}:{port}"
            arguments = ["pccl.demo.child", "coordinator", "--listen", self._address]
            self.children.start(self._coordinator, arguments, reports=False)
            if self._coordinator_answers(port):
                return
        tail = self.children.log_tail(self._coordinator).strip() or "it logged nothing"
        raise SetUpFailed(f"the coordinator did not start:\n{tail}")

    def _coordinator_answers(self, port: int) -> bool:
        """Waits until the coordinator accepts connections; False if it ended instead."""
        deadline_s = time.monotonic() + COORDINATOR_WAIT_S
        while self.children.exit_code(self._coordinator) is None:
            try:
                socket.create_connection((HOST, port), timeout=1.0).close()
                return True
            except OSError:
                if time.monotonic() > deadline_s:
                    raise SetUpFailed(
                        f"the coordinator does not answer at {HOST}:{port} after "
                        f"{COORDINATOR_WAIT_S:.0f} s"
                    ) from None
                time.sleep(0.05)
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
