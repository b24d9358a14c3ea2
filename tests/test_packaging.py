"""What is shipped: a wheel that installs `pccl` alone, an sdist with each file once and no link.

The rooms lie beside `pccl/` in the repository and are linked into it.  These tests fail while a
new room lacks its link, or its name in `sdist.exclude`.
"""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("transport", "collectives", "membership")
BUILD = """
import sys
import scikit_build_core.build as backend
kind, folder, settings = sys.argv[1], sys.argv[2], {}
if kind == "wheel":
    settings = {"build-dir": sys.argv[3]}  # kept between runs: only what changed is compiled
print(getattr(backend, "build_" + kind)(folder, settings))
"""


def build(kind: str, folder: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(folder), str(ROOT / "build" / "packaging")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / done.stdout.splitlines()[-1]


def package_files() -> set[str]:
    """The package as the tree has it, links followed."""
    found: set[str] = set()
    for folder, folders, names in os.walk(ROOT / "pccl", followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        relative = Path(folder).relative_to(ROOT)
        found |= {str(relative / name) for name in names if not name.endswith((".pyc", ".so"))}
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("scikit_build_core")
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("scikit_build_core")
    return build("sdist", tmp_path_factory.mktemp("sdist"))


def test_the_wheel_holds_the_package_and_one_native_module(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    native = [name for name in names if fnmatch(name, "pccl/_native*.so")]
    assert len(native) == 1
    assert sorted(set(names) - set(native)) == sorted(package_files())


def test_the_wheel_installs_pccl_alone_at_top_level(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pccl"}


def test_the_sdist_holds_each_file_once_and_no_links(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert [member.name for member in members if not (member.isfile() or member.isdir())] == []
    inner = [member.name.split("/", 1)[1] for member in members if member.isfile()]
    assert [name for name, count in Counter(inner).items() if count > 1] == []
    assert [name for name in inner if name.split("/")[0] in ROOMS] == []
    assert package_files() <= set(inner)
    assert {"LICENSE", "README.md", "native/CMakeLists.txt", "pyproject.toml"} <= set(inner)


@pytest.mark.slow
def test_an_installed_sdist_imports_from_elsewhere(sdist: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-qq", str(sdist)], check=True, timeout=600, cwd=tmp_path)
    done = subprocess.run(
        [str(python), "-c", "import pccl, pccl._native; print(pccl.__file__)"],
        check=True,
        timeout=60,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "venv")
