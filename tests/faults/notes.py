"""JSON lines that outlive the process which wrote them: `Note` appends, `Tail` reads them.

Invariant: a line is one unbuffered write, so a process killed at any moment leaves all its lines
but the last whole; a `Tail` never reads half a line.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Note:
    """Appends what a process is told to its history, each line with the monotonic time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def into(cls, path: str | Path) -> Note:
        return cls(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))

    def __call__(self, **facts: Any) -> None:
        line = json.dumps({"at": time.monotonic(), **facts}, separators=(",", ":")) + "\n"
        os.write(self._descriptor, line.encode())


class Tail:
    """Yields the facts that were appended to a file since it was last asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_bytes = 0

    def __call__(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_bytes)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.splitlines():
            yield json.loads(line)
