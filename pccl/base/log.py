"""Loggers of the library: one per room, silent unless the application configures logging.

Levels: INFO for changes of state, WARNING for what a person should look at, DEBUG per message.
Nothing is printed: the root of the tree has a NullHandler, as a library's should.  But what a
person sits waiting for goes by `warn_aloud`, which Python shows where no logging is configured.
"""

import logging
from typing import Final

_ROOT: Final = "pccl"
logging.getLogger(_ROOT).addHandler(logging.NullHandler())


def get_logger(room: str) -> logging.Logger:
    """Returns the logger of one room, for example `membership`."""
    return logging.getLogger(f"{_ROOT}.{room}")


def warn_aloud(logger: logging.Logger, text: str) -> None:
    """Logs a warning; where nobody has configured logging, Python's handler of last resort gets it
    (standard error, if the program has not replaced it), as it would without the NullHandler."""
    logger.warning("%s", text)
    last = logging.lastResort
    if last is not None and logger.isEnabledFor(logging.WARNING) and not _is_heard(logger):
        fields = (logger.name, logging.WARNING, __file__, 0, "pccl: %s", (text,), None)
        last.handle(logger.makeRecord(*fields))


def _is_heard(logger: logging.Logger) -> bool:
    """Says whether anybody handles what this logger is told."""
    at: logging.Logger | None = logger
    while at is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in at.handlers):
            return True
        at = at.parent if at.propagate else None
    return False


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
