"""What becomes of a contribution that holds NaN or infinities.

A member looks at its own contribution before it is posted, so what it decides is its own matter:
members may have different policies, and descriptors do not name them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from pccl.base.errors import UsageError
from pccl.collectives.buffers import Buffer
from pccl.collectives.dtypes import Dtype
from pccl.collectives.ops import ReduceOp
from pccl.transport import kernels

_FLOATING = (Dtype.F64, Dtype.F32, Dtype.F16, Dtype.BF16)


class NonFinite(Enum):
    """The policies."""

    IGNORE = "ignore"  # nobody looks, which costs nothing
    ALLOW = "allow"  # counted, and sent as it is
    RAISE = "raise"  # the step fails on all members
    DROP_CONTRIBUTOR = "drop_contributor"  # as if this member had contributed zeros, of weight 0


@dataclass(frozen=True, slots=True)
class NonFiniteCounts:
    """What was found in this member's contributions since it connected."""

    elements: int = 0  # NaN or infinite
    arrays: int = 0  # contributions that held some
    dropped: int = 0  # of these, left out
    raised: int = 0  # of these, for which the step was made to fail

    def with_one_more(self, elements: int, policy: NonFinite) -> NonFiniteCounts:
        """Returns the counts after a contribution that held `elements` of them."""
        return replace(
            self,
            elements=self.elements + elements,
            arrays=self.arrays + 1,
            dropped=self.dropped + (policy is NonFinite.DROP_CONTRIBUTOR),
            raised=self.raised + (policy is NonFinite.RAISE),
        )


def parse_nonfinite(policy: str | NonFinite, op: ReduceOp) -> NonFinite:
    """Returns the policy of that name.

    Raises:
        UsageError: there is none, or a contribution to `op` cannot be left out.
    """
    if not isinstance(policy, NonFinite):
        found = next((known for known in NonFinite if known.value == policy), None)
        if found is None:
            names = ", ".join(known.value for known in NonFinite)
            raise UsageError(f"nonfinite must be one of {names}, not {policy!r}")
        policy = found
    if policy is NonFinite.DROP_CONTRIBUTOR and op not in (ReduceOp.SUM, ReduceOp.AVG):
        raise UsageError(
            f"a contribution to op {op.label!r} cannot be left out; nonfinite='drop_contributor' "
            "is for 'sum' and 'avg'"
        )
    return policy


def parse_policy(policy: str | NonFinite) -> NonFinite:
    """Returns the policy of that name, for exchanges that always look.

    Raises:
        UsageError: there is none.
    """
    names = [known.value for known in NonFinite if known is not NonFinite.IGNORE]
    value = policy.value if isinstance(policy, NonFinite) else policy
    if value not in names:
        raise UsageError(f"nonfinite must be one of {', '.join(names)}, not {value!r}")
    return NonFinite(value)


def count_not_finite(buffer: Buffer, policy: NonFinite) -> int:
    """Returns how many elements are NaN or infinite; 0 where nobody looks."""
    if policy is NonFinite.IGNORE or buffer.dtype not in _FLOATING:
        return 0
    return kernels.count_not_finite(int(buffer.dtype), buffer.address, buffer.count)
