"""How programs end that use a group: exit code 0, no abort, however carelessly they leave."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROLOGUE = """
    import os, sys, torch
    import torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group("pccl")
    rank = dist.get_rank()
    tensor = torch.ones(1 << 18)
    work = dist.all_reduce(tensor, async_op=True)
    future = work.get_future()
"""
ENDINGS = {
    "destroyed": "future.wait(); dist.destroy_process_group()",
    "not destroyed": "future.wait()",
    "a future in flight": "",
    "a work in flight": "dist.all_reduce(tensor, async_op=True)",
    "rank 0 first": "future.wait()\nif rank:\n    import time; time.sleep(1)",
    "rank 0 last": "future.wait()\nif not rank:\n    import time; time.sleep(1)",
    "by sys.exit": "work.wait(); sys.exit(0)",
    "mid-backward hooks": (
        "from torch.nn.parallel import DistributedDataParallel as DDP\n"
        "model = DDP(torch.nn.Linear(64, 64))\n"
        "model(torch.ones(2, 64)).sum().backward()"
    ),
}


def torchrun(program: str, folder: Path, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    file = folder / "program.py"
    file.write_text(program)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
            str(file),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("ending", list(ENDINGS))
def test_a_program_under_torchrun_ends_well(ending: str, tmp_path: Path) -> None:
    program = textwrap.dedent(PROLOGUE) + ENDINGS[ending] + "\n"
    done = torchrun(program, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "terminate called" not in done.stderr and "Fatal" not in done.stderr, done.stderr
