"""Who is measured, and how their ranks are started.

A form is what one line of the table shows; a group is the processes that do it.  pccl's two forms
share one group.  Invariant: between orders every group sleeps, so that one runs at a time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pccl.base.errors import UsageError
from pccl.bench.ranks import RankGroup, start_pccl
from pccl.membership.service import CoordinatorThread

RIVALS: Final = str(Path(__file__).with_name("rivals.py"))
# One thread for torch and BLAS: with more ranks than CPUs more only get in each other's way.
ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@dataclass(frozen=True, slots=True)
class Form:
    """One line of the table."""

    name: str
    group: str
    in_place: bool = True
    reference: bool = False  # moves a fixed number of bytes; the same in every cell


FORMS: Final = (
    Form("pccl", "pccl"),
    Form("pccl-out", "pccl", in_place=False),
    Form("gloo", "gloo"),
    Form("openmpi", "openmpi"),
    Form("loopback", "loopback", reference=True),
    Form("memcpy", "memcpy", reference=True),
)
NAMES: Final = tuple(form.name for form in FORMS)
MODULES: Final = {"gloo": "torch", "openmpi": "mpi4py"}


def choose_forms(names: Sequence[str]) -> tuple[Form, ...]:
    """Returns the forms of these names, in the order of the table.

    Raises:
        UsageError: there is no such form, or what it needs is not installed.
    """
    for name in names:
        if name not in NAMES:
            raise UsageError(f"no such contender: {name!r}; choose from {', '.join(NAMES)}")
        module = MODULES.get(name)
        if module is not None and importlib.util.find_spec(module) is None:
            raise UsageError(
                f"{name} needs {module}: pip install 'pccl[bench]', or leave it out with "
                "--contenders or --skip-mpi"
            )
    if "openmpi" in names:
        find_mpirun()
    return tuple(form for form in FORMS if form.name in names)


def find_mpirun() -> str:
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise UsageError(
            "no mpirun: pip install 'pccl[bench]' brings Open MPI; --skip-mpi does without"
        )
    return found


@contextlib.contextmanager
def start_groups(forms: Sequence[Form], world: int, folder: Path) -> Iterator[dict[str, RankGroup]]:
    """Yields the groups by name, all of them ready; ends them afterwards."""
    with contextlib.ExitStack() as stack:
        groups: dict[str, RankGroup] = {}
        for name in dict.fromkeys(form.group for form in forms):
            ranks = {"loopback": 2, "memcpy": 1}.get(name, world)
            # Entered first, so that it is there until its peers have left.
            coordinator = stack.enter_context(CoordinatorThread()) if name == "pccl" else None
            group = groups[name] = stack.enter_context(RankGroup(name, folder, ranks))
            if coordinator is not None:
                start_pccl(group, coordinator.address, 0)
            elif name == "openmpi":
                group.start([mpi_command(group)], ENVIRONMENT)
            else:
                tail = [str(ranks), group.door]
                group.start(
                    [[sys.executable, RIVALS, name, str(rank), *tail] for rank in range(ranks)],
                    ENVIRONMENT,
                )
        yield groups


def mpi_command(group: RankGroup) -> list[str]:
    """TCP only, on loopback only; more ranks than CPUs are allowed, and so is root."""
    options = "--allow-run-as-root --oversubscribe --mca btl tcp,self --mca btl_tcp_if_include lo"
    return [
        find_mpirun(),
        *options.split(),
        "-n",
        str(group.world),
        sys.executable,
        RIVALS,
        "openmpi",
        "-",
        str(group.world),
        group.door,
    ]
