"""`status`: what each replica says of itself, and the verdict over the cluster that follows from it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from kimberlite.cli import EXIT_DEGRADED, EXIT_NO_QUORUM, probe
from kimberlite.cli.common import addresses_option, cluster_option, json_option, print_json, table, timeout_option
from kimberlite.cli.verdict import Answer, Judgement, Verdict, behind, contact_s, health, is_doubtful, judge, remark
from kimberlite.errors import UnavailableError
from kimberlite.types import ZERO16, ClusterId

COLUMNS = ("replica", "address", "role", "view", "op", "commit", "events", "lag", "version", "health")
EXIT_CODES = {
    Verdict.HEALTHY: 0,
    Verdict.DEGRADED: EXIT_DEGRADED,
    Verdict.NO_QUORUM: EXIT_NO_QUORUM,
    Verdict.NO_ANSWER: UnavailableError.exit_code,
}


@click.command(short_help="Show what each replica is doing.")
@addresses_option
@cluster_option
@timeout_option(2.0, "How long to wait for each replica.")
@json_option
def status(addresses: tuple[str, ...], cluster: ClusterId | None, timeout: float, as_json: bool) -> int:
    """Show what each replica is doing, and how the cluster is.

    Every address is asked by itself, so that this works without a quorum and without a
    primary; members that are not among the addresses are asked as well. `lag` is the number of operations that a
    replica has not executed and that the most advanced one that answered knows to be committed. The fields of --json
    are in docs/status.md.

    The verdict is the exit code: 0 healthy; 35 degraded, appends are committed but not everything is well; 36 no
    quorum, nothing can be committed now; 24 no answer of any replica. It is true without traffic, too.
    """
    known, answers = ask(addresses, timeout, cluster or ZERO16)
    judgement = judge(known, answers)
    rows = describe(known, answers)
    if as_json:
        print_json({"cluster": asdict(judgement), "replicas": rows})
    else:
        click.echo(render(rows))
        click.echo(sentence(judgement))
    if judgement.verdict == Verdict.NO_ANSWER:
        raise UnavailableError(f"none of the {len(known)} replicas answered; is the cluster running?")
    return EXIT_CODES[judgement.verdict]


def ask(addresses: Sequence[str], timeout: float, cluster: ClusterId) -> tuple[tuple[str, ...], list[Answer]]:
    """All members that can be found, and their answers: an error takes the place of one."""
    started = time.monotonic()
    told = dict(zip(addresses, probe.ask_all(addresses, timeout, cluster), strict=True))
    members = max((answer.members for answer in told.values() if isinstance(answer, probe.Told)), key=len, default=())
    if others := _not_among(members, told):
        told |= dict(zip(others, probe.ask_all(others, timeout, cluster), strict=True))
    if is_doubtful(answers := _statuses(told.values())):
        # Give the primary the time after which it takes silence for what it is.
        time.sleep(max(0.0, started + 1.5 * contact_s(*answers) - time.monotonic()))
        again = [address for address, answer in told.items() if isinstance(answer, probe.Told)]
        told |= dict(zip(again, probe.ask_all(again, timeout, cluster), strict=True))
    return tuple(told), _statuses(told.values())


def _not_among(members: Sequence[str], told: Mapping[str, probe.Told | UnavailableError]) -> list[str]:
    """Members that have not been asked; the same replica may be known under another name."""
    indexes = {answer.status.get("replica") for answer in told.values() if isinstance(answer, probe.Told)}
    return [member for index, member in enumerate(members) if member not in told and index not in indexes]


def _statuses(told: Any) -> list[Answer]:
    return [answer.status if isinstance(answer, probe.Told) else answer for answer in told]


def describe(addresses: Sequence[str], answers: Sequence[Answer]) -> list[dict[str, object]]:
    """One row for each address: what the replica said, and what only a comparison can say."""
    said = [answer for answer in answers if not isinstance(answer, UnavailableError)]
    rows: list[dict[str, object]] = []
    for index, (address, answer) in enumerate(zip(addresses, answers, strict=True)):
        if isinstance(answer, UnavailableError):
            rows.append({"replica": index, "address": address, "reachable": False, "unhealthy": str(answer)})
            continue
        rows.append({**answer, "address": address, "reachable": True, "lag": behind(answer, said)})
    return rows


def render(rows: Sequence[dict[str, object]]) -> str:
    """The rows as a table for people."""
    shown: list[dict[str, object]] = []
    for row in rows:
        if row["reachable"]:
            role = row.get("role") if row.get("status") == "normal" else row.get("status")
            shown.append(
                {**row, "role": role, "events": row.get("positions"), "health": health(row) or remark(row) or "ok"}
            )
        else:
            shown.append({**row, "role": "unreachable", "health": row["unhealthy"]})
    return table(COLUMNS, shown, left=("replica",))


def sentence(judgement: Judgement) -> str:
    """The verdict, for people."""
    why = f": {'; '.join(judgement.reasons)}" if judgement.reasons else ""
    return f"cluster: {judgement.verdict}{why}"
