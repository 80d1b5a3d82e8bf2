"""The metrics of a replica: the memory that it counts in, and the process that serves them.

May import: config, errors, process, _fast, storage, telemetry, types, vsr, node.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from kimberlite import __version__
from kimberlite._fast import checksum
from kimberlite._fast.metrics import Region
from kimberlite.config import Config
from kimberlite.errors import ConfigError, KimberliteError
from kimberlite.node.measured import MeasuredDisk
from kimberlite.node.settings import core_config
from kimberlite.storage.store import Store
from kimberlite.telemetry import catalogue, region
from kimberlite.telemetry.log import Log
from kimberlite.telemetry.recorder import Recorder
from kimberlite.telemetry.silent import SilentRecorder
from kimberlite.telemetry.supervisor import TAKEOVER_S, TelemetryProcess, listen
from kimberlite.types import RELEASE
from kimberlite.vsr.config import MS


@dataclass(frozen=True, slots=True)
class Metrics:
    """process: None when nothing is served. problem: why the memory is not shared; empty when it is. descriptor: of
    the file of the memory, -1 when it is not shared."""

    recorder: Recorder
    process: TelemetryProcess | None
    problem: str
    descriptor: int

    async def close(self, in_order: bool = True) -> None:
        """Only an end in order says so; after a failure the last values stay, to be looked at."""
        self.recorder.close(in_order=in_order)
        if self.process is not None:
            await self.process.stop()
        if in_order and self.recorder.is_recording:
            region.remove(self.recorder.region)
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def status(self) -> dict[str, object]:
        return self.process.status() if self.process is not None else {"problem": self.problem}


async def open_metrics(
    config: Config, directory: Path, disk: MeasuredDisk, store: Store, log: Log, opened_at: int
) -> Metrics:
    """The recorder and, when metrics are served, the process, which is not started yet. Raises AddressInUseError,
    ConfigError when the package of a sink is not installed.

    Memory that is not to be had costs the metrics, not the replica.
    """
    check_extras(config)
    if store.superblock_damaged:
        log.say("damage_found", what="superblock", found_count=store.superblock_damaged)
    replica = config.cluster.replica
    if not config.telemetry.record:
        silent = SilentRecorder(replica, config.replica_count, log)
        return Metrics(silent, None, "", -1)
    takes_over = region.crashed(directory)
    problem, descriptor = "", -1
    try:
        about = info(config, disk, store)
        memory = region.create(directory, config.replica_count, about, config.telemetry.units)
        descriptor = region.descriptor_of(memory)
    except (OSError, KimberliteError) as error:
        problem = f"metrics are not shared: {error}"
        memory = Region.create(None, catalogue.layout(config.replica_count))
    recorder = Recorder(memory, replica, config.replica_count, log, opened_at, slow_ns=config.log.slow_ms * MS)
    recorder.storage.superblock_damaged(store.superblock_damaged)
    disk.switch = recorder.loop.switch
    disk.on_error = recorder.storage.failed
    if not config.telemetry.enabled or memory.path is None:
        return Metrics(recorder, None, problem, descriptor)
    host, port = config.telemetry_address
    names = [str(path) for path in region.paths(directory)]
    try:
        listener = await listen(host, port, TAKEOVER_S if takes_over else 0.0, names)
        served = TelemetryProcess(str(memory.path), descriptor, listener, config.telemetry.units, sinks(config), log)
    except BaseException:
        await Metrics(recorder, None, problem, descriptor).close()
        raise
    return Metrics(recorder, served, problem, descriptor)


def sinks(config: Config) -> dict[str, dict[str, object]]:
    """Where metrics are sent, as telemetry.sinks wants it."""
    chosen: dict[str, dict[str, object]] = {}
    if config.telemetry_otlp.endpoint:
        chosen["otlp"] = asdict(config.telemetry_otlp)
    if config.statsd_address is not None:
        host, port = config.statsd_address
        chosen["statsd"] = {**asdict(config.telemetry_statsd), "host": host, "port": port}
    return chosen


def check_extras(config: Config) -> None:
    """Raise ConfigError when metrics are to be sent by a package that is not installed. Nothing of it is imported: it
    is the telemetry process's."""
    otlp = config.telemetry_otlp
    if not otlp.endpoint:
        return
    package = f"opentelemetry-exporter-otlp-proto-{otlp.protocol}"
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        extra = "otel" if otlp.protocol == "http" else "otel-grpc"
        raise ConfigError(
            f"telemetry.otlp.endpoint is set, but {package} is not installed: pip install 'kimberlite-vsr[{extra}]'",
            key="telemetry.otlp.endpoint",
            value=otlp.endpoint,
        ) from None


def info(config: Config, disk: MeasuredDisk, store: Store) -> dict[str, object]:
    """What readers of the metrics may know of this replica."""
    return {
        "cluster": config.cluster.id,
        "replica": config.cluster.replica,
        "replica_count": config.replica_count,
        "segment_bytes": store.segment_bytes,
        "contact_ms": core_config(config).timing.contact_ns // MS,
        "build": {
            "version": __version__,
            "release": str(RELEASE),
            "python": platform.python_version(),
            "checksum_kernel": checksum.kernel(),
        },
        "config": {
            "telemetry_units": config.telemetry.units,
            "storage_mode": disk.mode,
            "heartbeat_ms": str(config.timing.heartbeat_ms),
            "suspect_min_ms": str(config.timing.suspect_min_ms),
            "suspect_max_ms": str(config.timing.suspect_max_ms),
            "pipeline_max": str(config.limits.pipeline_max),
            "queue_max": str(config.limits.queue_max),
            "sessions_max": str(config.limits.sessions_max),
            "segment_bytes": str(store.segment_bytes),
        },
    }
