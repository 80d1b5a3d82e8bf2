"""systemd's notification protocol: a datagram to the socket named in NOTIFY_SOCKET (sd_notify(3))."""

from __future__ import annotations

import os
import socket


def send(state: str) -> bool:
    """Tell the service manager; False when there is none. Never raises: a node runs without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        connection.setblocking(False)
        try:
            connection.sendto(state.encode(), address)
        except OSError:
            return False
    return True
