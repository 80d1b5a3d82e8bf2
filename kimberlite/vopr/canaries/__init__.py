"""Planted bugs: the simulator must find each, or it proves nothing about the bugs nobody planted.

A canary replaces decisions of the code under test, or of the checkers, at run time and puts
them back afterwards (`planted`). The code itself holds no flag and pays nothing. Each is written as
the mistake it stands for: what somebody could have written and what looks right at a glance.

Each room of the code has a module of planted bugs here; the order of the imports is that of the list. `hunt` looks
for one of them.
"""

from kimberlite.vopr.canaries import (  # noqa: F401, I001 - what is imported is entered into the list
    acknowledging,
    being_members,
    writing,
    ringing,
    changing_views,
    recovering,
    repairing,
    keeping_up,
    answering,
    checkpointing,
    waiting,
    simulating,
)
from kimberlite.vopr.canaries.hunting import SEEDS_MAX, Hunt, Notes, hunt, hunt_all
from kimberlite.vopr.canaries.registry import CANARIES, Canary, planted, select

__all__ = ["CANARIES", "SEEDS_MAX", "Canary", "Hunt", "Notes", "hunt", "hunt_all", "planted", "select"]
