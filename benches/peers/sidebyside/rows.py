"""Rows: what was measured, one JSON object each. README.md names their fields."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]

REPLICAS = 3
SIZE = 128  # bytes of an event
BATCH = 8189  # events a request: TigerBeetle's most, in its 1 MiB message
WARMUP = 0.5
WORKLOADS = "c1,c64,c256,batch"


class Results:
    """Prints rows as they come, keeps them, and appends them to a file."""

    def __init__(self, out: str | None) -> None:
        self.rows: list[Row] = []
        self._out = out
        self._at = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def add(self, row: Row) -> None:
        row = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        row.setdefault("at", self._at)
        self.rows.append(row)
        line = json.dumps(row)
        print(line, flush=True)
        if self._out:
            with open(self._out, "a") as file:
                file.write(line + "\n")

    def skip(self, system: str, reason: object, **more: object) -> None:
        """This was to be measured and was not."""
        self.add({"system": system, **more, "skipped": str(reason)})


class Measured:
    """The rows of one system, which share its name, version and durability."""

    def __init__(self, results: Results, system: str, version: str, durable: str, probe: float) -> None:
        self._results = results
        self._common = {"system": system, "version": version, "replicas": REPLICAS, "durable": durable}
        self._probe = probe

    def row(
        self,
        workload: str,
        figures: Row,
        client: str,
        *,
        concurrency: int | None = None,
        batch: int = 1,
        system: str | None = None,
    ) -> None:
        row: Row = {**self._common, "workload": workload, "size": SIZE}
        if system:
            row["system"] = system
        row["concurrency"] = concurrency or concurrency_of(workload) or 1
        row["batch"] = batch
        for key in ("ops_per_s", "p50_ms", "p99_ms", "n"):
            row[key] = figures.get(key)
        row["client"] = client
        for key in ("errors", "unanswered"):
            if figures.get(key):
                row[key] = figures[key]
        row["probe_fdatasync_ms"] = self._probe
        self._results.add(row)


def concurrency_of(workload: str) -> int | None:
    """The N of cN, or None for batch."""
    return int(workload[1:]) if re.fullmatch(r"c[1-9]\d*", workload) else None


def percentiles(latencies_ms: Iterable[float]) -> Row:
    """Of at least one latency."""
    ordered = sorted(latencies_ms)
    if not ordered:
        raise RuntimeError("nothing was answered")
    return {"p50_ms": ordered[len(ordered) // 2], "p99_ms": ordered[len(ordered) * 99 // 100], "n": len(ordered)}


def json_rows(text: str) -> list[Row]:
    """The JSON objects among the lines. `ops_per_s` becomes that of events, where a row tells both."""
    rows = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                row["ops_per_s"] = row.get("events_per_s") or row.get("ops_per_s")
                rows.append(row)
    return rows


def name_of(row: Row) -> str:
    """The system, and the workload where it is one that few systems have."""
    return f"{row['system']} failover" if row.get("workload") == "failover" else str(row["system"])


def shortfalls(rows: Iterable[Row], *, skips: bool) -> list[str]:
    """What is wrong with these rows, a sentence each. skips: whether a skipped system is wrong."""
    wrong = []
    for row in rows:
        if "error" in row:
            wrong.append(f"{name_of(row)} failed: {row['error']}")
        elif skips and "skipped" in row:
            wrong.append(f"{name_of(row)} was skipped: {row['skipped']}")
        elif row.get("lost"):
            wrong.append(f"{name_of(row)} lost {row['lost']} acknowledged appends")
    return wrong
