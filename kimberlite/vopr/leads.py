"""Who leads a view, and who leaves that to another: I21.

A candidate that lacks much of what is committed, while another that gave evidence has it, does not lead; and who gives
its view up says so in the same step, so that nobody waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kimberlite.types import Command, Header
from kimberlite.vopr.checkers import Violation, has_durable_entry

if TYPE_CHECKING:
    from kimberlite.vopr.world import World


@dataclass(slots=True)
class Leads:
    """When views began: with the first start_view."""

    _begun: dict[int, int] = field(default_factory=dict)

    def on_forfeited(self, world: World, replica: int) -> None:
        """A candidate gives its view up."""
        state = world.nodes[replica].driver.core.state
        gave_up = state.role.story(state).gave_up
        view = gave_up[0] if gave_up is not None else state.view
        if replica not in world.drawer.copies and replica not in world.checkers.voters.get(view, ()):
            raise Violation("I21 leads", f"replica {replica} gives up view {view}, and tells nobody")

    def on_send(self, world: World, replica: int, other: int, header: Header) -> None:
        """The frames with which a view begins have a nonce for those whose evidence it began with."""
        if header.command != Command.START_VIEW or replica in world.drawer.copies:
            return
        if self._begun.setdefault(header.view, world.now) != world.now or not header.nonce:
            return
        gap = header.commit - world.nodes[replica].driver.core.state.log.linked
        committed = world.checkers.committed.get(header.commit)
        if gap <= world.plan.forfeit_gap or committed is None or world.rotten:
            return
        if has_durable_entry(world.files[other], committed) and not world.promises(other).is_void(committed):
            raise Violation(
                "I21 leads",
                f"replica {replica} leads view {header.view}, {gap} ops behind; replica {other} gave evidence and has "
                "them",
            )
