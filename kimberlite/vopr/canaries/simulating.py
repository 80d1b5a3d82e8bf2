"""Planted bugs of the simulator itself."""

from __future__ import annotations

import os
from dataclasses import replace
from random import Random
from typing import Any

from kimberlite.types import Header
from kimberlite.vopr import checkers, liveness, plan, world
from kimberlite.vopr.canaries.registry import Patch, canary
from kimberlite.vopr.plan import REQUESTS, Plan


@canary("agreement is compared with itself")
def _agreement_with_itself() -> list[Patch]:
    original = checkers.Checkers.on_applied

    def on_applied(self: checkers.Checkers, index: int, header: Header, requests: Any) -> None:
        if header.op in self.committed:
            self.committed[header.op] = header
        original(self, index, header, requests)

    return [(checkers.Checkers, "on_applied", on_applied)]


@canary("liveness is asserted too early")
def _liveness_too_early() -> list[Patch]:
    return [(liveness, "CORE_NS_MAX", plan.MS), (liveness, "CONVERGE_NS_MAX", plan.MS)]


@canary("the probability of faults is zero", labels=True)
def _faults_silently_zero() -> list[Patch]:
    original = plan.draw

    def draw(seed: int, requests: int = REQUESTS, name: str = plan.DEFAULT) -> Plan:
        return replace(original(seed, requests, name), weights={"heal": 1.0}, loss=0.0, corruption=0.0)

    from kimberlite.vopr import run as runs

    return [(runs, "draw", draw)]


@canary("an append whose outcome is unknown counts as refused")
def _unknown_outcome_is_refused() -> list[Patch]:
    original = checkers.check_history

    def check_history(history: Any, log: Any) -> None:
        original([replace(record, refused=record.position is None) for record in history], log)

    return [(checkers, "check_history", check_history)]


@canary("a second source of entropy", twice=True)
def _second_source_of_entropy() -> list[Patch]:
    class Impure(Random):
        def __init__(self, seed: Any = None) -> None:
            super().__init__(int.from_bytes(os.urandom(8)) if str(seed).startswith("tear") else seed)

    return [(world, "Random", Impure)]
