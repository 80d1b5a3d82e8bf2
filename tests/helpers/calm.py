"""A plan of the simulator in which nothing fails by itself: what happens is what a test does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kimberlite.vopr.plan import Plan, draw


def calm(**fields: Any) -> Plan:
    """Three replicas on a network that loses nothing, without a ring: what a test damages in a journal has no second
    copy. fields: of the plan, those that differ."""
    usual: dict[str, Any] = {"replica_count": 3, "requests": 40, "weights": {}, "ring": 0.0}
    faultless = dict.fromkeys(("loss", "duplication", "reorder", "corruption", "replay"), 0.0)
    return replace(draw(3), **(usual | faultless | fields))
