"""Loggers of the library: one per room, silent unless the application configures logging.

Levels: INFO for changes of state, WARNING for what a person should look at, DEBUG per message.
Nothing is printed: the root of the tree has a NullHandler, as a library's should.
"""

import logging
from typing import Final

_ROOT: Final = "pccl"
logging.getLogger(_ROOT).addHandler(logging.NullHandler())


def get_logger(room: str) -> logging.Logger:
    """Returns the logger of one room, for example `membership`."""
    return logging.getLogger(f"{_ROOT}.{room}")


class LogWhenChanged:
    """Passes a line on only if it differs from the last one under its key.

    A coordinator that cannot be reached is one line, not one per attempt.
    """

    KEYS_MAX = 1024  # then the oldest is forgotten and may be said once more

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._last: dict[str, tuple[int, str]] = {}

    def log(self, key: str, level: int, text: str) -> bool:
        """Logs `text` if it is news; says whether it was."""
        if self._last.get(key) == (level, text):
            return False
        self._last.pop(key, None)
        if len(self._last) >= self.KEYS_MAX:
            del self._last[next(iter(self._last))]
        self._last[key] = (level, text)
        self._logger.log(level, "%s", text)
        return True

    def forget(self, key: str) -> None:
        """The next line under `key` is news again."""
        self._last.pop(key, None)
