"""`telemetry`: what a replica measures, from the catalogue; no replica is asked."""

from __future__ import annotations

from typing import Any

import click

from kimberlite.cli.common import json_option, print_json, table
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.catalogue import Metric


@click.group(short_help="What a replica measures.")
def telemetry() -> None:
    """What a replica measures."""


@telemetry.command("catalogue", short_help="Print every metric there is.")
@click.option("--names", is_flag=True, help="Only the names.")
@click.option("--essential", is_flag=True, help="Only what /metrics/essential has.")
@click.option("--units", type=click.Choice(catalogue.UNITS), default="ms", help="As in telemetry.units. [ms]")
@json_option
def catalogue_command(names: bool, essential: bool, units: str, as_json: bool) -> None:
    """Print every metric there is: name, kind, labels, what it says and how to use it.

    Names are those that /metrics has. With --json there is one object for each metric.
    """
    chosen = [metric for metric in catalogue.METRICS if metric.essential or not essential]
    if as_json:
        for metric in chosen:
            print_json(describe(metric, units))
    elif names:
        click.echo("\n".join(metric.exposed_name(units) for metric in chosen))
    else:
        rows = [{**row, "labels": " ".join(row["labels"]) or None} for row in (describe(one, units) for one in chosen)]
        click.echo(table(("name", "kind", "labels"), rows))


def describe(metric: Metric, units: str) -> dict[str, Any]:
    """What --json has of a metric."""
    return {
        "name": metric.exposed_name(units),
        "kind": metric.kind.name.lower(),
        "unit": metric.exposed_unit(units),
        "labels": {
            label.name: "index of a replica" if label.replicas else list(label.values) for label in metric.labels
        },
        "buckets_ms": list(metric.buckets_ms),
        "help": metric.help,
        "how_to_use": metric.how_to_use,
        "moved_by": metric.moved_by,
        "moves_on": metric.role.value,
        "essential": metric.essential,
    }
