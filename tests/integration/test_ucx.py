"""Stories of all-reduce and the other collectives over lanes that go through UCX, with its TCP.

Skipped where no libucp can be loaded; `pip install 'pccl[ucx]'` brings one.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pccl
from pccl.membership.service import CoordinatorThread
from pccl.membership.service_status import fetch_status_now
from pccl.transport.address import parse_address
from pccl.transport.ucx import libraries
from tests.integration.peer_processes import TCP_WILL_DO, Run

COLLECTIVES = Path(__file__).with_name("collective_peer.py")


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _found() -> bool:
    # In a process of its own: UCX stays in one that has loaded it.
    pid = os.fork()
    if pid == 0:
        os._exit(0 if any(map(_loads, libraries(os.environ, sys.prefix, sys.base_prefix))) else 1)
    return os.waitpid(pid, 0)[1] == 0


needs_ucx = pytest.mark.skipif(not _found(), reason="no libucp: pip install 'pccl[ucx]'")


@pytest.fixture
def over_ucx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEER_TRANSPORT", "ucx")
    monkeypatch.setenv("UCX_TLS", "tcp,self")


@needs_ucx
@pytest.mark.usefixtures("over_ucx")
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("program", ["exact", "forms"])
def test_all_reduce_over_ucx_is_exact_on_all_peers(program: str, count: int) -> None:
    with Run() as run:
        peers = run.start(program, count)
        assert all(peer.fact_with("done") for peer in peers)
        assert [peer.end() for peer in peers] == [0] * count


# The system gives no other connection one of these ports, or the rules would cut that, too.
CLOSED = """
echo 45000 60999 > /proc/sys/net/ipv4/ip_local_port_range
ip link set lo up && nft -f - <<RULES
table inet closed {
  chain in { type filter hook input priority 0; tcp dport 40000-40999 $VERDICT; }
}
RULES
exec "$PYTHON" -m pytest -q "$STORY"
"""


@needs_ucx
@pytest.mark.usefixtures("over_ucx")
@pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "ip", "nft"))),
    reason="a namespace with a firewall needs root, ip and nft",
)
@pytest.mark.parametrize("verdict", ["drop", "reject with tcp reset"])
def test_where_the_ports_of_ucx_are_closed_all_goes_on_by_tcp(verdict: str) -> None:
    story = f"{__file__}::test_all_reduce_over_ucx_is_exact_on_all_peers[exact-2]"
    told = {
        "UCX_TCP_PORT_RANGE": "40000-40999",
        "VERDICT": verdict,
        "PYTHON": sys.executable,
        "STORY": story,
        TCP_WILL_DO: "1",
    }
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", CLOSED],
        env=os.environ | told,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


@needs_ucx
@pytest.mark.usefixtures("over_ucx")
def test_the_status_of_the_run_shows_what_ucx_chose_and_want_of_rdma_is_said_once() -> None:
    with Run() as run:
        peers = run.start("loop", 2)
        for peer in peers:
            peer.until("contributors", 2)
        address = parse_address(run.address)
        patience_s = time.monotonic() + 10
        shown: list[Any] = []
        while time.monotonic() < patience_s and not (shown and all(shown)):
            document = fetch_status_now([address], timeout_s=5)
            shown = [row["ucx"] for row in document["members"]]
        assert len(shown) == 2 and all(text.startswith("tcp/lo") for text in shown)
        peers[0].ask_to_end()
        assert [peer.end() for peer in peers] == [0, 0]
        for peer in peers:
            assert peer.errors().count("found no RDMA and moves the lanes' bytes by tcp/lo") == 1


@needs_ucx
def test_large_payloads_within_a_machine_go_through_memory_beside_ucx(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp,self")
    monkeypatch.setenv("PEER_TRANSPORT", "ucx and memory")
    with Run() as run:
        peers = run.start("exact", 3)
        assert all(peer.fact_with("done") for peer in peers)
        assert [peer.end() for peer in peers] == [0, 0, 0]
        assert all("found no RDMA" in peer.errors() for peer in peers)


@needs_ucx
@pytest.mark.usefixtures("over_ucx")
@pytest.mark.parametrize("count", [2, 4])
def test_when_a_peer_is_killed_the_others_go_on_over_ucx(count: int) -> None:
    with Run() as run:
        peers = run.start("loop", count)
        for peer in peers:
            peer.until("contributors", count)
        killed_s = time.monotonic()
        peers[1].send(signal.SIGKILL)
        survivors = [peers[0], *peers[2:]]
        after = [peer.until("contributors", count - 1) for peer in survivors]
        assert time.monotonic() - killed_s < 3.0  # the lease, which connection death must beat
        assert len({fact["step"] for fact in after}) == 1
        survivors[0].ask_to_end()
        assert [peer.end() for peer in survivors] == [0] * (count - 1)


@needs_ucx
@pytest.mark.usefixtures("over_ucx")
def test_a_stopped_peer_is_left_out_over_ucx() -> None:
    with Run() as run:
        peers = run.start("loop", 3)
        for peer in peers:
            peer.until("contributors", 3)
        peers[2].send(signal.SIGSTOP)
        after = [peer.until("contributors", 2) for peer in peers[:2]]
        assert len({fact["step"] for fact in after}) == 1
        peers[0].ask_to_end()
        assert [peer.end() for peer in peers[:2]] == [0, 0]


@needs_ucx
@pytest.mark.usefixtures("over_ucx")
def test_a_newcomer_joins_a_loop_over_ucx_and_aborts_nothing() -> None:
    with Run() as run:
        first = run.start("loop", 2)
        for peer in first:
            peer.until("contributors", 2)
        newcomer = run.start_newcomer("loop")
        facts = [peer.until("contributors", 3) for peer in [newcomer, *first]]
        assert [fact["retries"] for fact in facts] == [0, 0, 0]
        newcomer.ask_to_end()
        assert [peer.end() for peer in run.peers] == [0, 0, 0]


@needs_ucx
def test_peers_of_both_kinds_do_together_over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp,self")
    with Run() as run:
        plain = run.start_one("exact", 0, 3)
        monkeypatch.setenv("PEER_TRANSPORT", "ucx")
        others = [run.start_one("exact", index, 3) for index in (1, 2)]
        assert all(peer.fact_with("done") for peer in [plain, *others])
        assert [peer.end() for peer in run.peers] == [0, 0, 0]
        assert "stay on TCP" in others[0].errors()
        assert "found no RDMA and moves the lanes' bytes by" in others[0].errors()


def test_without_a_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PCCL_UCX_LIB", str(tmp_path / "none.so"))
    coordinator = CoordinatorThread()
    coordinator.start()
    try:
        with pytest.raises(pccl.ConnectError, match=r"pip install 'pccl\[ucx\]'.*none\.so"):
            pccl.connect(coordinator.address, transport="ucx", timeout_s=5)
        with pccl.connect(coordinator.address, timeout_s=10) as comm:
            assert comm.all_reduce(np.ones(3)).contributors
    finally:
        coordinator.stop()


def test_a_transport_that_is_none_is_refused() -> None:
    with pytest.raises(pccl.UsageError, match="'tcp' or 'ucx'"):
        pccl.connect("127.0.0.1:1", transport="carrier pigeon")  # type: ignore[arg-type]
