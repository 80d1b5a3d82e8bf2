"""Round trips are measured whatever the load: by heartbeats when there is none, by prepares when there is."""

from __future__ import annotations

from lab import MS, Cluster, Node

from kimberlite.types import Command
from kimberlite.vsr.events import EventKind


def samples(node: Node) -> dict[int, list[int]]:
    """By peer, in nanoseconds."""
    found: dict[int, list[int]] = {}
    for event in node.kinds(EventKind.PEER_ROUND_TRIP):
        found.setdefault(event.a, []).append(event.b)
    return found


def test_prepares_that_leave_no_time_for_heartbeats_are_timed() -> None:
    cluster = Cluster()
    cluster.register()
    primary = cluster.settle()
    others = {node.index for node in cluster.backups}
    cluster.lost = lambda source, target, message: message.header.command == Command.COMMIT
    primary.events.clear()
    began, number = cluster.now, 0
    while cluster.now - began < 1000 * MS:
        number += 1
        cluster.append(number, b"event")
    seen = samples(primary)
    assert set(seen) == others
    for found in seen.values():
        assert 5 <= len(found) <= 1000 * MS // primary.core.config.timing.heartbeat_ns + 1
        assert all(0 <= sample <= 200 * MS for sample in found)


def test_a_silent_peer_does_not_end_the_measuring_of_the_others() -> None:
    cluster = Cluster()
    cluster.register()
    primary = cluster.settle()
    silent, other = (node.index for node in cluster.backups)
    cluster.crash(silent)
    primary.events.clear()
    began, number = cluster.now, 0
    while cluster.now - began < 4000 * MS:
        number += 1
        cluster.append(number, b"event")
    seen = samples(primary)
    assert set(seen) == {other}
    assert len(seen[other]) >= 3
