"""`status`: what each replica says of itself."""

from __future__ import annotations

from collections.abc import Sequence

import click

from kimberlite.cli import probe
from kimberlite.cli.common import addresses_option, json_option, print_json, timeout_option
from kimberlite.errors import UnavailableError

COLUMNS = ("replica", "address", "role", "view", "op", "commit", "events", "lag", "version", "health")
RIGHT_ALIGNED = {"view", "op", "commit", "events", "lag"}


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
    cells = [list(COLUMNS)]
    for row in rows:
        if not row["reachable"]:
            cells.append([str(row["replica"]), str(row["address"]), "unreachable", *["-"] * 6, str(row["unhealthy"])])
            continue
        role = row.get("role") if row.get("status") == "normal" else row.get("status")
        shown = [
            row.get("replica"),
            row["address"],
            role,
            row.get("view"),
            row.get("op"),
            row.get("commit"),
            row.get("positions"),
            row["lag"],
            row.get("version"),
            row.get("unhealthy") or "ok",
        ]
        cells.append(["-" if value is None else str(value) for value in shown])
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            value.rjust(width) if name in RIGHT_ALIGNED else value.ljust(width)
            for name, value, width in zip(COLUMNS, line, widths, strict=True)
        ).rstrip()
        for line in cells
    )
