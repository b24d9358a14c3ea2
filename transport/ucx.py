"""Where a libucp may be, and what is said of the wire that UCX chose.

Decides nothing about UCX itself: the native core loads the first of these names that it can use.
Invariant: `libraries` names no file that is not there, but for what the loader finds by itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

from pccl.base.errors import ConnectError
from pccl.base.log import get_logger
from pccl.transport.engine_events import UcxChose

_log = get_logger("transport")
Event = TypeVar("Event")

LIBRARY: Final = "libucp.so.0"
WHEELS: Final = ("libucx",)  # the module of the libucx-cu12 wheel and its sisters
VARIABLE: Final = "PCCL_UCX_LIB"

MISSING: Final = (
    "transport='ucx' needs libucp of UCX 1.13 or a later 1.x: install your system's UCX or "
    "conda's (both know RDMA), or pip install 'pccl[ucx]' (TCP only), or name the library in "
    f"{VARIABLE}"
)


def libraries(environment: Mapping[str, str], *prefixes: str) -> list[str]:
    """Returns what to load, in order: what is named, the system's, conda's, the wheel's.

    Args:
        environment: the process's; a library named in PCCL_UCX_LIB is the only one.
        prefixes: of this Python, its own before that which it was made from: one of them is a
            conda environment's if this Python is conda's, whether that is activated or not.
    """
    if named := environment.get(VARIABLE):
        return [named]
    found = [LIBRARY]
    # What this program runs in comes before what its shell has activated.
    for place in dict.fromkeys((*prefixes, environment.get("CONDA_PREFIX", ""))):
        path = Path(place, "lib", LIBRARY)
        if place and path.exists():
            found.append(str(path))
    for wheel in WHEELS:
        spec = importlib.util.find_spec(wheel)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(folder, "lib", LIBRARY)
            if path.exists():
                found.append(str(path))
    return found


def refusal(code: str, tried: str) -> ConnectError | None:
    """Returns the error of an engine that could not be made, if it is for want of a libucp."""
    return ConnectError(f"{MISSING} (tried: {tried})") if code == "ucx" else None


class Wire:
    """What UCX chose to move the lanes' bytes by, and what people have been told of it.

    What was asked for and what there is may differ, so the first word of that is a warning.
    """

    def __init__(self) -> None:
        self.transports = ""  # "tcp/lo", "rc_mlx5/mlx5_0:1", ...; none chosen yet, or no UCX: empty
        self._declined = False

    def note(self, event: Event) -> Event:
        """Logs an event that is of the wire, and returns it whatever it is."""
        if not isinstance(event, UcxChose):
            return event
        if not event.transports:
            if not self._declined:
                _log.warning(
                    "another peer's transport is not 'ucx', its UCX is another version, or UCX "
                    "does not reach it: lanes to it stay on TCP"
                )
            self._declined = True
            return event
        first, self.transports = not self.transports, event.transports
        if event.rdma:
            _log.info("UCX moves the lanes' bytes by %s", event.transports)
        elif first:
            _log.warning(
                "transport='ucx', but UCX found no RDMA and moves the lanes' bytes by %s; see "
                "UCX_TLS, UCX_NET_DEVICES, and whether this libucp was built with verbs",
                event.transports,
            )
        return event
