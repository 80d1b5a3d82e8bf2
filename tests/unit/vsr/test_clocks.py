"""What time it is by the clocks of the members."""

from __future__ import annotations

import pytest
from lab import Cluster, entries

from kimberlite.types import Command
from kimberlite.vsr.clocks import quorum_of

HOUR = 3_600_000_000_000
WALL = 1_800_000_000_000_000_000


@pytest.mark.parametrize(
    ("told", "needed", "time"),
    [
        ((5,), 2, None),
        ((5,), 1, 5),
        ((5, 9), 2, 5),
        ((5, 9, 6), 2, 6),
        ((5, 900, 6), 2, 6),  # one that is far ahead moves nothing
        ((5, 0, 6), 2, 5),  # one that is far behind holds nothing up
        ((5, 6, 900, 901, 7), 3, 7),
    ],
)
def test_the_latest_time_that_a_quorum_has_reached(told: tuple[int, ...], needed: int, time: int | None) -> None:
    assert quorum_of(list(told), needed) == time


def test_a_primary_asks_and_one_wrong_clock_decides_nothing() -> None:
    cluster = Cluster(identity=entries.formed)
    cluster.register()
    primary = next(node for node in cluster.up if node.core.is_primary)
    others = [node for node in cluster.up if node is not primary]
    for node, offset in zip((primary, *others), (400 * HOUR, 0, 1), strict=True):
        node.core.set_clock_offset(WALL + offset)
    for peer in primary.core.peers.values():
        peer.clock_offset = None
    assert primary.core.time_of_a_quorum(cluster.now + WALL + 400 * HOUR, cluster.now) is None
    before = len(cluster.sent)
    primary.core.ask_clocks(cluster.now)
    cluster.run(50)
    commands = [message.header.command for _, _, message in cluster.sent[before:]]
    assert commands.count(Command.PONG) == 2
    told = primary.core.time_of_a_quorum(cluster.now + WALL + 400 * HOUR, cluster.now)
    assert told is not None and 0 <= cluster.now + WALL + 1 - told < 1_000_000_000


def test_data_that_is_not_converted_goes_by_the_own_clock() -> None:
    cluster = Cluster()
    cluster.register()
    primary = next(node for node in cluster.up if node.core.is_primary)
    assert primary.core.time_of_a_quorum(WALL, cluster.now) == WALL
