"""What the process takes, and who it is."""

from __future__ import annotations

from kimberlite.telemetry.catalogue.labels import (
    BUILD_LABELS,
    CONFIG_LABELS,
    OBJECTS,
    OWNERS,
)
from kimberlite.telemetry.catalogue.metric import Label, Source, Unit, gauge
from kimberlite.telemetry.catalogue.scenarios import (
    FIXED,
    LOAD,
)

RESOURCES = (
    gauge(
        "resident_memory",
        "Resident memory of the replica process.",
        "Constant under constant load; steady growth is a leak.",
        "the process running",
        FIXED,
        Unit.BYTES,
        source=Source.PROCESS,
        essential=True,
    ),
    gauge(
        "memory_held",
        "Bytes that the replica holds in buffers: of clients' connections (what has arrived, and answers that they "
        "have not taken), of the other replicas and of entries that wait, or are kept for others.",
        "Each has a bound; resident_memory that grows while these do not is a leak, or fragmentation.",
        "load",
        LOAD,
        Unit.BYTES,
        labels=(Label("owner", OWNERS),),
    ),
    gauge(
        "objects",
        "How many there are in memory of what grows with load: entries of the log, headers of entries, sessions.",
        "Bounded, each of them. For what all other objects are, see docs/profiling.md.",
        "load",
        LOAD,
        labels=(Label("kind", OBJECTS),),
    ),
    gauge(
        "memory_blocks",
        "Blocks of memory that the Python interpreter has allocated: each object is one or more.",
        "Constant under constant load. Growth of objects and of memory_held with it says whose; growth without is a "
        "leak of small objects.",
        "load",
        LOAD,
    ),
    gauge(
        "open_files",
        "Open file descriptors of the replica process.",
        "Connections and segments. Against open_files_limit.",
        "the process running",
        FIXED,
        source=Source.PROCESS,
    ),
    gauge(
        "open_files_limit",
        "Most file descriptors that the replica process may open.",
        "See open_files.",
        "the process running",
        FIXED,
        source=Source.PROCESS,
    ),
    gauge(
        "telemetry_resident_memory",
        "Resident memory of the telemetry process.",
        "Constant: a few tens of MiB.",
        "the process running",
        FIXED,
        Unit.BYTES,
        source=Source.PROCESS,
    ),
    gauge(
        "telemetry_snapshot",
        "Number of the reading that a value is of, counted from 1 by the telemetry process.",
        "Equal in two places: they were told of the same moment. Scrapes have readings of their own; those of the "
        "other sinks share one when they are due at the same time.",
        "every reading",
        FIXED,
        source=Source.PROCESS,
    ),
    gauge(
        "start_time",
        "When the replica started, seconds since 1970.",
        "changes() counts restarts.",
        "a start",
        FIXED,
        Unit.SECONDS,
        source=Source.INFO,
        essential=True,
    ),
    gauge(
        "build_info",
        "1; the labels are version, release of the protocol, version of Python and checksum kernel.",
        "count by (version): more than one during an upgrade only.",
        "a start",
        FIXED,
        source=Source.INFO,
        labels=tuple(Label(name) for name in BUILD_LABELS),
        essential=True,
    ),
    gauge(
        "config_info",
        "1; the labels are the settings that matter when replicas behave differently.",
        "count by (...) of any label: replicas of a cluster should agree.",
        "a start",
        FIXED,
        source=Source.INFO,
        labels=tuple(Label(name) for name in CONFIG_LABELS),
    ),
)
