"""The choice of the log: the decisive cases of a view change, each as evidence and outcome."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations_with_replacement, product

import pytest
from lab import MS, Cluster, chain

from kimberlite.types import Header
from kimberlite.vsr.choice import DoViewChange, choose
from kimberlite.vsr.codec import Evidence
from kimberlite.vsr.events import EventKind
from kimberlite.vsr.members import Membership


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


def test_what_a_view_has_made_is_denied_by_who_was_not_in_it() -> None:
    """Nobody knows op 3 of view 2 any more, which replica 0 alone had: 1 has a shorter log of that view, 2 an older."""
    old = chain(4)
    new = chain(1, view=2, after=old[2])
    last = says(0, old[:2] + new, log_view=2, faulty=(3,), unknown=(3,))
    evidence = [last, says(1, old[:3], log_view=2)]
    assert choose(evidence, Membership.of(3)).stuck_op == 3
    choice = choose([*evidence, says(2, old, log_view=1)], Membership.of(3))
    assert (choice.suffix[-1].op, choice.dropped) == (2, 1)


def test_what_a_view_began_with_may_be_of_an_older_one() -> None:
    """Op 3 is in every log of view 2, which may have begun with it: replica 2 may have acknowledged it before."""
    log = chain(4)
    lost = {"log_view": 2, "faulty": (3,), "unknown": (3,)}
    evidence = [says(0, log[:4], **lost), says(1, log[:4], **lost), says(2, log, log_view=1, faulty=(3,), unknown=(3,))]
    assert choose(evidence, Membership.of(3)).stuck_op == 3


PRESENT, FAULTY, UNKNOWN, ABSENT = range(4)  # what a replica has of an op: UNKNOWN is damaged beyond recognition


def states(log_view: int, log: list[Header], shortest: int, replica: int) -> Iterator[tuple[DoViewChange, set[bytes]]]:
    """All that a replica with that log can say, with what it may have acknowledged when it does."""
    for op in range(shortest, len(log)):
        for has in product((PRESENT, FAULTY, UNKNOWN, ABSENT), repeat=op):
            named = {kind: tuple(n for n in range(1, op + 1) if has[n - 1] == kind) for kind in has}
            below = next(iter(named.get(ABSENT, ())), op + 1)
            message = says(
                replica,
                log[: op + 1],
                log_view=log_view,
                absent=named.get(ABSENT, ()),
                faulty=named.get(FAULTY, ()) + named.get(UNKNOWN, ()),
                unknown=named.get(UNKNOWN, ()),
            )
            yield message, {header.checksum for header in log[1:below]}


@pytest.mark.parametrize("begun", [0, 1, 2])
def test_nothing_that_may_be_committed_is_ever_cut(begun: int) -> None:
    """Three replicas in every state, of view 2, which began with `begun` ops of view 1 and has made more, or still of
    view 1: an op that two of them may have acknowledged under its identity is not cut, whoever gives evidence."""
    old = chain(2, view=1)
    new = old[: begun + 1] + (chain(2 - begun, view=2, after=old[begun])[1:] if begun < 2 else [])
    kinds = [[*states(1, old, 0, replica), *states(2, new, begun, replica)] for replica in range(3)]
    membership, cut = Membership.of(3), 0
    for indexes in combinations_with_replacement(range(len(kinds[0])), 3):
        chosen = [kinds[replica][index] for replica, index in enumerate(indexes)]
        for evidence in (chosen, chosen[:2], chosen[1:], chosen[::2]):
            if max(message.log_view for message, _ in evidence) < 2:
                continue
            choice = choose([message for message, _ in evidence], membership)
            if not choice.dropped:
                continue
            cut += 1
            for header in new[choice.suffix[-1].op + 1 :]:
                assert sum(header.checksum in acknowledged for _, acknowledged in chosen) < 2, (header.op, chosen)
    assert cut


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
