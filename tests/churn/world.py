"""The processes of a churn run: a coordinator, peers on hosts, and spares that wait for work.

Invariant: whatever is done to a process or a link is in `faults`, from just before it was done to
just after it was undone; so what the log does not excuse, nothing excuses.
"""

from __future__ import annotations

import base64
import json
import math
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.churn import timeline
from tests.churn.hosts import Child, Host, Places, Remote
from tests.churn.namespaces import Links
from tests.churn.orders import ALL_REDUCE, Config
from tests.churn.records import Fault, History
from tests.churn.rules import LinkFault
from tests.churn.timeline import COORDINATOR_HOST, Span
from tests.faults.notes import Note

AGENT = "tests/churn/agent.py"
TELL_PID = ("sh", "-c", 'echo pid $$; exec "$@"', "sh")
# Over ssh nobody else ends it when the harness is gone, which shows in the end of its input.
TELL_PID_AND_END = (
    "sh",
    "-c",
    'exec 3<&0; (cat <&3; kill -9 $$) >/dev/null 2>&1 & echo pid $$; exec "$@" </dev/null 3<&-',
    "sh",
)
BEGINS_ANEW = "begins anew"  # as the coordinator logs it
START_S = 60.0
ORDERLY = (0, 3)  # exit codes of an agent: ended, or ended by an error that it wrote down


class Trouble(AssertionError):
    """Something is broken that no history will show."""


@dataclass(slots=True, eq=False)
class Peer:
    """One peer process."""

    name: str
    host: Host
    child: Child
    history: History
    errors: Path
    started_at: float = 0.0
    ended_at: float | None = None  # when it was killed, or seen to have ended
    killed: bool = False
    stopped: bool = False  # or frozen
    told: bool = False  # to leave or to end

    @property
    def living(self) -> bool:
        return self.ended_at is None

    @property
    def admitted(self) -> bool:
        return self.living and self.history.life is not None

    @property
    def working(self) -> bool:
        """Whether it is admitted and has had its first commit."""
        life = self.history.life
        return self.living and life is not None and bool(life.commits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What kind of run it is."""

    min_world: int = 2
    count: int = 1 << 14
    pace_s: float = 0.01
    method: str = ALL_REDUCE  # or a low-communication one
    profile: str = "lan"
    connect: tuple[tuple[str, object], ...] = ()  # further arguments of pccl.connect
    coordinator: tuple[str, ...] = ()  # further arguments of pccl coordinator


class World:
    def __init__(self, folder: Path, places: Places, links: Links | None, settings: Settings):
        self.folder = folder
        self.places = places
        self.links = links
        self.settings = settings
        self.peers: list[Peer] = []  # started, and not yet ended
        self.spares: list[Peer] = []
        self.all_peers: list[Peer] = []
        self.faults: list[Fault] = []
        self.coordinator: Child | None = None
        self.coordinator_stopped = False
        self.began_at = time.monotonic()
        self._remote_journal = ""  # its path there, if the coordinator is on another machine
        self.lineages = 0  # as the coordinator declared them until the end
        self._link_faults: dict[int, Sequence[LinkFault]] = {}  # by the number of their fault
        self._note = Note.into(folder / "nemesis.jsonl")

    @property
    def address(self) -> str:
        return f"{self.places.coordinator.address}:{self.places.port}"

    # ---- the coordinator

    def start_coordinator(self) -> None:
        host = self.places.coordinator
        journal = str(self.folder / "journal")
        remote = isinstance(host, Remote)
        if remote:
            self._remote_journal = self._remote_journal or self._make_remote_folder() + "/journal"
            journal = self._remote_journal
        told = TELL_PID_AND_END if remote else TELL_PID
        program = (host.python, "-m", "pccl", "coordinator")
        command = [
            *told, *program, "--listen", self.address, "--journal", journal,
            "--profile", self.settings.profile, "--insecure", "-v", *self.settings.coordinator,
        ]  # fmt: skip
        output = self.folder / "coordinator.out"
        with output.open("wb") as out, (self.folder / "coordinator.err").open("ab") as errors:
            child = host.spawn(command, out, errors)
        self.coordinator = child
        self.coordinator_stopped = False

    def _make_remote_folder(self) -> str:
        return self.places.coordinator.run(["mktemp", "-d", "/tmp/pccl-churn-XXXXXX"]).strip()

    def _fetch_remote_journal(self) -> None:
        """Brings the journal to the other logs, and leaves nothing behind on its host."""
        host, path, self._remote_journal = self.places.coordinator, self._remote_journal, ""
        if not path:
            return
        with suppress(OSError):  # the host is gone: then nobody can
            for tail in ("", "-wal"):
                with suppress(OSError):  # there is none
                    whole = base64.b64decode(host.run(["base64", path + tail]))
                    (self.folder / f"journal{tail}").write_bytes(whole)
            host.run(["rm", "-rf", path.rpartition("/")[0]])

    def coordinator_listens(self) -> bool:
        text = (self.folder / "coordinator.out").read_text()
        if text.startswith("pid ") and self.coordinator is not None:
            self.coordinator.pid = int(text.split()[1])
        return "listening" in text

    def kill_coordinator(self) -> Fault:
        assert self.coordinator is not None
        fault = self.open_fault("coordinator-kill")
        self.coordinator.discard()
        self.coordinator = None
        return fault

    def lineages_now(self) -> int:
        """1, and one more for each time that the coordinator found all members dead."""
        log = self.folder / "coordinator.err"
        return 1 + (log.read_text().count(BEGINS_ANEW) if log.exists() else 0)

    # ---- peers

    def prepare(self, host: Host, *, rejoin: bool = False, environment: Sequence[str] = ()) -> Peer:
        """Starts a process that imports all it needs and waits to be told to connect.

        Args:
            rejoin: it connects again by itself after it was evicted.
            environment: NAME=VALUE for it alone.
        """
        name = f"peer{len(self.all_peers):04}"
        config = Config(
            address=self.address,
            listen=host.address,
            min_world=self.settings.min_world,
            count=self.settings.count,
            pace_s=self.settings.pace_s,
            rejoin=rejoin,
            method=self.settings.method,
            connect=self.settings.connect,
        )
        history, errors = self.folder / f"{name}.jsonl", self.folder / f"{name}.err"
        with history.open("wb") as out, errors.open("wb") as err:
            command = [host.python, AGENT, json.dumps(asdict(config))]
            if environment:
                command = ["env", *environment, *command]
            child = host.spawn(command, out, err)
        peer = Peer(name, host, child, History(name, history), errors)
        self.spares.append(peer)
        self.all_peers.append(peer)
        return peer

    def start(self, peer: Peer) -> None:
        """Tells a spare to connect."""
        self.spares.remove(peer)
        self.peers.append(peer)
        peer.started_at = time.monotonic()
        peer.child.order("go")

    def ready_spares(self) -> list[Peer]:
        return [spare for spare in self.spares if spare.history.ready]

    def kill(self, victims: Sequence[Peer], kind: str = "kill") -> None:
        names = tuple(peer.name for peer in victims)
        self.close_fault(self.open_fault(kind, processes=names))
        for peer in victims:
            peer.killed = True
            peer.ended_at = time.monotonic()
            peer.child.signal(signal.SIGKILL)
        for peer in victims:
            peer.child.discard()
            self.peers.remove(peer)

    def poll(self) -> list[str]:
        """Reads all histories, takes ended processes off the list; returns what is wrong."""
        found = []
        for peer in (*self.peers, *self.spares):
            peer.history.poll()
            self._learn_pid(peer)
        for peer in [peer for peer in self.peers if peer.child.code is not None]:
            peer.history.poll()
            peer.ended_at = time.monotonic()
            self.peers.remove(peer)
            peer.child.discard()
            if peer.child.code not in ORDERLY:
                found.append(f"{peer.name} ended with code {peer.child.code}: {_end(peer.errors)}")
        for peer in [peer for peer in self.spares if peer.child.code is not None]:
            raise Trouble(f"spare {peer.name} ended: {_end(peer.errors)}")
        if self.coordinator is not None and self.coordinator.code is not None:
            text = _end(self.folder / "coordinator.err")
            raise Trouble(f"the coordinator ended with code {self.coordinator.code}: {text}")
        return found

    def _learn_pid(self, peer: Peer) -> None:
        history = peer.history
        if history.ready and history.offset_s is None:
            peer.child.pid = history.pid
            here = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            wall_minus_clock_s = time.time() - time.monotonic()
            same = history.boot == here
            history.offset_s = 0.0 if same else history.wall_minus_clock_s - wall_minus_clock_s

    # ---- faults

    def open_fault(
        self,
        kind: str,
        *,
        processes: tuple[str, ...] = (),
        hosts: tuple[str, ...] = (),
        links: Sequence[LinkFault] = (),
        text: str = "",
    ) -> Fault:
        """Writes down that something begins, and disturbs the links if it is about them."""
        fault = Fault(kind, time.monotonic(), math.inf, processes, hosts, text)
        self.faults.append(fault)
        self._note(begins=kind, processes=processes, hosts=hosts, text=text)
        if links:
            self._link_faults[id(fault)] = links
            self._apply_links()
        return fault

    def close_fault(self, fault: Fault) -> None:
        """Undoes a fault of the links, and writes down that it is over."""
        if self._link_faults.pop(id(fault), None) is not None:
            self._apply_links()
        place = next(i for i, one in enumerate(self.faults) if one is fault)
        self.faults[place] = replace(fault, until=time.monotonic())
        self._note(ends=fault.kind, processes=fault.processes, hosts=fault.hosts)

    def _apply_links(self) -> None:
        assert self.links is not None
        self.links.apply([link for links in self._link_faults.values() for link in links])

    def disturbed_hosts(self) -> set[str]:
        """Hosts on whose network a fault is now."""
        return {
            host for fault in self.faults if math.isinf(fault.until) for host in fault.hosts
        } - {COORDINATOR_HOST}

    def healthy(self) -> list[Peer]:
        """Members that work, and to which and to whose network nothing is done now."""
        disturbed = self.disturbed_hosts()
        return [
            peer
            for peer in self.peers
            if peer.working
            and not peer.stopped
            and not peer.told
            and peer.host.name not in disturbed
        ]

    # ---- what the checker needs

    def spans(self, end: float) -> list[Span]:
        """When which incarnation was there."""
        return [
            Span(
                peer.name,
                peer.host.name,
                timeline.counts_from(life),
                min(end, peer.ended_at or end, life.end_at or end),
            )
            for peer in self.all_peers
            for life in peer.history.lives
        ]

    def printed(self) -> list[str]:
        """What processes wrote to standard error, which must be nothing."""
        texts = {peer.name: peer.errors.read_text() for peer in self.all_peers}
        return [f"{name} printed: {text[:1000]}" for name, text in texts.items() if text]

    def discard_all(self) -> None:
        for peer in (*self.peers, *self.spares):
            peer.ended_at = peer.ended_at or time.monotonic()
            peer.child.signal(signal.SIGKILL)
        for peer in (*self.peers, *self.spares):
            peer.child.discard()
        if self.coordinator is not None:
            self.coordinator.discard()
        self._fetch_remote_journal()


def _end(path: Path) -> str:
    return "\n".join(path.read_text().splitlines()[-20:]) if path.exists() else ""
