"""Compiles the C++ programs of the churn harness, each once per change."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.churn.hosts import ROOT

BUILT = ROOT / "build"
WARNINGS = "-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror".split()
COMPILE_S = 120.0


def compiled(source: Path, name: str, arguments: Sequence[str] = ()) -> Path:
    """Returns the program made from a source; raises OSError with the compiler's words."""
    program = BUILT / name
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    BUILT.mkdir(exist_ok=True)
    made = program.with_name(f"{name}.{os.getpid()}")  # another run may compile it too
    compiler = os.environ.get("CXX", "g++")
    command = [compiler, "-O2", "-std=c++20", *WARNINGS, str(source), *arguments, "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S)
    if done.returncode != 0:
        raise OSError(f"{source.name} does not compile:\n{done.stderr}")
    return made.replace(program)
