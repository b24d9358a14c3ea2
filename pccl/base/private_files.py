"""Files that hold secrets: keys, journals, ledgers, recordings.

Invariant: such a file is never open to anybody but its owner, not even between its making and a
later change of its mode, and whatever lay under its name before is left as it was.
"""

from __future__ import annotations

import os
from pathlib import Path


def make_private_file(path: str | Path) -> int:
    """Makes an empty file that only its owner can read and write.

    Returns:
        its descriptor, open for writing, not inherited by child processes; the caller closes it.

    Raises:
        FileExistsError: something of that name is there.
        OSError: it cannot be made.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
