"""The secured quick start of README, typed as it stands, with its program in two processes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.coordinator_processes import CoordinatorProcess, free_address
from tests.security.laboratory import native_has_tls

pytestmark = pytest.mark.skipif(not native_has_tls(), reason="the native core has no TLS here")
README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
WRITTEN = "10.0.0.1:48148"  # stands for an address that all machines reach


def quick_start() -> tuple[list[list[str]], str]:
    """Returns the commands, without `pccl`, and the program."""
    chapter = README.split("### On several machines\n")[1].split("\n## ")[0]
    commands, program = re.findall(
        r"^```(?:python)?\n(.*?)^```$", chapter, re.DOTALL | re.MULTILINE
    )
    lines = [shlex.split(line) for line in commands.splitlines()]
    assert all(line[0] == "pccl" for line in lines)
    return [line[1:] for line in lines], program


def test_the_secured_quick_start_works_as_it_is_written(tmp_path: Path) -> None:
    (init, coordinator, ticket), program = quick_start()
    address = free_address()
    env = {key: value for key, value in os.environ.items() if key != "PCCL_TICKET"}

    def run(*command: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
            env={**env, **more},
        )

    def words(command: list[str]) -> list[str]:
        return [word.replace(WRITTEN, address) for word in command]

    made = run("-m", "pccl", *words(init))
    made.communicate(timeout=60)
    assert made.returncode == 0
    there = [str(tmp_path / word) if word == "pccl-ca" else word for word in words(coordinator)]
    there = [str(tmp_path / word) if word == "run.journal" else word for word in there]
    serving = CoordinatorProcess(*there[1:]).ready()
    try:
        given, _ = run("-m", "pccl", *words(ticket)).communicate(timeout=60)
        assert given.startswith("pccl1_"), given
        peers = [run("-c", program, PCCL_TICKET=given.strip()) for _ in range(2)]
        assert [peer.communicate(timeout=90)[0] for peer in peers] == ["sum of 2\n"] * 2
        assert [peer.returncode for peer in peers] == [0, 0]
        stranger = run("-c", program.replace("timeout_s=60", f"timeout_s=5, address={address!r}"))
        stranger.communicate(timeout=60)
        assert stranger.returncode != 0, "without a ticket"
    finally:
        serving.kill()
