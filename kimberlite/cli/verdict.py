"""What the answers of replicas together say of their cluster. Pure: no clock, no socket.

A cluster can commit when its primary says so, and a primary says so from what it heard within the last second, not
from what it was asked to do: that is true without traffic as well. Where no primary answers, a backup that hears one
is believed. Whatever keeps it from committing is called `no quorum`: no quorum of replicas accepts appends now.
Fields of the answers that an older release does not have are not missed.

May import: errors, types, node.clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kimberlite.errors import UnavailableError, WrongClusterError
from kimberlite.node import clock

CONTACT_S = 1.0  # silence that counts, of a replica that does not say: Timing.contact_ns with the default heartbeat
BEHIND_OPS = 1_000  # further behind than answers given some milliseconds apart can be

Answer = Mapping[str, Any] | UnavailableError


class Verdict(StrEnum):
    HEALTHY = "healthy"  # every member answers, is up to date, and hears the others
    DEGRADED = "degraded"  # appends are committed, but not by all members, or something is wrong with one
    NO_QUORUM = "no quorum"  # nothing can be committed now
    NO_ANSWER = "no answer"  # nobody can say


@dataclass(frozen=True, slots=True)
class Judgement:
    """can_commit: None when nobody answered. reasons: sentences, empty when healthy. members: how many
    they say they are, 0 when nobody answered. id: of the cluster."""

    verdict: Verdict
    can_commit: bool | None
    reasons: tuple[str, ...]
    members: int = 0
    quorum: int = 0
    id: str | None = None


def judge(addresses: Sequence[str], answers: Sequence[Answer]) -> Judgement:
    """The verdict over the cluster that these addresses are of.

    Raises WrongClusterError when they are of more than one.
    """
    said = [answer for answer in answers if not isinstance(answer, UnavailableError)]
    if not said:
        return Judgement(Verdict.NO_ANSWER, None, tuple(str(answer) for answer in answers))
    cluster = _one_cluster(addresses, answers)
    members = max(int(answer.get("replica_count", 0)) for answer in said)
    quorum = max(int(answer.get("quorum", 0)) for answer in said)
    obstacles = _obstacles(said, quorum)
    blemishes = [*_silent(addresses, answers, members), *(text for answer in said for text in _blemishes(answer, said))]
    verdict = Verdict.NO_QUORUM if obstacles else Verdict.DEGRADED if blemishes else Verdict.HEALTHY
    reasons = tuple(dict.fromkeys([*obstacles, *blemishes]))
    return Judgement(verdict, not obstacles, reasons, members, quorum, cluster)


def is_doubtful(answers: Sequence[Answer]) -> bool:
    """Whether a primary says that it can commit although fewer than a quorum answered: it may not have noticed yet."""
    said = [answer for answer in answers if not isinstance(answer, UnavailableError)]
    quorum = max((int(answer.get("quorum", 0)) for answer in said), default=0)
    return 0 < len(said) < quorum and not _obstacles(said, quorum)


def contact_s(*answers: Answer) -> float:
    """Silence, in seconds, that all of these replicas take for what it is."""
    said = [answer.get("contact_s", CONTACT_S) for answer in answers if not isinstance(answer, UnavailableError)]
    return max(said, default=CONTACT_S)


def health(answer: Mapping[str, Any]) -> str:
    """What is wrong with one replica, in its own words; empty when nothing is."""
    found = [str(answer["unhealthy"])] if answer.get("unhealthy") else []
    if answer.get("cannot_commit"):
        found.append(f"can not commit ({', '.join(answer['cannot_commit'])})")
    if _leads(answer):
        found += [text for text in _unheard(answer) if text not in "".join(found)]
    return "; ".join(found)


def remark(answer: Mapping[str, Any]) -> str:
    """What is to be known of a replica that is well; empty when nothing is. A log that is ahead of the clocks stays so:
    a verdict that it makes bad for years would tell nothing any more."""
    ahead = answer.get("clock", {}).get("log_ahead_s", 0)
    if ahead * clock.S <= clock.JUMP_NS:
        return ""
    return f"ok; the log's last timestamp is {clock.span(int(ahead * clock.S))} ahead of its clock"


def behind(answer: Mapping[str, Any], said: Sequence[Mapping[str, Any]]) -> int | None:
    """Operations that somebody knows to be committed and that this replica has not executed; None when it does not say.
    Executed: a primary whose disk hangs hears of every commit."""
    executed = answer.get("applied", answer.get("commit"))
    if not isinstance(executed, int):
        return None
    return max([other["commit"] for other in said if isinstance(other.get("commit"), int)], default=executed) - executed


def _one_cluster(addresses: Sequence[str], answers: Sequence[Answer]) -> str | None:
    of = {
        str(answer["cluster"]): address
        for address, answer in zip(addresses, answers, strict=True)
        if not isinstance(answer, UnavailableError) and "cluster" in answer
    }
    if len(of) > 1:
        listed = ", ".join(f"{address} is of {cluster}" for cluster, address in of.items())
        raise WrongClusterError(f"the addresses are of {len(of)} clusters: {listed}; give those of one", clusters=[*of])
    return next(iter(of), None)


def _leads(answer: Mapping[str, Any]) -> bool:
    return answer.get("role") == "primary" and answer.get("status") == "normal"


def _obstacles(said: Sequence[Mapping[str, Any]], quorum: int) -> list[str]:
    """Why nothing can be committed; empty when something can."""
    primaries = [answer for answer in said if _leads(answer)]
    if primaries:
        primary = max(primaries, key=lambda answer: int(answer.get("view", 0)))
        if "can_commit" in primary:
            leads = f"replica {primary.get('replica')} leads"
            return [] if primary["can_commit"] else [f"{leads}: {health(primary)}"]
        silent = len(_unheard(primary))
        return _unheard(primary) if 1 + len(primary.get("peers", ())) - silent < quorum else []
    if any(answer.get("can_commit") for answer in said):
        return []  # a backup hears a primary that does not answer here
    return ["no primary"]


def _unheard(answer: Mapping[str, Any]) -> list[str]:
    found, contact = [], contact_s(answer)
    for peer in answer.get("peers", ()):
        last = peer.get("last_heard_s")
        if last is None:
            found.append(f"replica {peer.get('replica')} never heard")
        elif last > contact:
            found.append(f"replica {peer.get('replica')} unheard for {last:.1f} s")
    return found


def _silent(addresses: Sequence[str], answers: Sequence[Answer], members: int) -> list[str]:
    found = [str(answer) for answer in answers if isinstance(answer, UnavailableError)]
    missing = members - len(addresses)
    if missing > 0 and not any(_leads(answer) for answer in answers if not isinstance(answer, UnavailableError)):
        found.append(f"{missing} of {members} members were not asked, nor the primary: give the addresses of all")
    return found


def _blemishes(answer: Mapping[str, Any], said: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with one replica that answered."""
    found = [text] if (text := health(answer)) else []
    if answer.get("status", "normal") != "normal" and not found:
        found.append(str(answer["status"]))
    if answer.get("faulty"):
        found.append(f"{answer['faulty']} damaged entries to repair")
    lag = behind(answer, said) or 0
    if lag > BEHIND_OPS:
        found.append(f"{lag} ops behind")
    return [f"replica {answer.get('replica')}: {text}" for text in found]
