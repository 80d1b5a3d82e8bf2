"""What time it is by the clocks of the members: each tells its own with every sign of life (PING, PONG).

One clock that is wrong must decide nothing. `told_by_a_quorum` is the latest time that has passed by the clocks of a
replication quorum: clocks that are ahead do not move it while they are fewer than such a quorum, clocks that are
behind do not hold it while such a quorum has others. A clock that was told once goes on by the own monotonic time: for
as long as a frame took it seems to be behind, which is the safe side for whoever asks how old something is.

Who leads hears acknowledgements and no signs of life: it asks for them (`ask`), a PONG for each other replica.
Time decides nothing about which op is committed: only what retention by age may remove goes by it.

Imports vsr.identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.vsr import identity

if TYPE_CHECKING:
    from kimberlite.types import Header
    from kimberlite.vsr.state import State


def ask(s: State) -> None:
    """Have all other members say what time it is."""
    s.broadcast(identity.sign_of_life(s, asks=True))


def hear(s: State, header: Header) -> None:
    """A sign of life. Data that is not converted yet tells no time."""
    if header.timestamp:
        s.peers[header.replica].clock_offset = header.timestamp - s.now


def told_by_a_quorum(s: State, own_ns: int, now: int) -> int | None:
    """Nanoseconds since 1970; None while fewer members than a replication quorum have told the time. own_ns: by this
    machine's clock; now: the time of the core. Before the cluster is born nobody tells, and the own clock is all."""
    if s.own.identity is None:
        return own_ns
    told = [now + peer.clock_offset for peer in s.peers.values() if peer.clock_offset is not None]
    return quorum_of([own_ns, *told], s.membership.quorums.replication)


def quorum_of(clocks: list[int], needed: int) -> int | None:
    """The latest time that `needed` of these clocks have reached."""
    return sorted(clocks)[-needed] if len(clocks) >= needed else None
