"""What does not agree in the books of a core is found: I23."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from calm import calm

from kimberlite.vopr import books, claims
from kimberlite.vopr.checkers import Violation
from kimberlite.vopr.plan import MS
from kimberlite.vopr.world import World
from kimberlite.vsr.changing_view import ChangingView
from kimberlite.vsr.events import GaveUp
from kimberlite.vsr.following import Following
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.role import Story
from kimberlite.vsr.state import RepairRequest

PLAN = calm(client_count=4, requests=200, latency_ns=5 * MS, disk_latency_ns=3 * MS)


def primary_at_work() -> Replica:
    """In the middle of its work, with ops under way."""
    world = World(replace(PLAN, replica_count=3), faults=())
    for client in world.clients:
        world.at(world.now, client.begin)
    cores = [node.driver.core for node in world.nodes]
    assert world.run_until(
        world.now + 5000 * MS,
        lambda: any(core.leading is not None and core.leading.ready and core.leading.pipeline for core in cores),
    )
    core = next(core for core in cores if core.leading is not None)
    books.check(core)
    return core


def ops_left_out(core: Replica) -> None:
    assert core.leading is not None
    core.leading.pipeline.pop()


def in_flight_for_ever(core: Replica) -> None:
    assert core.leading is not None
    core.leading.requests.in_flight[b"nobody" + bytes(10)] = 1


def budget_leaks(core: Replica) -> None:
    next(iter(core.state.peers.values())).repairs += 1


def queued_bytes_leak(core: Replica) -> None:
    assert core.leading is not None
    core.leading.requests.bytes += 1


def bytes_leak(core: Replica) -> None:
    core.state.log.held_bytes += 1


def trimmed_is_kept(core: Replica) -> None:
    core.state.log.first_op = max(core.state.log.bodies) + 1


def damaged_counts_as_there(core: Replica) -> None:
    log = core.state.log
    log.faulty.add(log.op + 1)
    log.on_disk.add(log.op + 1)


def cut_off_counts_as_there(core: Replica) -> None:
    log = core.state.log
    log.on_disk.add(log.journal_head + 1)


def another_log_is_asked_for(core: Replica) -> None:
    s = core.state
    peer = next(iter(s.peers))
    s.peers[peer].repairs += 1
    s.repairs.requests[s.log.op] = RepairRequest(s.log.headers[s.log.op - 1], peer, s.now, s.now)


def a_vote_counts_that_is_not_cast(core: Replica) -> None:
    core.state.role.votes.at[core.state.index] = core.state.now


def a_vote_is_said_once(core: Replica) -> None:
    core.state.role.votes.is_cast = True


def nothing_is_sent_again(core: Replica) -> None:
    assert core.leading is not None
    core.leading.prepare_timer.stop()


def it_falls_silent(core: Replica) -> None:
    assert core.leading is not None
    core.leading.heartbeat_timer.stop()


def it_gives_no_sign_of_life(core: Replica) -> None:
    core.state.own.ping_timer.stop()


def clients_wait_for_who_gave_up(core: Replica) -> None:
    leading = core.leading
    assert leading is not None
    request, received_at = next(request for prepared in leading.pipeline for request in prepared.requests)
    leading.requests.put(request, received_at)
    leading.gave_up = GaveUp.ABDICATED


def damage_is_not_looked_at(core: Replica) -> None:
    core.state.log.faulty.add(1)
    core.state.repairs.timer.stop()


def nothing_is_written(core: Replica) -> None:
    core.state.log.writing[10_000] = bytes(16)


def timer_is_not_looked_at(core: Replica) -> None:
    assert core.leading is not None
    core.leading.heartbeat_timer.start(core.state.now + 1)
    core.leading.timers = ()


@pytest.mark.parametrize(
    "slip",
    [
        ops_left_out,
        in_flight_for_ever,
        budget_leaks,
        queued_bytes_leak,
        bytes_leak,
        trimmed_is_kept,
        damaged_counts_as_there,
        cut_off_counts_as_there,
        another_log_is_asked_for,
        a_vote_counts_that_is_not_cast,
        a_vote_is_said_once,
        nothing_is_sent_again,
        it_falls_silent,
        it_gives_no_sign_of_life,
        clients_wait_for_who_gave_up,
        damage_is_not_looked_at,
        nothing_is_written,
        timer_is_not_looked_at,
    ],
    ids=lambda slip: slip.__name__,
)
def test_a_slip_is_found(slip: Callable[[Replica], None]) -> None:
    core = primary_at_work()
    slip(core)
    with pytest.raises(Violation, match="I23 books: replica "):
        books.check(core)


def test_who_knows_of_damage_does_not_acknowledge_it() -> None:
    state = primary_at_work().state
    header = state.log.headers[state.log.op]
    claims.check(state, header)
    state.log.faulty.add(header.op)
    with pytest.raises(Violation, match=f"acknowledges op {header.op}, and knows that op {header.op} is damaged"):
        claims.check(state, header)


def test_who_changes_views_has_patience_that_ends() -> None:
    core = primary_at_work()
    changing = core.state.role = ChangingView(Story(core.state.now))
    changing.resume(core.state)
    core.state.pace.since = None
    books.check(core)
    for timer in changing.timers[1:]:
        deadline = timer.deadline
        timer.stop()
        with pytest.raises(Violation, match=r"its patience has no end|it gives evidence in view \d+, once"):
            books.check(core)
        timer.deadline = deadline


def test_a_backup_knows_where_the_log_of_its_primary_begins() -> None:
    core = primary_at_work()
    following = core.state.role = Following()
    core.state.log.gone_below = following.trimmed_by_primary = 3
    books.check(core)
    core.state.log.gone_below = 2
    with pytest.raises(Violation, match="begins with op 3, it waits for op 2"):
        books.check(core)
