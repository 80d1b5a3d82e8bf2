"""How many files and sockets this process may have open, and what they are for.

What storage and the peers need is set aside first; clients get what is left. So however many clients come, a
segment can be opened and a peer can connect.

May import: errors, storage.handles.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass

from kimberlite.errors import ConfigError
from kimberlite.storage.handles import HANDLES_MAX

STORAGE_OTHER = 16  # files being made, checkpoints, scrubbing, and what is kept for when there are none left
STRANGERS_MAX = 32  # connections on the peer port that have not said who they are
WAITING_ROOM_MAX = 64  # client connections above the limit, while they are told so
OTHER = 8  # pipes and processes of telemetry, name resolution
CLIENTS_MIN = 8  # below that a replica is of no use to anybody


@dataclass(frozen=True, slots=True)
class Share:
    """Who gets how many of `limit` descriptors."""

    limit: int
    handles: int
    strangers: int
    waiting_room: int
    clients: int

    def sentence(self, wanted: int) -> str:
        """What to say at the start when clients get fewer than limits.connections_max, `wanted`; else empty."""
        if self.clients >= wanted:
            return ""
        return (
            f"this process may have {self.limit} descriptors open: at most {self.clients} client connections, not "
            f"{wanted} as limits.connections_max has it; raise the hard limit (ulimit -Hn, LimitNOFILE=) for more"
        )


def raise_limit() -> None:
    """Allow this process as many descriptors as it may allow itself: the soft limit becomes the hard one.

    For a process that is a replica and nothing else. A program that embeds one decides for itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limit() -> int:
    """Descriptors that this process may have open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


def in_use() -> int:
    """Descriptors that are open now."""
    return len(os.listdir("/proc/self/fd")) - 1  # one is that of the listing


def share_out(allowed: int, used: int, replica_count: int, wanted: int) -> Share:
    """Divide `allowed` descriptors, of which `used` are taken already. wanted: limits.connections_max.

    Raises ConfigError when hardly any are left for clients.
    """
    handles = min(HANDLES_MAX, allowed // 4)
    strangers = min(STRANGERS_MAX, allowed // 16)
    waiting_room = min(WAITING_ROOM_MAX, allowed // 16)
    peers = 4 * (replica_count - 1) + strangers  # each way one, and one that waits to take its place
    left = allowed - used - handles - STORAGE_OTHER - peers - waiting_room - OTHER
    if left < CLIENTS_MIN:
        raise ConfigError(
            f"this process may have {allowed} descriptors open, {used} are in use: with what storage and peers need, "
            f"{left} are left for clients, and nothing was started; raise the limit by {CLIENTS_MIN - left} at least "
            "(ulimit -n, LimitNOFILE=)",
            key="limits.connections_max",
            value=wanted,
        )
    return Share(allowed, handles, strangers, waiting_room, min(left, wanted))
