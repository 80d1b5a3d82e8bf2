"""Whatever single thing goes wrong for good, a healthy quorum answers: every fault of the list, with three and five."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kimberlite.errors import UsageError
from kimberlite.storage.store import Store
from kimberlite.vopr import liveness, persistent
from kimberlite.vopr.checkers import Violation
from kimberlite.vopr.plan import draw
from kimberlite.vopr.world import World
from kimberlite.vsr import abdication


def run(fault: str, replicas: int, seed: int = 1) -> World:
    """The phase alone, in a cluster that nothing else befalls, with timers as they are by default."""
    plan = replace(
        draw(seed, 8),
        replica_count=replicas,
        client_count=4,
        loss=0.0,
        duplication=0.0,
        reorder=0.0,
        corruption=0.0,
        replay=0.0,
        garbage=0.0,
        latency_ns=500_000,
        disk_latency_ns=300_000,
        sessions_max=64,
        abdicate_ns=2_000_000_000,
        late_ops=0,
        persistent=fault,
    )
    world = World(plan, faults=())
    world.run()
    return world


@pytest.mark.parametrize("replicas", [3, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", persistent.FAULTS)
def test_a_healthy_quorum_answers(fault: str, replicas: int) -> None:
    world = run(fault, replicas)
    assert world.counts[f"PERSISTENT {fault}"] == 1


def test_a_fault_that_takes_the_quorum_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(world: World, cast: persistent.Cast) -> None:
        world.crash(cast.backup)
        world.crash(cast.other)

    monkeypatch.setitem(persistent.FAULTS, "two are down", both)
    with pytest.raises(Violation, match=r"two are down .* were not answered for 5000 ms") as caught:
        run("two are down", 3)
    assert caught.value.name == "E6 availability"


def test_a_fault_that_is_none_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(persistent.FAULTS, "primary hangs", lambda world, cast: None)
    with pytest.raises(Violation, match=r"primary hangs, and replica \d leads as before"):
        run("primary hangs", 3)


def test_a_vote_from_before_the_alarms_is_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who votes, and follows again, has taken its vote back, but nobody else can know that: it counts for a while."""
    alarms = persistent.FAULTS["false alarms"]

    def after_another(world: World, cast: persistent.Cast) -> None:
        links = {(cast.primary, index) for index in range(world.plan.replica_count) if index != cast.primary}
        world.network.cuts.add(link := max(links))
        world.run_until(world.now + persistent.ALARM_NS, lambda: False)
        world.network.cuts.discard(link)
        alarms(world, cast)

    monkeypatch.setitem(persistent.FAULTS, "false alarms", after_another)
    run("false alarms", 3)


def test_a_tour_waits_for_a_checkpoint_that_waits_for_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copies are looked at when the superblock names it: a tour before that does not find them damaged."""
    tours: list[bool] = []
    tour = liveness._tour

    def scrub_all(world: World) -> None:
        ready = world.now + 5 * liveness.QUIET_NS
        monkeypatch.setattr(Store, "is_checkpoint_idle", property(lambda store: world.now >= ready))
        monkeypatch.setattr(liveness, "_tour", lambda node: (tours.append(world.now >= ready), tour(node)))
        original(world)

    original = liveness._scrub_all
    monkeypatch.setattr(liveness, "_scrub_all", scrub_all)
    run("", 3)
    assert tours == [True] * 3


def test_a_fault_that_there_is_not_is_refused() -> None:
    persistent.check("primary hangs")
    with pytest.raises(UsageError, match="no persistent fault is called 'nonsense'; there are primary is down,"):
        persistent.check("nonsense")


def test_who_is_replaced_by_one_that_waits_for_the_same_replicas_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "just enough are left, of which the primary is slow"
    slow = persistent.FAULTS[name]

    def impatient(world: World, cast: persistent.Cast) -> None:
        slow(world, cast)
        primary = world.nodes[cast.primary]
        world.act(primary.index, primary.life, primary.driver.step_down)

    monkeypatch.setitem(persistent.FAULTS, name, impatient)
    with pytest.raises(Violation, match=f"E6 kept: {name}: replica .* by one that waits for the same replicas"):
        run(name, 3)


def test_views_are_left_in_the_midst_of_a_fault() -> None:
    name = "link between two backups cut"
    views = [world.nodes[0].driver.core.state.view for seed in range(8) for world in [run(name, 3, seed)]]
    assert min(views) < max(views)


@pytest.mark.parametrize("name", [persistent.ALL_FULL, persistent.BACKUPS_FULL])
def test_what_room_is_left_is_used_up(name: str) -> None:
    assert run(name, 3).counts["FILLED_UP"] == 1


@pytest.mark.parametrize("name", persistent.REPLACED_LATE)
def test_who_is_slow_and_leads_on_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abdication, "lags", lambda s, leading: False)
    with pytest.raises(Violation, match=f"E6 .*: {name}"):
        run(name, 3)
