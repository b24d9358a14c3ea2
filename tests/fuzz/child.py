"""Runs one target under atheris: `python -m tests.fuzz.child NAME [libFuzzer's arguments]`."""

import gc
import sys
from types import FunctionType

import atheris

from tests.fuzz.targets import TARGETS


def instrument() -> None:
    """Makes the library's functions tell the fuzzer which way they go.

    The modules are loaded already: an editable install has an importer of its own, under which
    atheris's import hook sees nothing.
    """
    for found in gc.get_objects():
        if isinstance(found, FunctionType) and (found.__module__ or "").startswith("pccl."):
            atheris.instrument_func(found)


def main() -> None:
    name = sys.argv[1]
    instrument()
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
