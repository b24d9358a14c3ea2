"""What may go wrong with weights, besides the errors that all of pccl has.

Invariant: whichever is raised, the caller's tensors are as they were before the call.
"""

from __future__ import annotations

from pccl.base.errors import PcclError, RemoteError, UsageError


class BaseMismatch(PcclError):
    """The receiver's tensors are not what the publisher's updates build on: the program changed
    them, or the publisher was started anew.  Pull with `on_mismatch="anchor"` to be overwritten."""


class CorruptUpdate(RemoteError):
    """An update is not what its publisher promised, whoever it was fetched from."""


class RevisionExists(UsageError):
    """A revision that is not newer than the newest was published; nothing has changed."""

    def __init__(self, revision: int, newest: int) -> None:
        super().__init__(
            f"revision {revision} cannot be published: the newest is {newest}, and revisions grow"
        )
        self.revision = revision
        self.newest = newest
