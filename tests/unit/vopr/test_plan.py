"""What a seed means."""

from __future__ import annotations

from kimberlite.vopr.plan import FAULTS, draw, streams


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
    for kind in FAULTS:
        assert any(plan.weights[kind] > 0 for plan in plans)
        if kind not in ("heal", "restart", "disk_space"):
            assert any(plan.weights[kind] == 0 for plan in plans)
    for name in ("loss", "duplication", "reorder", "corruption", "replay", "garbage", "clock_skew_ns"):
        values = {bool(getattr(plan, name)) for plan in plans}
        assert values == {True, False}, name
    assert {plan.replica_count for plan in plans} == {1, 2, 3, 4, 5, 6}
