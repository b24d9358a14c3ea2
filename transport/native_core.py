"""The one door to `pccl._native`, the compiled core."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

MISSING_CORE = (
    "this is pccl's source tree, without its native core: run ./dev, or start Python elsewhere"
)


def load_native() -> ModuleType:
    """Imports the compiled core; without it, says what to do instead of a bare import error."""
    try:
        import pccl._native as native
    except ModuleNotFoundError as error:
        if error.name == "pccl._native":
            raise ImportError(MISSING_CORE) from error
        raise
    return native
