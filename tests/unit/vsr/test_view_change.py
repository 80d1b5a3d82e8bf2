"""The choice of the log: the decisive cases of a view change, each as evidence and outcome."""

from __future__ import annotations

from dataclasses import replace

from lab import MS, Cluster, chain

from kimberlite.types import Header
from kimberlite.vsr.choice import DoViewChange, choose
from kimberlite.vsr.codec import Evidence
from kimberlite.vsr.events import EventKind
from kimberlite.vsr.membership import Membership


def says(
    replica: int,
    headers: list[Header],
    *,
    log_view: int = 0,
    commit: int = 0,
    absent: tuple[int, ...] = (),
    faulty: tuple[int, ...] = (),
    unknown: tuple[int, ...] = (),
) -> DoViewChange:
    """Evidence of a replica whose log is `headers`, with copies of all but the named ops."""
    first, op = min(commit, headers[-1].op), headers[-1].op
    known = present = nack = 0
    given = []
    for header in headers:
        if header.op < first:
            continue
        bit = 1 << (header.op - first)
        if header.op not in unknown:
            known |= bit
            given.append(header)
            if header.op not in absent and header.op not in faulty:
                present |= bit
        if header.op in absent:
            nack |= bit
    return DoViewChange(replica, log_view, op, commit, Evidence(first, known, present, nack, tuple(given)))


def test_the_longest_log_of_the_newest_view_wins() -> None:
    log = chain(5)
    choice = choose([says(1, log[:4]), says(2, log)], Membership.of(3))
    assert [header.op for header in choice.suffix] == [0, 1, 2, 3, 4, 5]


def test_a_longer_log_of_an_older_view_loses() -> None:
    """Choice by op alone would resurrect ops 3 to 5, which view 2 had dropped."""
    old = chain(5)
    new = chain(1, view=2, after=old[2])
    choice = choose([says(0, old, log_view=1), says(1, old[:2] + new, log_view=2)], Membership.of(3))
    assert choice.suffix[-1].op == 3
    assert choice.suffix[-1].checksum == new[-1].checksum


def test_the_commit_number_is_the_highest_of_all() -> None:
    log = chain(4)
    choice = choose([says(0, log, commit=1), says(1, log[:4], commit=3)], Membership.of(3))
    assert choice.commit == 3
    assert choice.suffix[0].op == 3


def test_a_nack_quorum_cuts_the_log() -> None:
    log = chain(3)
    choice = choose([says(0, log, absent=(3,)), says(1, log[:3])], Membership.of(3))
    assert choice.suffix[-1].op == 2
    assert choice.dropped == 1


def test_a_damaged_entry_is_not_an_absent_one() -> None:
    """One replica never had op 3, the other has it damaged: it may have been committed."""
    log = chain(3)
    choice = choose([says(0, log, faulty=(3,)), says(1, log[:3])], Membership.of(3))
    assert choice.suffix == ()
    assert choice.stuck_op == 3


def test_a_third_replica_resolves_what_two_cannot() -> None:
    log = chain(3)
    evidence = [says(0, log, faulty=(3,)), says(1, log[:3])]
    assert choose([*evidence, says(2, log)], Membership.of(3)).suffix[-1].op == 3
    assert choose([*evidence, says(2, log[:3])], Membership.of(3)).suffix[-1].op == 2


def test_an_op_whose_identity_nobody_knows_waits() -> None:
    log = chain(3)
    choice = choose([says(0, log, faulty=(3,), unknown=(3,)), says(1, log[:3])], Membership.of(3))
    assert (choice.suffix, choice.stuck_op) == ((), 3)


def test_another_identity_is_a_nack() -> None:
    """Replica 0 holds op 3 of view 1; the canonical op 3 of view 2 has no copy left but can be dropped."""
    old = chain(3)
    new = chain(1, view=2, after=old[2])
    choice = choose([says(0, old, log_view=1), says(1, old[:2] + new, log_view=2, absent=(3,))], Membership.of(3))
    assert choice.suffix[-1].op == 2


def test_nothing_at_or_below_the_commit_number_is_cut() -> None:
    log = chain(3)
    choice = choose([says(0, log, commit=3, absent=(3,)), says(1, log[:3])], Membership.of(3))
    assert choice.suffix[-1].op == 3


def test_a_commit_number_beyond_every_log_waits() -> None:
    log = chain(2)
    lagging = DoViewChange(0, 0, 2, 9, says(0, log, commit=2).evidence)
    choice = choose([lagging, says(1, log)], Membership.of(3))
    assert choice.suffix == ()
    assert choice.stuck_op


def failover_ms(is_next_behind: bool) -> tuple[float, int]:
    """From the end of the primary to another that is ready, and how often a view was given up."""
    cluster = Cluster()
    cluster.register()
    old = cluster.primary
    for node in cluster.up:
        node.core.config = replace(node.core.config, forfeit_gap=8)
    following = (old.core.view + 1) % 3
    if is_next_behind:
        cluster.lost = lambda source, target, message: following in (source, target)
    for number in range(1, 21):
        old.driver.on_input(requests=[cluster.request(number, b"z")])
        cluster.run(5)
    cluster.run(300)
    cluster.crash(old.index)
    cluster.queue.clear()
    cluster.lost = lambda source, target, message: False
    begun = cluster.now
    cluster.run(20_000, lambda: any(node.core.is_primary and node.core.ready for node in cluster.up))
    return (cluster.now - begun) / MS, sum(len(node.kinds(EventKind.FORFEITED)) for node in cluster.up)


def test_a_candidate_that_gives_its_view_up_costs_next_to_nothing() -> None:
    usual, none = failover_ms(False)
    longer, once = failover_ms(True)
    assert (none, once) == (0, 1)
    assert longer <= usual + 50
