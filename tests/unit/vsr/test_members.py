"""Who leads which view and how many suffice: both rules, and how a cluster goes from the first to the second."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kimberlite.types import REPLICAS_MAX, SLOTS, VIEW_BORN, VIEW_MAX, ZERO16
from kimberlite.vsr.members import Membership, bit_set
from kimberlite.vsr.record import Address, Member, Record, Role, Settings, draft

SETTINGS = Settings(64, 1, 1, 1, 1, 1, 1)
ORIGIN = b"o" * 16


def record(count: int, origin: bytes = ORIGIN) -> Record:
    addresses = [(Address("host", 1000 + slot), Address("host", 2000 + slot)) for slot in range(count)]
    return draft(SETTINGS, origin, addresses)


COUNTS = range(1, REPLICAS_MAX + 1)


@pytest.mark.parametrize("count", COUNTS)
def test_data_of_the_first_release_keeps_its_rule(count: int) -> None:
    membership = Membership.of(count)
    for view in range(40):
        assert membership.leader(view) == view % count
        assert membership.next_view(view) == view + 1 and membership.view_before(view) == view - 1
        assert membership.shown(view) == view and membership.is_led(view)


@pytest.mark.parametrize("count", COUNTS)
def test_a_slot_leads_a_view_and_views_that_nobody_leads_are_skipped(count: int) -> None:
    membership = Membership.of_record(record(count))
    view, led = 0, []
    for _ in range(3 * count):
        assert membership.is_led(view) and membership.leader(view) == view % SLOTS < count
        following = membership.next_view(view)
        assert following > view and membership.view_before(following) == view
        assert not any(membership.is_led(skipped) for skipped in range(view + 1, following))
        led.append(membership.leader(view))
        view = following
    assert led == [*range(count)] * 3
    assert membership.view_before(0) == -1


def test_replicas_that_know_different_members_agree_on_who_leads() -> None:
    few, many = Membership.of_record(record(3)), Membership.of_record(record(6))
    assert all(few.leader(view) == many.leader(view) for view in range(100))


@pytest.mark.parametrize("count", COUNTS)
def test_any_client_finds_the_primary_by_its_own_arithmetic(count: int) -> None:
    """One of the first release takes a view modulo the number of members, for ever."""
    membership = Membership.of_record(record(count))
    view, shown = VIEW_BORN, -1
    for _ in range(50):
        before, shown = shown, membership.shown(view)
        assert before < shown < 1 << 64
        assert shown % count == shown % SLOTS == membership.leader(view)
        view = membership.next_view(view)
    assert membership.shown(VIEW_BORN) > Membership.of(count).shown(VIEW_BORN - 1)
    assert membership.shown(VIEW_MAX) < 1 << 64


def test_a_log_older_than_identities_asks_all() -> None:
    converted = Membership.of_record(record(3, origin=ZERO16))
    assert converted.is_in_doubt(VIEW_BORN - 1) and not converted.is_in_doubt(VIEW_BORN)
    assert not converted.may_begin_view(0b011, 7) and converted.may_begin_view(0b111, 7)
    assert converted.may_begin_view(0b011, VIEW_BORN)
    assert not converted.may_drop(0b110, 0b111, 7, True) and converted.may_drop(0b110, 0b111, 7, False)
    assert not converted.may_drop(0b110, 0b110, 7, False), "who is not there may have a copy"
    assert converted.may_drop(0b110, 0b110, VIEW_BORN, True) and not converted.may_drop(0b100, 0b111, 7, False)
    fresh = Membership.of_record(record(3))
    assert fresh.may_begin_view(0b011, 0) and fresh.may_drop(0b110, 0b110, 0, True)


def test_who_is_lost_counts_in_quorums_and_is_not_waited_for() -> None:
    whole = record(4, origin=ZERO16)
    lost = Member(3, Role.LOST, ZERO16, Address("host", 1), Address("host", 2))
    membership = Membership.of_record(replace(whole, members=(*whole.members[:3], lost)))
    assert membership.voters == (0, 1, 2, 3) and membership.quorums.view_change == 3
    assert membership.expected == bit_set((0, 1, 2))
    assert membership.may_begin_view(0b0111, 7) and not membership.may_begin_view(0b0011, 7)
