"""Hosts behind NATs and a public one, as network namespaces, and an ear at the public one.

    host 192.168.N.2 --- router N (masquerades, lets nothing in) 10.78.0.1N --- public 10.78.0.1

Nobody outside a router has a way to its host: neither a route nor a hole.  All names begin with
`pccl-nat-` and the pid of who made them; leaving the context removes them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.churn.namespaces import ip

PUBLIC_ADDRESS = "10.78.0.1"
PORT = 48148
ROUTER = """
table ip nat {
  chain post { type nat hook postrouting priority 100; oifname "outside" masquerade; }
}
table ip filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname "inside" accept
  }
  chain input {
    type filter hook input priority 0; policy drop;
    ct state established,related accept
  }
}
"""
EAR = """
import socket, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 20)
with open(sys.argv[1], "wb", buffering=0) as file:
    print("listens", flush=True)
    while True:
        file.write(sock.recv(1 << 16))
"""


class Nats:
    """One public host, and so many behind a NAT each."""

    def __init__(self, hidden: int) -> None:
        self._prefix = f"pccl-nat-{os.getpid()}"
        self._hidden = hidden
        self._names: list[str] = []
        self._ear: subprocess.Popen[str] | None = None

    @property
    def public(self) -> list[str]:
        """What to put before a command that is to run on the public host."""
        return self._within("public")

    def behind(self, number: int) -> list[str]:
        """The same for a host behind a NAT, from 0 on."""
        return self._within(f"host{number}")

    def listen(self, file: Path) -> None:
        """Writes all that passes the public host to a file from now on."""
        command = [*self.public, sys.executable, "-c", EAR, str(file)]
        self._ear = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._ear.stdout is not None and self._ear.stdout.readline() == "listens\n"

    def __enter__(self) -> Self:
        try:
            self._make()
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

    def _within(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", f"{self._prefix}-{name}"]

    def _add(self, name: str) -> str:
        full = f"{self._prefix}-{name}"
        ip("netns", "add", full)
        self._names.append(full)
        ip("-n", full, "link", "set", "lo", "up")
        return full

    def _make(self) -> None:
        public = self._add("public")
        ip("-n", public, "link", "add", "hub", "type", "bridge")
        ip("-n", public, "addr", "add", f"{PUBLIC_ADDRESS}/24", "dev", "hub")
        ip("-n", public, "link", "set", "hub", "up")
        for n in range(self._hidden):
            router, host = self._add(f"router{n}"), self._add(f"host{n}")
            self._wire(router, "outside", public, f"port{n}")
            ip("-n", public, "link", "set", f"port{n}", "master", "hub")
            self._wire(router, "inside", host, "eth0")
            ip("-n", router, "addr", "add", f"10.78.0.{10 + n}/24", "dev", "outside")
            ip("-n", router, "addr", "add", f"192.168.{n}.1/24", "dev", "inside")
            ip("-n", host, "addr", "add", f"192.168.{n}.2/24", "dev", "eth0")
            ip("-n", host, "route", "add", "default", "via", f"192.168.{n}.1")
            self._run(router, ["nft", "-f", "-"], ROUTER)
            self._run(router, ["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"], "")

    def _wire(self, one: str, here: str, other: str, there: str) -> None:
        ip("-n", one, "link", "add", here, "type", "veth", "peer", "name", there, "netns", other)
        ip("-n", one, "link", "set", here, "up")
        ip("-n", other, "link", "set", there, "up")

    def _run(self, name: str, command: list[str], said: str) -> None:
        full = ["ip", "netns", "exec", name, *command]
        done = subprocess.run(full, input=said, capture_output=True, text=True, timeout=20)
        if done.returncode != 0:
            raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")

    def _remove(self) -> None:
        if self._ear is not None:
            self._ear.kill()
            self._ear.wait(20)
            assert self._ear.stdout is not None
            self._ear.stdout.close()
        for name in reversed(self._names):
            with contextlib.suppress(OSError):
                ip("netns", "del", name)
