"""What a status says of a coordinator's connections, which only its shell knows."""

from __future__ import annotations

import json

from pccl.membership.messages import StatusReply
from pccl.membership.service_security import Security
from pccl.transport.server import FrameServer


def with_connections(
    status: StatusReply, count: int, server: FrameServer, security: Security | None
) -> StatusReply:
    """Returns the status with `connections` and, in a secured run, `security` in it."""
    document = json.loads(status.json)
    document["connections"] = {
        "open": count,
        "half_open": server.half_open,
        "accepted": server.accepted,
        "dropped": sum(server.drops.values()),
        "dropped_by_reason": dict(sorted(server.drops.items())),
    }
    document["secured"] = security is not None
    try:
        return StatusReply(json.dumps(document, separators=(",", ":")).encode())
    except ValueError:
        return status  # it was at the limit already
