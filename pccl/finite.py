"""What becomes of a contribution with an Inf or a NaN in it.

Invariant: every member takes the same way, whoever's contribution it was.
"""

from __future__ import annotations

from enum import StrEnum

from pccl.base.errors import UsageError


class NonFinite(StrEnum):
    """The policies."""

    RAISE = "raise"
    DROP = "drop_contributor"
    ALLOW = "allow"

    @classmethod
    def parse(cls, value: str) -> NonFinite:
        """Raises UsageError with the names there are."""
        try:
            return cls(value)
        except ValueError:
            names = ", ".join(cls)
            raise UsageError(f"nonfinite must be one of {names}, not {value!r}") from None
