"""What a status says of a coordinator's connections, which only its shell knows."""

from __future__ import annotations

import json

from pccl.membership.messages import CoordinatorMessageBody, StatusReply
from pccl.membership.service_security import Security
from pccl.transport.server import FrameServer


def with_connections(
    msg: CoordinatorMessageBody, count: int, server: FrameServer, security: Security | None
) -> CoordinatorMessageBody:
    """Returns a message, and if it is a status, with `connections` and `secured` in it."""
    if not isinstance(msg, StatusReply):
        return msg
    document = json.loads(msg.json)
    document["connections"] = {
        "open": count,
        "half_open": server.half_open,
        "accepted": server.accepted,
        "dropped": sum(server.drops.values()),
        "dropped_by_reason": dict(sorted(server.drops.items())),
    }
    document["secured"] = security is not None
    if security is not None:
        document["tls"] = security.libraries
    try:
        return StatusReply(json.dumps(document, separators=(",", ":")).encode())
    except ValueError:
        return msg  # it was at the limit already
