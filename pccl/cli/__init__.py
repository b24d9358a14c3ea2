"""The command `pccl`: the only part of the library that prints, reads flags or ends a process."""

from pccl.cli.main import main

__all__ = ["main"]
