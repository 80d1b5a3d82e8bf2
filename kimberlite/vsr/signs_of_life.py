"""Who is there: what replicas say to those that hear nothing else of them (which view this is, and what one may be
asked for), and what follows from being heard.

Imports types and vsr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.types import Status
from kimberlite.vsr.config import CONTACT_MIN_NS
from kimberlite.vsr.identity import sign_of_life

if TYPE_CHECKING:
    from kimberlite.vsr.role import Transition
    from kimberlite.vsr.state import Peer, State


def hear(s: State, peer: Peer) -> None:
    """A sign of life of another replica, perhaps the first after a silence."""
    silence, peer.last_heard = s.now - peer.last_heard, s.now
    if peer.is_gone or (silence > CONTACT_MIN_NS and silence > s.config.timing.contact_ns):
        peer.is_gone = False
        s.role.on_returned(s, peer)
        s.repairs.pacing.renew(s.now)  # it may have what nobody else has


def miss(s: State, replica: int) -> Transition | None:
    """Nothing listens any more where that replica was: its process has ended. Whoever waits for it as the primary
    need not wait until its silence is long; a quorum has to find so, as with any suspicion."""
    peer = s.peers[replica]
    if peer.is_gone:
        return None
    peer.is_gone = True
    return s.role.on_gone(s, replica)


def tick(s: State) -> None:
    """Whether a quorum is there is known by who is heard: a primary by its heartbeats, a backup by its primary, and
    all others by this."""
    if not s.own.ping_timer.due(s.now):
        return
    s.own.ping_timer.start(s.now + s.prng.jitter(s.config.timing.ping_ns))
    if s.role.sends_heartbeats:
        return
    message = sign_of_life(s)
    for replica in s.peers:
        if replica != s.primary or s.status != Status.NORMAL:
            s.send(replica, message)


def inform(s: State, replica: int) -> None:
    """A replica is behind in views: tell it which view this is."""
    if replica != s.index:
        s.send(replica, sign_of_life(s))
