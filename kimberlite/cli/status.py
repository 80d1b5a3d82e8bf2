"""`status`: what each replica says of itself."""

from __future__ import annotations

from collections.abc import Sequence

import click

from kimberlite.cli import probe
from kimberlite.cli.common import addresses_option, json_option, print_json, table, timeout_option
from kimberlite.errors import UnavailableError

COLUMNS = ("replica", "address", "role", "view", "op", "commit", "events", "lag", "version", "health")


@click.command(short_help="Show what each replica is doing.")
@addresses_option
@timeout_option(2.0, "How long to wait for each replica.")
@json_option
def status(addresses: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Show what each replica is doing.

    Every address is asked by itself, so that this works without a quorum and without a
    primary. Exits with 24 when no replica answers. `lag` is the number of operations that a
    replica is behind the most advanced one that answered.
    """
    answers = probe.fetch_all(addresses, timeout)
    rows = describe(addresses, answers)
    if as_json:
        print_json({"replicas": rows})
    else:
        click.echo(render(rows))
    if all(isinstance(answer, UnavailableError) for answer in answers):
        raise UnavailableError(f"none of the {len(addresses)} replicas answered; is the cluster running?")


def describe(
    addresses: Sequence[str], answers: Sequence[dict[str, object] | UnavailableError]
) -> list[dict[str, object]]:
    """One row for each address: what the replica said, and what only a comparison can say."""
    commits = [
        commit for answer in answers if isinstance(answer, dict) and isinstance(commit := answer.get("commit"), int)
    ]
    newest = max(commits, default=0)
    rows: list[dict[str, object]] = []
    for index, (address, answer) in enumerate(zip(addresses, answers, strict=True)):
        if isinstance(answer, UnavailableError):
            rows.append({"replica": index, "address": address, "reachable": False, "unhealthy": str(answer)})
            continue
        commit = answer.get("commit")
        lag = newest - commit if isinstance(commit, int) else None
        rows.append({**answer, "address": address, "reachable": True, "lag": lag})
    return rows


def render(rows: Sequence[dict[str, object]]) -> str:
    """The rows as a table for people."""
    shown: list[dict[str, object]] = []
    for row in rows:
        if row["reachable"]:
            role = row.get("role") if row.get("status") == "normal" else row.get("status")
            shown.append({**row, "role": role, "events": row.get("positions"), "health": row.get("unhealthy") or "ok"})
        else:
            shown.append({**row, "role": "unreachable", "health": row["unhealthy"]})
    return table(COLUMNS, shown, left=("replica",))
