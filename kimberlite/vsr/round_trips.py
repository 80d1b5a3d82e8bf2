"""How long a peer takes to answer: measured by heartbeats, which backups echo, and by prepares in their place.

Imports types and vsr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.types import Header
from kimberlite.vsr.events import EventKind

if TYPE_CHECKING:
    from kimberlite.vsr.replica import Replica


def begin(r: Replica, op: int) -> None:
    """Under load prepares take the place of heartbeats: now and then one of them is timed in their stead, until
    every peer has acknowledged it, or has been silent for too long."""
    scope = r.scope
    since = r.now - scope.timed_at
    if since >= r.config.heartbeat_ns and (not scope.timed_peers or since >= r.config.contact_ns):
        scope.timed_op, scope.timed_at, scope.timed_peers = op, r.now, set(r.peers)


def on_prepare_ok(r: Replica, header: Header) -> None:
    """An acknowledgement of the prepare that is timed, or one that echoes a heartbeat."""
    scope = r.scope
    if header.replica in scope.timed_peers and header.op >= scope.timed_op:
        scope.timed_peers.discard(header.replica)
        _note(r, header.replica, scope.timed_at)
    elif header.nonce:
        _note(r, header.replica, header.nonce)


def _note(r: Replica, replica: int, sent_at: int) -> None:
    r.peers[replica].round_trip = r.now - sent_at
    r.emit(EventKind.PEER_ROUND_TRIP, replica, r.now - sent_at)
