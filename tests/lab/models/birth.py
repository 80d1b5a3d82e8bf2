"""The birth of a cluster of three, searched exhaustively: disks may be lost and formatted anew at any moment.

Nothing that was said is ever gone: any message may arrive, again, at any time. What a replica has bound or formed is
durable. Three rules are told apart, see `RULES`.

A state is wrong when an op was acknowledged by two formed replicas that take each other for members, and two such
replicas exist now of which neither holds it: they would go on without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

REPLICAS = 3
Bindings: TypeAlias = tuple[int | None, ...]  # by replica: its formatting, counted from 0; None: not heard yet
Member: TypeAlias = tuple[int, int]  # replica, formatting

TWO_PHASES, ADOPTION, ONE_PHASE, QUORUM = "two phases", "two phases, or a formed one", "one phase", "quorum"
RULES = {
    TWO_PHASES: "formed when all said that they have bound the same",
    ADOPTION: "or when one that has formed names the same: the one that is followed",
    ONE_PHASE: "wrong: formed when all were heard",
    QUORUM: "wrong: formed when most were heard",
}


class State(NamedTuple):
    """formatted: how often each disk was formatted anew. heard: (replica, formatting) of all that ever spoke. said:
    (replica, formatting, bindings) of all that ever said to have bound all. holders: of the op, once there is one."""

    formatted: tuple[int, ...]
    bindings: tuple[Bindings, ...]
    formed: tuple[bool, ...]
    heard: frozenset[Member] = frozenset()
    said: frozenset[tuple[int, int, Bindings]] = frozenset()
    joined: frozenset[Bindings] = frozenset()  # what anybody who has formed names
    holders: frozenset[Member] | None = None


def _fresh(replica: int, formatting: int) -> Bindings:
    return tuple(formatting if other == replica else None for other in range(REPLICAS))


def _but(of: tuple[object, ...], at: int, value: object) -> tuple[object, ...]:
    return (*of[:at], value, *of[at + 1 :])


def _may_form(s: State, replica: int, rule: str) -> bool:
    bound = s.bindings[replica]
    if rule == QUORUM:
        return sum(formatting is not None for formatting in bound) > REPLICAS // 2
    if None in bound:
        return False
    if rule == ONE_PHASE or (rule == ADOPTION and bound in s.joined):
        return True
    return all((other, bound[other], bound) in s.said for other in range(REPLICAS) if other != replica)


def _steps_of(s: State, replica: int, rule: str, losses: int) -> Iterator[State]:
    """What one replica, or who formats its disk, may do next."""
    formatting, bound = s.formatted[replica], s.bindings[replica]
    yield s._replace(heard=s.heard | {(replica, formatting)})
    if None not in bound:
        yield s._replace(said=s.said | {(replica, formatting, bound)})
    for other, other_formatting in s.heard:
        if bound[other] is None:
            yield s._replace(bindings=_but(s.bindings, replica, _but(bound, other, other_formatting)))  # type: ignore[arg-type]
    if not s.formed[replica] and _may_form(s, replica, rule):
        joined = s.joined | {bound} if rule == ADOPTION else s.joined
        yield s._replace(formed=_but(s.formed, replica, True), joined=joined)  # type: ignore[arg-type]
    others_are_lost = all(count > 0 for other, count in enumerate(s.formatted) if other != replica)
    if sum(s.formatted) < losses and not others_are_lost:
        yield s._replace(
            formatted=_but(s.formatted, replica, formatting + 1),  # type: ignore[arg-type]
            bindings=_but(s.bindings, replica, _fresh(replica, formatting + 1)),  # type: ignore[arg-type]
            formed=_but(s.formed, replica, False),  # type: ignore[arg-type]
        )


def _pairs(s: State) -> Iterator[frozenset[Member]]:
    """Any two that would commit an op together."""
    for one in range(REPLICAS):
        for other in range(one):
            accept = s.bindings[one][other] == s.formatted[other] and s.bindings[other][one] == s.formatted[one]
            if s.formed[one] and s.formed[other] and accept:
                yield frozenset({(one, s.formatted[one]), (other, s.formatted[other])})


def search(rule: str, losses: int) -> tuple[int, State | None]:
    """States that can be reached with so many disks lost, and the first wrong one."""
    begin = State((0,) * REPLICAS, tuple(_fresh(replica, 0) for replica in range(REPLICAS)), (False,) * REPLICAS)
    seen, todo = {begin}, [begin]
    while todo:
        s = todo.pop()
        following = [state for replica in range(REPLICAS) for state in _steps_of(s, replica, rule, losses)]
        for pair in _pairs(s):
            if s.holders is None:
                following.append(s._replace(holders=pair))
            elif not pair & s.holders:
                return len(seen), s
        for state in following:
            if state not in seen:
                seen.add(state)
                todo.append(state)
    return len(seen), None
