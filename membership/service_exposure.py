"""Which addresses a coordinator may listen on."""

from __future__ import annotations

from pccl.base.errors import UsageError
from pccl.transport.address import Address, is_loopback


def check_exposure(address: Address, *, insecure: bool, secured: bool = False) -> None:
    """Raises UsageError if other machines can reach `address`, nothing protects the run, and nobody
    has said that this is meant."""
    if not insecure and not secured and not is_loopback(address.host):
        raise UsageError(
            f"{address} can be reached from other machines, and nothing on this port is encrypted "
            "or authenticated; secure the run (pccl ca init, then --ca DIR), or, on a network you "
            "trust, say --insecure (insecure=True)"
        )
