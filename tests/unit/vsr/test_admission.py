"""The table of admission: total, unambiguous, and what it must never let in."""

from __future__ import annotations

import itertools

import pytest

from kimberlite.types import Command, Status
from kimberlite.vsr.admission import COMMANDS, STATUSES, TABLE, Act, Role, Row, Sender, View, decide
from kimberlite.vsr.replica import _HANDLERS

INPUTS = list(itertools.product(COMMANDS, View, STATUSES, Role, Sender))
# Who acts upon these speaks for the log of the view that the frame is of.
OF_A_NORMAL_VIEW = {Command.PREPARE, Command.PREPARE_OK, Command.COMMIT, Command.REQUEST_HEADERS, Command.HEADERS}


def matching(command: Command, view: View, status: Status, role: Role, sender: Sender) -> list[Row]:
    return [
        row
        for row in TABLE
        if command in row.commands
        and view in row.view
        and status in row.status
        and role in row.role
        and sender in row.sender
    ]


def test_every_frame_matches_exactly_one_row() -> None:
    for found in INPUTS:
        rows = matching(*found)
        assert len(rows) == 1, (found, [row.name for row in rows])
        assert rows[0].ruling == decide(*found)


def test_every_row_has_a_name_of_its_own_and_is_reached() -> None:
    reached = [row.name for found in INPUTS for row in matching(*found)]
    assert {row.name for row in TABLE} == set(reached)
    assert len({row.name for row in TABLE}) == len(TABLE)


def test_the_commands_are_those_that_have_a_handler() -> None:
    assert set(COMMANDS) == set(_HANDLERS)


def test_what_is_dropped_has_a_reason_and_nothing_else_has() -> None:
    for found in INPUTS:
        ruling = decide(*found)
        assert (ruling.reason is not None) == (ruling.act in (Act.DROP, Act.REFUSE, Act.INFORM)), found


@pytest.mark.parametrize("command", sorted(OF_A_NORMAL_VIEW))
def test_what_speaks_of_a_log_counts_in_its_view_and_in_normal_status_alone(command: Command) -> None:
    for found in INPUTS:
        if found[0] == command and decide(*found).act is Act.ACCEPT:
            assert found[1:3] == (View.SAME, Status.NORMAL), found


def test_nobody_but_who_leads_a_view_makes_its_prepares_heartbeats_and_log() -> None:
    for found in INPUTS:
        if found[0] in (Command.PREPARE, Command.COMMIT, Command.START_VIEW) and found[4] is Sender.OTHER:
            assert decide(*found).act in (Act.DROP, Act.REFUSE, Act.ENTER), found


def test_nobody_but_a_primary_counts_acknowledgements_and_takes_evidence() -> None:
    for found in INPUTS:
        if found[0] in (Command.PREPARE_OK, Command.DO_VIEW_CHANGE) and decide(*found).act is Act.ACCEPT:
            assert found[3] is Role.PRIMARY, found


def test_nothing_of_an_older_view_changes_a_view() -> None:
    for found in INPUTS:
        if found[1] is View.OLDER:
            assert decide(*found).act not in (Act.ENTER, Act.ENTER_FIRST), found


def test_a_view_that_can_not_be_entered_is_not_looked_at_for_ever() -> None:
    for command, status, role, sender in itertools.product(COMMANDS, STATUSES, Role, Sender):
        if decide(command, View.NEWER, status, role, sender).act is Act.ENTER_FIRST:
            for view in (View.OLDER, View.SAME):
                assert decide(command, view, status, role, sender).act is not Act.ENTER_FIRST
