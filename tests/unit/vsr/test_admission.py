"""The table of admission: total, unambiguous, and what it must never let in."""

from __future__ import annotations

import itertools

import pytest
from lab import ROOT, prepare_ok, started

from kimberlite.errors import InvariantError
from kimberlite.types import Command, Status
from kimberlite.vsr.admission import COMMANDS, STATUSES, TABLE, Act, Rank, Row, Sender, View, decide
from kimberlite.vsr.changing_view import ChangingView
from kimberlite.vsr.following import Following
from kimberlite.vsr.leading import Leading
from kimberlite.vsr.recovering import Recovering
from kimberlite.vsr.replica import _HANDLERS
from kimberlite.vsr.role import Role

INPUTS = list(itertools.product(COMMANDS, View, STATUSES, Rank, Sender))
# Who acts upon these speaks for the log of the view that the frame is of.
OF_A_NORMAL_VIEW = {Command.PREPARE, Command.PREPARE_OK, Command.COMMIT, Command.REQUEST_HEADERS, Command.HEADERS}


def matching(command: Command, view: View, status: Status, rank: Rank, sender: Sender) -> list[Row]:
    return [
        row
        for row in TABLE
        if command in row.commands
        and view in row.view
        and status in row.status
        and rank in row.rank
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
    assert set(COMMANDS) | {Command.REJECT, Command.CONFIG} == set(_HANDLERS), "of these vsr.identity lets none in"


def test_what_is_dropped_has_a_reason_and_nothing_else_has() -> None:
    for found in INPUTS:
        ruling = decide(*found)
        assert (ruling.reason is not None) == (ruling.act in (Act.DROP, Act.REFUSE, Act.INFORM)), found


ROLES = {
    (Status.NORMAL, Rank.PRIMARY): Leading,
    (Status.NORMAL, Rank.BACKUP): Following,
    (Status.VIEW_CHANGE, Rank.PRIMARY): ChangingView,
    (Status.VIEW_CHANGE, Rank.BACKUP): ChangingView,
    (Status.RECOVERING, Rank.PRIMARY): Recovering,  # nobody else recovers
}
# What a role has to have a handler of its own for, when the table lets it in.
ITS_OWN = {
    Command.PREPARE: "on_prepare",
    Command.PREPARE_OK: "on_prepare_ok",
    Command.COMMIT: "on_commit",
    Command.DO_VIEW_CHANGE: "on_do_view_change",
}


@pytest.mark.parametrize("found", [found for found in INPUTS if found[2:4] in ROLES], ids=str)
def test_the_role_that_a_frame_comes_to_has_a_handler_for_it(found: tuple[Command, View, Status, Rank, Sender]) -> None:
    command, _, status, rank, _ = found
    role = ROLES[status, rank]
    assert role.status == status
    if command in ITS_OWN and decide(*found).act is Act.ACCEPT:
        name = ITS_OWN[command]
        assert getattr(role, name) is not getattr(Role, name)


def test_a_role_without_the_handler_says_so() -> None:
    core = started(1)
    with pytest.raises(InvariantError, match="PREPARE_OK, Following"):
        core.role.on_prepare_ok(core.state, prepare_ok(2, ROOT, view=0))


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
            assert found[3] is Rank.PRIMARY, found


def test_nothing_of_an_older_view_changes_a_view() -> None:
    for found in INPUTS:
        if found[1] is View.OLDER:
            assert decide(*found).act not in (Act.ENTER, Act.ENTER_FIRST), found


def test_a_view_that_can_not_be_entered_is_not_looked_at_for_ever() -> None:
    for command, status, rank, sender in itertools.product(COMMANDS, STATUSES, Rank, Sender):
        if decide(command, View.NEWER, status, rank, sender).act is Act.ENTER_FIRST:
            for view in (View.OLDER, View.SAME):
                assert decide(command, view, status, rank, sender).act is not Act.ENTER_FIRST
