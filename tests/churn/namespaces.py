"""Network namespaces as hosts, joined by a bridge or by the link emulator; made and removed here.

All names begin with `pccl-churn-` and the pid of the harness.  Whatever becomes of the harness,
nothing stays for good: processes have a death signal, and the next run removes the namespaces and
cgroups of harnesses that no longer live, and those of nobody else.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tests.churn.compiled import compiled
from tests.churn.hosts import DIE_TOGETHER, Namespace, Places
from tests.churn.rules import EMULATED, LinkFault, LinkQuality, emulator_commands, nft_rules

PREFIX = "pccl-churn-"
NAMESPACES = Path("/run/netns")
SUBNET = "10.77.0"
DEVICE = "eth0"  # of a host, in its namespace
COORDINATOR = "coord"
EMULATOR_SOURCE = Path(__file__).with_name("emulator.cpp")
READY_S = 20.0


def why_not() -> str | None:
    """Returns what namespaces lack here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root; as another user: --fabric none"
    for tool in ("ip", "nft", "nsenter", "setpriv"):
        if shutil.which(tool) is None:
            return f"no {tool} here (Debian: apt install iproute2 nftables util-linux)"
    try:
        ip("netns", "add", f"{PREFIX}{os.getpid()}-try")
        ip("netns", "del", f"{PREFIX}{os.getpid()}-try")
    except OSError as error:
        return f"network namespaces cannot be made here: {error}"
    return None


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=READY_S)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Links(Protocol):
    """The network between the hosts, to which faults can be done."""

    kinds: frozenset[str]

    def apply(self, faults: Sequence[LinkFault]) -> None:
        """Makes exactly these faults those in force."""


class FilteredLinks:
    """Links that only nft can disturb: of a bridge, or of real hosts where that is allowed."""

    def __init__(self, places: Places) -> None:
        self._hosts = {host.name: host for host in (places.coordinator, *places.hosts)}
        self._addresses = {name: (host.address,) for name, host in self._hosts.items()}
        self._told: dict[str, str] = {}
        able = all(host.filters for host in self._hosts.values())
        self.kinds = frozenset({"cut", "reset", "loss"}) if able else frozenset()

    def apply(self, faults: Sequence[LinkFault]) -> None:
        for name, host in self._hosts.items():
            rules = nft_rules(name, faults, self._addresses)
            # A host that was never disturbed needs no word.
            if host.filters and self._told.get(name, nft_rules(name, (), {})) != rules:
                host.filter(rules)
                self._told[name] = rules


class EmulatedLinks:
    """Links of the emulator; connections are reset by nft, everything else by the emulator."""

    kinds = frozenset({"cut", "reset", "loss"}) | EMULATED

    def __init__(
        self, places: Places, process: subprocess.Popen[bytes], quality: LinkQuality
    ) -> None:
        self._names = [host.name for host in (places.coordinator, *places.hosts)]
        self._resets = FilteredLinks(places)
        self._process = process
        self._told: dict[tuple[int, int], str] = {}
        self.quality = quality
        self.apply([])

    def apply(self, faults: Sequence[LinkFault]) -> None:
        self._resets.apply([fault for fault in faults if fault.kind == "reset"])
        rest = [fault for fault in faults if fault.kind != "reset"]
        wanted = emulator_commands(self._names, rest, self.quality)
        new = [command for link, command in wanted.items() if self._told.get(link) != command]
        self._told = wanted
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{command}\n" for command in new).encode())
        self._process.stdin.flush()


class Laboratory:
    """Use as a context manager; `places` and `links` exist within.

    Args:
        fabric: "veth" (a bridge, fast) or "emulator" (delay, loss and rates).
        folder: for what the emulator complains of.
    """

    def __init__(
        self, fabric: str, hosts: int, folder: Path, *, quality: LinkQuality, seed: int = 1
    ) -> None:
        self._fabric = fabric
        self._folder = folder
        self._quality = quality
        self._seed = seed
        self._own = f"{PREFIX}{os.getpid()}-"
        self._emulator: subprocess.Popen[bytes] | None = None
        names = [COORDINATOR, *(f"h{i}" for i in range(hosts))]
        made = [
            Namespace(
                name=name,
                address=f"{SUBNET}.{i + 1}",
                namespace=f"{self._own}{name}",
                cgroup=_cgroup(f"{self._own}{name}"),
            )
            for i, name in enumerate(names)
        ]
        self.places = Places(made[0], tuple(made[1:]))
        self._made = made
        self.links: Links

    def __enter__(self) -> Self:
        remove_leftovers()
        try:
            for host in self._made:
                ip("netns", "add", host.namespace)
                ip("-n", host.namespace, "link", "set", "lo", "up")
            if self._fabric == "veth":
                self._join_by_bridge()
                self.links = FilteredLinks(self.places)
            else:
                self._emulator = self._start_emulator()
                self.links = EmulatedLinks(self.places, self._emulator, self._quality)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def _join_by_bridge(self) -> None:
        switch = f"{self._own}switch"
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for i, host in enumerate(self._made):
            port = f"p{i}"
            ip("-n", switch, "link", "add", port, "type", "veth",
               "peer", "name", DEVICE, "netns", host.namespace)  # fmt: skip
            ip("-n", switch, "link", "set", port, "master", "br0", "up")
            self._address(host, DEVICE)
            if self._quality.rate_mbit:
                rate = f"{self._quality.rate_mbit:g}mbit"
                host.run(["tc", "qdisc", "add", "dev", DEVICE, "root", "tbf", "rate", rate,
                          "burst", "128kb", "latency", "100ms"])  # fmt: skip

    def _start_emulator(self) -> subprocess.Popen[bytes]:
        program = compiled(EMULATOR_SOURCE, "emulator")
        devices = [f"pc{os.getpid()}-{i}" for i in range(len(self._made))]
        with (self._folder / "emulator.err").open("wb") as errors:
            process = subprocess.Popen(
                [*DIE_TOGETHER, str(program), "--seed", str(self._seed % (1 << 32)), *devices],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise OSError((self._folder / "emulator.err").read_text())
        for host, device in zip(self._made, devices, strict=True):
            # One name on all fabrics, and one that the machine has: UCX looks for devices in /sys,
            # which is still the machine's.
            ip("link", "set", device, "netns", host.namespace, "name", DEVICE)
            self._address(host, DEVICE)
        return process

    def _address(self, host: Namespace, device: str) -> None:
        ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", device)
        ip("-n", host.namespace, "link", "set", device, "txqueuelen", "1000", "up")

    def _remove(self) -> None:
        if self._emulator is not None:
            self._emulator.kill()
            self._emulator.wait(READY_S)
            for pipe in (self._emulator.stdin, self._emulator.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
        _remove_named(self._own)


def remove_leftovers() -> None:
    """Removes what harnesses left that no longer live."""
    names = {path.name for path in NAMESPACES.glob(f"{PREFIX}*")}
    root = _cgroup_root()
    if root is not None:
        names |= {path.name for path in root.glob(f"{PREFIX}*")}
    for name in names:
        owner = name.removeprefix(PREFIX).partition("-")[0]
        if not (owner.isdigit() and Path(f"/proc/{owner}").exists()):
            _remove_named(f"{PREFIX}{owner}-")


def _remove_named(prefix: str) -> None:
    for path in NAMESPACES.glob(f"{prefix}*"):
        done = subprocess.run(
            ["ip", "netns", "pids", path.name], capture_output=True, text=True, timeout=READY_S
        )
        for pid in done.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        with suppress(OSError):
            ip("netns", "del", path.name)
    root = _cgroup_root()
    for group in root.glob(f"{prefix}*") if root is not None else ():
        with suppress(OSError):
            (group / "cgroup.kill").write_text("1\n")
        with suppress(OSError):  # processes that are just ending: the next run removes it
            group.rmdir()


def _cgroup_root() -> Path | None:
    """Where the unified hierarchy is mounted, if its groups can be made and frozen by us."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(folder, os.W_OK):
            return Path(folder)
    return None


def _cgroup(name: str) -> Path | None:
    root = _cgroup_root()
    if root is None:
        return None
    try:
        (root / name).mkdir(exist_ok=True)
        usable = (root / name / "cgroup.freeze").exists()
    except OSError:
        return None
    return root / name if usable else None
