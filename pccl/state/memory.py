"""How much memory this process may still take: the machine's, or its control group's."""

from __future__ import annotations

from pathlib import Path

UNKNOWN_BYTES = 1 << 62


def available_bytes(root: Path = Path("/")) -> int:
    """Returns the least of what the machine and the control group have left."""
    found = [_of_machine(root / "proc/meminfo"), _of_group(root / "sys/fs/cgroup")]
    return min((n for n in found if n is not None), default=UNKNOWN_BYTES)


def _of_machine(path: Path) -> int | None:
    try:
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _of_group(folder: Path) -> int | None:
    try:
        most = (folder / "memory.max").read_text().strip()
        if most == "max":
            return None
        return max(0, int(most) - int((folder / "memory.current").read_text()))
    except (OSError, ValueError):
        return None
