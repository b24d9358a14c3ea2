"""The direction of imports, read from the source: rooms point down, and what decides is pure.

A module of a room decides unless `SHELLS` names it: so a new module is held to the strict rule
until somebody says aloud that it does I/O.  Imports under `if TYPE_CHECKING` only name types and
are free.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("transport", "collectives", "membership")
BELOW = {
    "pccl.base": ("pccl.base",),
    "pccl.transport": ("pccl.base", "pccl.transport", "pccl._native"),
    "pccl.collectives": ("pccl.base", "pccl.transport", "pccl.collectives"),
    "pccl.membership": ("pccl.base", "pccl.transport", "pccl.membership"),
}
SHELLS = (
    "pccl.transport",
    "pccl.transport.channel",
    "pccl.transport.client",
    "pccl.transport.digests",
    "pccl.transport.dial",
    "pccl.transport.doors",
    "pccl.transport.engine",
    "pccl.transport.keep_alive",
    "pccl.transport.probe",
    "pccl.transport.server",
    "pccl.transport.tls*",
    "pccl.membership",
    "pccl.membership.agent*",
    "pccl.membership.journal*",
    "pccl.membership.service*",
    "pccl.collectives",
)
IMPURE = frozenset(
    "asyncio logging os random secrets select selectors signal socket sqlite3 ssl subprocess "
    "threading time uvloop".split()
)
NATIVE_DOORS = ("pccl.transport.native_core",)


class Import(NamedTuple):
    importer: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_files(top: str) -> Iterator[Path]:
    """The files below `top`, through the links that put the rooms into the package."""
    for folder, folders, names in os.walk(ROOT / top, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        yield from (Path(folder) / name for name in sorted(names) if name.endswith(".py"))


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield other
                yield from run_time_nodes(other)
            continue
        yield node
        yield from run_time_nodes(node)


def imports_of(path: Path, known: frozenset[str]) -> Iterator[Import]:
    importer = module_name(path)
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node in run_time_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(importer, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{importer}:{node.lineno}: imports are absolute"
            base = node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}"
                inner = full in known or full == "pccl._native"
                yield Import(importer, full if inner else base, node.lineno)


PACKAGE_FILES = tuple(python_files("pccl"))
MODULES = frozenset(module_name(path) for path in PACKAGE_FILES)
IMPORTS = tuple(found for path in PACKAGE_FILES for found in imports_of(path, MODULES))


def room_of(module: str) -> str | None:
    return next((room for room in BELOW if (module + ".").startswith(room + ".")), None)


def inside(module: str, packages: tuple[str, ...]) -> bool:
    return any((module + ".").startswith(package + ".") for package in packages)


def is_shell(module: str) -> bool:
    return any(fnmatch(module, pattern) for pattern in SHELLS)


def decides(module: str) -> bool:
    return room_of(module) not in (None, "pccl.base") and not is_shell(module)


def test_every_room_is_seen_through_its_link() -> None:
    assert {f"pccl.{room}" for room in ROOMS} <= MODULES


def test_a_room_imports_itself_and_rooms_below_it_only() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if (room := room_of(found.importer)) is not None
        and inside(found.target, ("pccl",))
        and not inside(found.target, BELOW[room])
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_modules_that_decide_touch_no_clock_no_dice_and_no_socket() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if decides(found.importer) and found.target.split(".")[0] in IMPURE
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_modules_that_decide_import_no_shell() -> None:
    rooms = frozenset(f"pccl.{room}" for room in ROOMS)
    wrong = [
        str(found)
        for found in IMPORTS
        if decides(found.importer)
        and inside(found.target, tuple(rooms))
        and is_shell(found.target)
        and found.target not in rooms
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_native_module_has_one_door() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if inside(found.target, ("pccl._native",))
        and not any(fnmatch(found.importer, door) for door in NATIVE_DOORS)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_nobody_imports_a_room_as_a_top_level_module() -> None:
    outside = [path for top in ("tests", "benchmarks", "examples") for path in python_files(top)]
    found_outside = [found for path in outside for found in imports_of(path, MODULES)]
    wrong = [str(found) for found in (*IMPORTS, *found_outside) if inside(found.target, ROOMS)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_layers_contract_is_kept() -> None:
    pytest.importorskip("importlinter")
    # In a process of its own: its command line disables every logger that exists by then.
    program = "import importlinter.cli as c; raise SystemExit(c.lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "1 kept" in done.stdout, done.stdout + done.stderr
