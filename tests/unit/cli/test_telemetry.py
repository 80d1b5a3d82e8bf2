"""`kimberlite telemetry catalogue`."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from kimberlite.cli import main
from kimberlite.telemetry import catalogue

Printed = Callable[..., list[str]]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    def run(*arguments: str) -> list[str]:
        assert main(["telemetry", "catalogue", *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize("units", catalogue.UNITS)
def test_names(printed: Printed, units: str) -> None:
    assert printed("--names", "--units", units) == [metric.exposed_name(units) for metric in catalogue.METRICS]
    few = [metric.exposed_name(units) for metric in catalogue.METRICS if metric.essential]
    assert printed("--names", "--essential", "--units", units) == few


def test_everything_that_is_known(printed: Printed) -> None:
    rows = [json.loads(line) for line in printed("--json")]
    assert [row["name"] for row in rows] == printed("--names")
    (row,) = [row for row in rows if row["name"] == "vsr_commit_stage_latency_ms"]
    assert (row["kind"], row["unit"], row["essential"]) == ("histogram", "ms", True)
    assert row["labels"] == {"stage": ["queue", "journal", "replicate", "apply", "reply"]}
    assert row["help"] == catalogue.BY_NAME["commit_stage_latency"].help
    assert all(row["help"] and row["how_to_use"] and row["moved_by"] for row in rows)


def test_a_table(printed: Printed) -> None:
    head, *lines = printed()
    assert head.split() == ["name", "kind", "labels"]
    assert "vsr_commit_critical_path_total" in {line.split()[0] for line in lines} and len(lines) == len(
        catalogue.METRICS
    )
