"""How long a peer takes to answer: measured by heartbeats, which backups echo, and by prepares in their place.

Imports types and vsr only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kimberlite.types import Header
from kimberlite.vsr.events import EventKind

if TYPE_CHECKING:
    from kimberlite.vsr.config import Timing
    from kimberlite.vsr.state import State


@dataclass(slots=True)
class Timed:
    """The prepare by which round trips are measured."""

    op: int = 0
    at: int = 0  # when it was made, nanoseconds
    peers: set[int] = field(default_factory=set)  # who has not acknowledged it


def begin(s: State, timing: Timing, timed: Timed, op: int) -> None:
    """Under load prepares take the place of heartbeats: now and then one of them is timed in their stead, until
    every peer has acknowledged it, or has been silent for too long."""
    since = s.now - timed.at
    if since >= timing.heartbeat_ns and (not timed.peers or since >= timing.contact_ns):
        timed.op, timed.at, timed.peers = op, s.now, set(s.peers)


def on_prepare_ok(s: State, timed: Timed, header: Header) -> None:
    """An acknowledgement of the prepare that is timed, or one that echoes a heartbeat."""
    if header.replica in timed.peers and header.op >= timed.op:
        timed.peers.discard(header.replica)
        _note(s, header.replica, timed.at)
    elif header.nonce:
        _note(s, header.replica, header.nonce)


def _note(s: State, replica: int, sent_at: int) -> None:
    s.peers[replica].round_trip = s.now - sent_at
    s.emit(EventKind.PEER_ROUND_TRIP, replica, s.now - sent_at)
