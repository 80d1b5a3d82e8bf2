"""Telemetry: what a replica measures, and the process that serves it.

    catalogue    every metric, declared once
    region       where the shared memory of a replica is
    recorder     in the replica: events into cells; its rooms are in recording
    log          in the replica: events into lines on standard error
    supervisor   in the replica: start and watch the telemetry process
    reading      everywhere else: cells and /proc into values; `snapshot` for offline inspection
    prometheus, health, server, __main__   the telemetry process

The replica imports catalogue, region, recorder, log and supervisor only; pages, sinks, OpenTelemetry and the HTTP
server are the telemetry process's.
"""

from __future__ import annotations

from pathlib import Path


def snapshot(directory: Path) -> dict[str, object]:
    """All metrics of the replica in `directory`, running or crashed: see telemetry.reading.snapshot."""
    from kimberlite.telemetry import reading

    return reading.snapshot(directory)
