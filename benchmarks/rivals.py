"""The ranks of what pccl is measured against: `python benchmarks/rivals.py NAME RANK WORLD DOOR`.

gloo and Open MPI do the same all-reduce on the same kind of array; loopback and memcpy are the
machine's own limits, to which rates are put in relation.  Under mpirun RANK is `-`.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from pccl.bench.rank_program import AllReduce, Contender, WrongResult, run_as_main

TRANSFER_BYTES: Final = 64 << 20
SEND_BYTES: Final = 512 << 10  # smaller sends cost the sender more CPU for each byte
RECEIVE_BYTES: Final = 1 << 20
CONNECT_S: Final = 60.0
RIVAL_S: Final = 120.0


class Gloo(AllReduce):
    """torch.distributed's gloo over loopback; in place, as it has no other form."""

    def __init__(self, rank: int, world: int, folder: Path) -> None:
        super().__init__(rank, world)
        import datetime

        import torch
        import torch.distributed as dist

        self._torch, self._dist = torch, dist
        self._tensors: dict[int, Any] = {}
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'gloo.store'}",
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=RIVAL_S),
        )

    def prepare(self, order: Mapping[str, Any]) -> None:
        self._tensors.clear()
        super().prepare(order)

    def reduce(self, array: Any, out: Any, op: str) -> None:
        tensor = self._tensors.get(id(array))
        if tensor is None:
            tensor = self._tensors[id(array)] = self._torch.from_numpy(array)
        self._dist.all_reduce(tensor)

    def close(self) -> None:
        self._dist.destroy_process_group()


class OpenMpi(AllReduce):
    """Allreduce with MPI.IN_PLACE; which transports there are is mpirun's business."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._world = MPI.COMM_WORLD
        super().__init__(self._world.Get_rank(), self._world.Get_size())

    def reduce(self, array: Any, out: Any, op: str) -> None:
        self._world.Allreduce(self._mpi.IN_PLACE, array)


class Loopback:
    """Rank 0 sends, rank 1 receives into its buffer, one TCP connection; one byte confirms."""

    def __init__(self, rank: int, folder: Path) -> None:
        self._rank = rank
        self._buffer = bytearray(TRANSFER_BYTES)
        meeting = folder / "loopback.port"
        if rank == 0:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                unfinished = meeting.with_suffix(".new")
                unfinished.write_text(str(listener.getsockname()[1]))
                unfinished.rename(meeting)
                listener.settimeout(CONNECT_S)
                self._link, _ = listener.accept()
        else:
            self._link = socket.create_connection(("127.0.0.1", _port(meeting)), CONNECT_S)
        self._link.settimeout(RIVAL_S)
        self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # What pccl uses between processes of one host; the reference must not be the slower one.
        with contextlib.suppress(OSError):
            self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")

    def prepare(self, order: Mapping[str, Any]) -> None:
        content = bytes(index * 7 % 251 for index in range(251)) * (TRANSFER_BYTES // 251)
        self._buffer[:] = (
            content.ljust(TRANSFER_BYTES, b"\1") if self._rank == 0 else (bytes(TRANSFER_BYTES))
        )
        self.once()
        if self._buffer != content.ljust(TRANSFER_BYTES, b"\1"):
            raise WrongResult("loopback changed what was sent")

    def choose(self, order: Mapping[str, Any]) -> None:
        return

    def once(self) -> None:
        view = memoryview(self._buffer)
        if self._rank == 0:
            for first in range(0, TRANSFER_BYTES, SEND_BYTES):
                self._link.sendall(view[first : first + SEND_BYTES])
            self._link.recv(1)
            return
        done = 0
        while done < TRANSFER_BYTES:
            received = self._link.recv_into(view[done : done + RECEIVE_BYTES])
            if not received:
                raise ConnectionError("the sender has hung up")
            done += received
        self._link.sendall(b"!")

    def notes(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self._link.close()


class Memcpy:
    """Copies memory to memory."""

    def __init__(self) -> None:
        self._source = np.arange(TRANSFER_BYTES // 4, dtype=np.float32)
        self._target = np.ones_like(self._source)

    def prepare(self, order: Mapping[str, Any]) -> None:
        self._target[:] = 1
        self.once()
        if not np.array_equal(self._target, self._source):
            raise WrongResult("memcpy changed what it copied")

    def choose(self, order: Mapping[str, Any]) -> None:
        return

    def once(self) -> None:
        ctypes.memmove(self._target.ctypes.data, self._source.ctypes.data, TRANSFER_BYTES)

    def notes(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        return


def _port(meeting: Path) -> int:
    deadline_s = time.monotonic() + CONNECT_S
    while not meeting.exists():
        if time.monotonic() > deadline_s:
            raise TimeoutError("the sender did not start")
        time.sleep(0.02)
    return int(meeting.read_text())


def main() -> None:
    name, rank_text, world, door = sys.argv[1:]
    folder = Path(door).parent
    if name == "openmpi":
        mpi = OpenMpi()  # knows its rank only now
        run_as_main(lambda: mpi, mpi.rank, door)
    rank = int(rank_text)
    makers: dict[str, Callable[[], Contender]] = {
        "gloo": lambda: Gloo(rank, int(world), folder),
        "loopback": lambda: Loopback(rank, folder),
        "memcpy": Memcpy,
    }
    run_as_main(makers[name], rank, door)


if __name__ == "__main__":
    main()
