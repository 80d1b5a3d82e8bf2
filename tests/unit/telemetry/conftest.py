"""A region as a replica would have written it, without a replica."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kimberlite._fast.metrics import now_ns
from kimberlite.telemetry import region
from kimberlite.telemetry.catalogue import labels
from kimberlite.telemetry.reading import Reader
from kimberlite.telemetry.recorder import Recorder

REPLICAS = 3
OWN = 1
SEGMENT_BYTES = 16 << 20
INFO = {
    "cluster": "5f0c7b9a3f6e4d6ab2c1d0e9f8a7b6c5",
    "replica": OWN,
    "replica_count": REPLICAS,
    "segment_bytes": SEGMENT_BYTES,
    "contact_ms": 1000,
    "build": {"version": "1.2.3", "release": "1", "python": "3.11.7", "checksum_kernel": "scalar"},
    "config": {name: f"of {name}" for name in labels.CONFIG_LABELS},
}


@pytest.fixture
def units() -> str:
    """For whom the bins of histograms are; see catalogue.UNITS."""
    return "ms"


@pytest.fixture
def recorder(tmp_path: Path, units: str) -> Iterator[Recorder]:
    """Of replica 1 of 3, with its data in tmp_path."""
    recorder = Recorder(region.create(tmp_path, REPLICAS, INFO, units), OWN, REPLICAS)
    yield recorder
    region.remove(recorder.region)


@pytest.fixture
def reader(recorder: Recorder, tmp_path: Path) -> Reader:
    assert recorder.region.pid == os.getpid()
    return Reader(region.find(tmp_path))


@pytest.fixture
def put(recorder: Recorder) -> Callable[..., None]:
    """Set gauges by cell name, with underscores for instants: put("draining", 1)."""
    names = {series.name: index for index, series in enumerate(recorder.region.series)}

    def set_gauge(name: str, value: float) -> None:
        recorder.region.gauge(names[name]).set(value)

    return set_gauge


@pytest.fixture
def healthy(recorder: Recorder, put: Callable[..., None]) -> Callable[..., None]:
    """Make it a primary that hears its peers and has nothing to do."""
    now = now_ns()
    recorder.loop.handled()
    for name, value in (
        *(("view_number", 17), ("quorum_size", 2), ("cluster_size", 3), ("is_primary", 1), ("commit_number", 41)),
        *(("disk_free", 1 << 40), ('replica_lag_operations{peer="1"}', 0), ('replica_lag{peer="1"}', 0)),
        *(('peer_last_heard{peer="0"}', now), ('peer_last_heard{peer="2"}', now), ("last_commit", now)),
    ):
        put(name, value)
    return put
