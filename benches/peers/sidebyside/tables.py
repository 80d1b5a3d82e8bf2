"""Rows as Markdown: a table a workload, a line a system and version, with the ratios of one system to the others."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from sidebyside.rows import BATCH, Row, concurrency_of, json_rows, name_of

LEFT = {"system", "durable", "operation", "all ms"}  # columns of words
WORKLOAD_TITLES = {
    "c1": "c1: one client, one event in flight",
    "batch": f"batch: {BATCH:,} events a request (NATS: 8,192 messages in flight)",
}


def read_rows(paths: Iterable[str]) -> list[Row]:
    rows = []
    for path in paths:
        with open(path) as file:
            rows += json_rows(file.read())
    return rows


def merged(rows: Iterable[Row]) -> list[Row]:
    """One row for each system, version and workload: the medians, where there are several; of failover all gaps."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if "workload" in row and "error" not in row and "skipped" not in row:
            key = (row["system"], str(row.get("version")), row["workload"], signal_of(row))
            groups.setdefault(key, []).append(row)
    result = []
    for group in groups.values():
        row = dict(group[-1])
        for field in ("ops_per_s", "p50_ms", "p99_ms"):
            values = [one[field] for one in group if one.get(field) is not None]
            row[field] = statistics.median(values) if values else None
        gaps = [gap for one in group for gap in one.get("gaps_ms", [])]
        if gaps:
            row.update(gaps_ms=gaps, p50_ms=statistics.median(gaps), p99_ms=max(gaps), n=len(gaps))
            lost = [one["lost"] for one in group if "lost" in one]
            row.update({"lost": sum(lost)} if lost else {})
        result.append(row)
    return result


def signal_of(row: Row) -> str:
    """What its leader got: of failover alone."""
    return str(row.get("signal", "KILL")) if row["workload"] == "failover" else ""


def shown(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return "-"
    if digits is None:
        digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f}"


def ratio(a: float | None, b: float | None) -> str:
    return f"{a / b:.2f}x" if a and b else "-"


def markdown(header: list[str], lines: list[list[str]]) -> list[str]:
    rule = ["---" if name in LEFT else "---:" for name in header]
    rows = [[cell.replace("|", "\\|") for cell in cells] for cells in [header, rule, *lines]]
    return ["| " + " | ".join(cells) + " |" for cells in rows]


def workload_order(workload: str) -> tuple[int, int]:
    n = concurrency_of(workload)
    return (0, n) if n else (1, 0)


def with_ratios(
    rows: list[Row], mine: Row, cells: Callable[[Row], list[str]], fields: Sequence[str]
) -> list[list[str]]:
    """A line for each row: its cells, then the ratios of the row `mine` to it."""
    return [[*cells(row), *(ratio(mine.get(field), row.get(field)) for field in fields)] for row in rows]


def named(row: Row) -> str:
    version = "" if row["system"] == "floor" else row.get("version", "")
    return f"{row['system']} {version}".strip()


def newest(rows: list[Row], base: str) -> Row:
    """The base's row that came last, as of its newest version."""
    return next((row for row in reversed(rows) if row["system"] == base), {})


def workload_table(workload: str, rows: list[Row], base: str) -> list[str]:
    def cells(row: Row) -> list[str]:
        figures = [shown(row["ops_per_s"]), shown(row["p50_ms"]), shown(row["p99_ms"])]
        return [named(row), row.get("durable", ""), *figures]

    mine = newest(rows, base)
    rows = sorted(rows, key=lambda row: -(row["ops_per_s"] or 0))
    lines = with_ratios(rows, mine, cells, ["ops_per_s", "p50_ms", "p99_ms"])
    title = WORKLOAD_TITLES.get(workload, f"{workload}: {workload[1:]} events in flight")
    header = ["system", "durable", "events/s", "p50 ms", "p99 ms", f"{base} / it: events/s", "p50", "p99"]
    return [f"### {title}", "", *markdown(header, lines), ""]


def failover_table(number: str, rows: list[Row], base: str) -> list[str]:
    def cells(row: Row) -> list[str]:
        return [
            named(row),
            shown(row["p50_ms"], 0),
            shown(row["p99_ms"], 0),
            str(row.get("n", "-")),
            ", ".join(shown(gap, 0) for gap in row.get("gaps_ms", [])),
            str(row.get("lost", "-")),
        ]

    title = f"failover: from the last acknowledgement before the leader gets SIG{number} to the next"
    header = ["system", "median ms", "longest ms", "trials", "all ms", "lost acks", f"{base} / it"]
    lines = with_ratios(rows, newest(rows, base), cells, ["p50_ms"])
    return [f"### {title}", "", *markdown(header, lines), ""]


def machine_table(rows: list[Row]) -> list[str]:
    text = ["### The machine itself", ""]
    for row in rows:
        if row["workload"] == "info":
            what = f"{row['cpus']} CPUs ({row['cpu']}), Linux {row['kernel']}, {row['filesystem']}."
            text += [what, ""]
    lines = [
        [
            row["workload"],
            shown(row["ops_per_s"]),
            shown(row["p50_ms"], 3),
            shown(row["p99_ms"], 3),
            shown(row["ops_per_s"] * row["size"] / 1e6),
        ]
        for row in rows
        if row["workload"] != "info"
    ]
    return [*text, *markdown(["operation", "per s", "p50 ms", "p99 ms", "MB/s"], lines), ""]


def not_measured(rows: Iterable[Row]) -> list[str]:
    """Each system that was skipped or failed in any round, and why."""
    reasons = [(name_of(row), row.get("skipped") or row.get("error")) for row in rows]
    missing = dict.fromkeys(f"{name} ({reason})" for name, reason in reasons if reason)
    return [f"Not measured: {'; '.join(missing)}.", ""] if missing else []


def table(rows: Sequence[Row], base: str) -> str:
    """All tables. base: the system that the ratios are of."""
    workloads: dict[str, list[Row]] = {}
    failovers: dict[str, list[Row]] = {}
    machine: list[Row] = []
    for row in merged(rows):
        if row["system"] == "machine":
            machine.append(row)
        elif row["workload"] == "failover":
            failovers.setdefault(signal_of(row), []).append(row)
        else:
            workloads.setdefault(row["workload"], []).append(row)
    text = []
    for workload in sorted(workloads, key=workload_order):
        text += workload_table(workload, workloads[workload], base)
    for number, gaps in failovers.items():
        text += failover_table(number, gaps, base)
    if machine:
        text += machine_table(machine)
    return "\n".join(text + not_measured(rows))
