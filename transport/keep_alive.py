"""Options of a TCP socket by which the kernel notices a machine that vanished.

Invariant: nobody waits for ever on a socket that has had them, not even one that only reads.
"""

from __future__ import annotations

import socket

IDLE_S, INTERVAL_S, PROBES = 10, 5, 3
UNACKNOWLEDGED_MS_MAX = 10_000  # as the engine's sockets have it


def keep_alive(connection: socket.socket | None) -> None:
    """Sets them, and lets small messages go at once; a socket that is closed, or no TCP socket,
    stays as it is."""
    if connection is None:
        return
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Bytes under way stop the probes above, and are sent again for a quarter of an hour.
            connection.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS_MAX
            )
    except OSError:
        return
