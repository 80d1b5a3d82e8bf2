"""What a seed means."""

from __future__ import annotations

import dataclasses

import pytest

from kimberlite.errors import UsageError
from kimberlite.vopr.faults import KINDS
from kimberlite.vopr.plan import DEFAULT, PLANS, SMALL, Plan, draw, streams

USUAL = {field.name: field.default for field in dataclasses.fields(Plan)}


def test_a_seed_draws_the_same_plan_each_time_and_seeds_differ() -> None:
    assert draw(7) == draw(7)
    assert len({repr(draw(seed)) for seed in range(50)}) == 50


def test_one_more_draw_in_a_stream_leaves_the_others_alone() -> None:
    undisturbed = [stream.random() for stream in streams(3)]
    for disturbed in range(3):
        triple = streams(3)
        triple[disturbed].random()
        values = [stream.random() for stream in triple]
        for index in range(3):
            assert (values[index] == undisturbed[index]) == (index != disturbed)


def test_streams_of_a_seed_and_of_its_neighbour_are_not_the_same() -> None:
    values = [stream.random() for seed in range(4) for stream in streams(seed)]
    assert len(set(values)) == len(values)


def test_every_kind_of_fault_and_of_trouble_is_drawn_and_is_left_out_somewhere() -> None:
    plans = [draw(seed) for seed in range(200)]
    for name, kind in KINDS.items():
        if not kind.share:
            assert not any(name in plan.weights for plan in plans)
            continue
        assert any(plan.weights[name] > 0 for plan in plans)
        assert min(plan.weights[name] for plan in plans) == kind.floor
    for name in (
        "loss",
        "duplication",
        "reorder",
        "corruption",
        "replay",
        "garbage",
        "clock_skew_ns",
        "reader_count",
        "snapshot_ns",
        "retention_bytes",
        "retention_age_s",
        "pause_ns",
        "far_ns",
    ):
        values = {bool(getattr(plan, name)) for plan in plans}
        assert values == {True, False}, name
    assert {plan.replica_count for plan in plans} == {1, 2, 3, 4, 5, 6}


def test_small_bounds_are_drawn_and_left_alone_somewhere() -> None:
    plans = [draw(seed) for seed in range(100)]
    for name, small in SMALL.items():
        assert {getattr(plan, name) for plan in plans} == {small, USUAL[name]}, name
    assert not any(plan.core_bounds for plan in plans if plan.late_ops)
    assert all(plan.core_bounds for plan in plans if not plan.late_ops)
    assert {plan.burst for plan in plans} == {1, 2, 5}


def test_a_clock_is_hours_wrong_wherever_events_go_by_their_age() -> None:
    plans = [plan for seed in range(200) if (plan := draw(seed)).retention_age_s]
    assert len(plans) > 20
    assert all(plan.weights["clock_step"] for plan in plans)
    assert {bool(plan.weights["clock_jump"]) for plan in plans} == {True, False}


def test_a_named_plan_draws_from_something_else() -> None:
    assert draw(7, 10, DEFAULT) == draw(7, 10)
    assert len({repr(draw(7, 10, name)) for name in PLANS}) == len(PLANS)
    crowded = [draw(seed, 10, "crowded") for seed in range(20)]
    assert min(plan.client_count for plan in crowded) >= 16
    assert {plan.requests for plan in crowded} == {30}


def test_a_plan_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match="no plan is called 'nonsense'; there are default, crowded, "):
        draw(7, 10, "nonsense")
