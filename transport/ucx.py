"""Where a libucp may be, and what is said of the wire that UCX chose.

Decides nothing about UCX itself: the native core loads the first of these names that it can use.
Invariant: `libraries` names no file that is not there, but for what the loader finds by itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

LIBRARY = "libucp.so.0"
WHEELS = ("libucx",)  # the module of the libucx-cu12 wheel and its sisters
VARIABLE = "PCCL_UCX_LIB"

MISSING = (
    "transport='ucx' needs libucp of UCX 1.13 or a later 1.x: install your system's UCX or "
    "conda's (both know RDMA), or pip install 'pccl[ucx]' (TCP only), or name the library in "
    f"{VARIABLE}"
)


def libraries(environment: Mapping[str, str], prefix: str) -> list[str]:
    """Returns what to load, in order: what is named, the system's, conda's, the wheel's.

    Args:
        environment: the process's; a library named in PCCL_UCX_LIB is the only one.
        prefix: of this Python, which may be a conda environment.
    """
    if named := environment.get(VARIABLE):
        return [named]
    found = [LIBRARY]
    for place in dict.fromkeys((environment.get("CONDA_PREFIX", ""), prefix)):
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
