"""Configuration of one replica: a tree of frozen dataclasses, read from `node.toml`.

Every knob is declared once, with `knob(...)` (sections.py): default, unit, bounds, what it is for and
what goes wrong at both extremes. Loading, checking, writing and the reference page
(docs/configuration.md) all derive from that declaration.

A value that does not fit raises ConfigError, which names the key, the value and what
is allowed; nothing is ever replaced by a default in silence. An unknown key is an
error too, because a misspelt limit that is ignored is a limit that is not there.

May import: errors, types.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import cast

from kimberlite.config.addresses import PORT_MAX
from kimberlite.config.addresses import parse_address as parse_address
from kimberlite.config.addresses import parse_addresses as parse_addresses
from kimberlite.config.addresses import parse_cluster_id as parse_cluster_id
from kimberlite.config.addresses import parse_host as parse_host
from kimberlite.config.knobs import Knob as Knob
from kimberlite.config.knobs import check_value as check_value
from kimberlite.config.knobs import has_default as has_default
from kimberlite.config.knobs import kind_of as kind_of
from kimberlite.config.knobs import knobs_of as knobs_of
from kimberlite.config.sections import (
    KIB,
    SECTION_TYPES,
    SECTOR,
    CheckpointConfig,
    ClusterConfig,
    LimitsConfig,
    LogConfig,
    RetentionConfig,
    ScrubConfig,
    Section,
    StorageConfig,
    TelemetryConfig,
    TimingConfig,
)
from kimberlite.config.sinks import OtlpConfig, StatsdConfig
from kimberlite.errors import ConfigError, DataMissingError
from kimberlite.types import HEADER_SIZE, REPLICAS_MAX, ClusterId

# For programs that embed a replica. What else is here belongs to Kimberlite itself.
__all__ = [
    "CONFIG_NAME",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "LimitsConfig",
    "OtlpConfig",
    "LogConfig",
    "RetentionConfig",
    "ScrubConfig",
    "StatsdConfig",
    "StorageConfig",
    "TelemetryConfig",
    "TimingConfig",
    "from_mapping",
    "load",
    "parse",
]

CONFIG_NAME = "node.toml"  # in the data directory of a replica
REQUEST_OVERHEAD_BYTES = 64 * KIB  # room in a frame for its header and the table of requests


@dataclass(frozen=True, slots=True)
class Config:
    """Everything one replica is told. Construct through `load` or `from_mapping`, or
    directly when embedding; the constructor checks what concerns several keys."""

    cluster: ClusterConfig
    timing: TimingConfig = field(default_factory=TimingConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    scrub: ScrubConfig = field(default_factory=ScrubConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    telemetry_otlp: OtlpConfig = field(default_factory=OtlpConfig)
    telemetry_statsd: StatsdConfig = field(default_factory=StatsdConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        for section_name, section in self.sections():
            for key, item in knobs_of(type(section)):
                check_value(f"{section_name}.{key}", getattr(section, key), kind_of(type(section), key), item)
        for rule in RULES:
            rule(self)

    def sections(self) -> Iterator[tuple[str, Section]]:
        """All of them by name: [telemetry.otlp] is telemetry_otlp here."""
        for item in fields(self):
            yield item.name.replace("_", "."), getattr(self, item.name)

    @property
    def cluster_id(self) -> ClusterId:
        return parse_cluster_id(self.cluster.id)

    @property
    def replica_count(self) -> int:
        return len(self.cluster.addresses)

    @property
    def client_address(self) -> tuple[str, int]:
        """Host and port on which this replica listens for clients."""
        host, port = parse_address(self.cluster.addresses[self.cluster.replica])
        return parse_host(self.cluster.bind) or host, port

    @property
    def peer_address(self) -> tuple[str, int]:
        """Host and port on which this replica listens for peers."""
        host, port = self.client_address
        return host, port + self.cluster.peer_port_offset

    @property
    def telemetry_address(self) -> tuple[str, int]:
        """Host and port of /metrics, /livez and /readyz; port 0 stands for any free one."""
        return parse_address(self.telemetry.listen, port_min=0)

    @property
    def statsd_address(self) -> tuple[str, int] | None:
        """Host and port of the StatsD server; None when nothing is sent to one."""
        return parse_address(self.telemetry_statsd.address) if self.telemetry_statsd.address else None

    @property
    def peer_addresses(self) -> tuple[tuple[str, int], ...]:
        """Where every replica, this one included, can be reached by its peers."""
        pairs = (parse_address(address) for address in self.cluster.addresses)
        return tuple((host, port + self.cluster.peer_port_offset) for host, port in pairs)

    def to_toml(self) -> str:
        """The text of a node.toml: what has no default, and what differs from it."""
        lines = ["# One replica of a Kimberlite cluster. All keys: docs/configuration.md"]
        for name, section in self.sections():
            values = [
                f"{item.name} = {toml_value(getattr(section, item.name))}"
                for item in fields(section)
                if getattr(section, item.name) != item.default
            ]
            if values:
                lines += ["", f"[{name}]", *values]
        return "\n".join(lines) + "\n"


def _check_cluster(config: Config) -> None:
    cluster = config.cluster
    parse_cluster_id(cluster.id)
    count = len(cluster.addresses)
    if not 1 <= count <= REPLICAS_MAX:
        raise ConfigError(
            f"cluster.addresses has {count} addresses; a cluster has from 1 to {REPLICAS_MAX} replicas",
            key="cluster.addresses",
            value=cluster.addresses,
        )
    if cluster.replica >= count:
        raise ConfigError(
            f"cluster.replica is {cluster.replica}, but cluster.addresses has {count} addresses, "
            f"so that the last replica is {count - 1}",
            key="cluster.replica",
            value=cluster.replica,
        )
    seen: dict[tuple[str, int], str] = {}
    for address in cluster.addresses:
        host, port = parse_address(address)
        for what, number in (("client", port), ("peer", port + cluster.peer_port_offset)):
            if number > PORT_MAX:
                raise ConfigError(
                    f"the peer port of {address} would be {number}: lower the port or cluster.peer_port_offset",
                    key="cluster.peer_port_offset",
                    value=cluster.peer_port_offset,
                )
            other = seen.setdefault((host, number), f"the {what} port of {address}")
            if other != f"the {what} port of {address}" or cluster.addresses.count(address) > 1:
                raise ConfigError(
                    f"cluster.addresses: {host}:{number} is both {other} and the {what} port of {address}",
                    key="cluster.addresses",
                    value=cluster.addresses,
                )


def _check_bind(config: Config) -> None:
    try:
        parse_host(config.cluster.bind)
    except ConfigError as error:
        raise ConfigError(f"cluster.bind: {error}", key="cluster.bind", value=config.cluster.bind) from None


def _check_telemetry(config: Config) -> None:
    try:
        host, port = config.telemetry_address
    except ConfigError as error:
        raise ConfigError(f"telemetry.listen: {error}", key="telemetry.listen", value=config.telemetry.listen) from None
    own = parse_address(config.cluster.addresses[config.cluster.replica])
    for what, (other, taken) in (
        ("client", own),
        ("peer", (own[0], own[1] + config.cluster.peer_port_offset)),
    ):
        if (host, port) == (other, taken):
            raise ConfigError(
                f"telemetry.listen is {host}:{port}, which is this replica's {what} address",
                key="telemetry.listen",
                value=config.telemetry.listen,
            )


def _check_sinks(config: Config) -> None:
    statsd, otlp = config.telemetry_statsd, config.telemetry_otlp
    try:
        config.statsd_address  # noqa: B018
    except ConfigError as error:
        raise ConfigError(
            f"telemetry.statsd.address: {error}", key="telemetry.statsd.address", value=statsd.address
        ) from None
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", statsd.prefix):
        raise ConfigError(
            f"telemetry.statsd.prefix is {statsd.prefix!r} but must be 1 to 64 letters, digits, dots, dashes and "
            "underscores",
            key="telemetry.statsd.prefix",
            value=statsd.prefix,
        )
    if otlp.endpoint and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", otlp.endpoint):
        raise ConfigError(
            f"telemetry.otlp.endpoint is {otlp.endpoint!r} but must be a URL, as http://127.0.0.1:4318",
            key="telemetry.otlp.endpoint",
            value=otlp.endpoint,
        )


def _ordered(low_key: str, high_key: str, factor: int = 1, extra: int = 0) -> Callable[[Config], None]:
    """A rule: factor * low_key + extra <= high_key."""

    def value(config: Config, key: str) -> int:
        section, _, name = key.partition(".")
        return cast(int, getattr(getattr(config, section), name))

    def rule(config: Config) -> None:
        low, high = value(config, low_key), value(config, high_key)
        least = factor * low + extra
        if least > high:
            times = f"{factor} times " if factor > 1 else ""
            more = f" plus {extra} bytes of overhead" if extra else ""
            raise ConfigError(
                f"{high_key} is {high} but must be at least {least}: {times}{low_key}, {low},{more}".rstrip(","),
                key=high_key,
                value=high,
            )

    return rule


def _check_backlog(config: Config) -> None:
    limits = config.limits
    least = max(limits.request_bytes_max, limits.prepare_bytes_max) + REQUEST_OVERHEAD_BYTES
    if 0 < limits.backlog_bytes < least:
        raise ConfigError(
            f"limits.backlog_bytes is {limits.backlog_bytes} but must be at least {least}, the largest entry, which "
            "limits.request_bytes_max and limits.prepare_bytes_max allow; or 0, for twice a full pipeline of these",
            key="limits.backlog_bytes",
            value=limits.backlog_bytes,
        )


# What concerns several keys. Bounds of single keys are with their declarations.
RULES: tuple[Callable[[Config], None], ...] = (
    _check_cluster,
    _check_bind,
    _check_telemetry,
    _check_sinks,
    _ordered("timing.heartbeat_ms", "timing.suspect_min_ms", factor=2),
    _ordered("timing.suspect_min_ms", "timing.suspect_max_ms"),
    _ordered("timing.vote_resend_ms", "timing.vote_window_ms", factor=2),
    _ordered("timing.view_change_ms", "timing.view_change_max_ms"),
    _ordered("limits.event_bytes_max", "limits.request_bytes_max", extra=HEADER_SIZE),
    _ordered("limits.request_bytes_max", "limits.frame_bytes_max", extra=REQUEST_OVERHEAD_BYTES),
    _ordered("limits.prepare_bytes_max", "limits.frame_bytes_max", extra=REQUEST_OVERHEAD_BYTES),
    _ordered("limits.request_bytes_max", "limits.queue_bytes_max"),
    _check_backlog,
    _ordered("limits.frame_bytes_max", "limits.connection_bytes_max", factor=4),
    _ordered("limits.repairs_per_peer_max", "limits.repairs_max"),
    _ordered("limits.frame_bytes_max", "storage.segment_bytes", extra=2 * SECTOR),
)


def from_mapping(document: Mapping[str, object], source: str = "configuration") -> Config:
    """A Config from nested mappings, as a TOML parser gives them. Raises ConfigError."""
    try:
        _refuse_unknown(document, {name for name in SECTION_TYPES if "." not in name}, "section")
        built: dict[str, Section] = {}
        for name, section_type in SECTION_TYPES.items():
            values = _values(document, name)
            own = {key: value for key, value in values.items() if f"{name}.{key}" not in SECTION_TYPES}
            built[name.replace(".", "_")] = _section(name, section_type, own)
        return Config(**built)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}", **error.details) from None


def _values(document: Mapping[str, object], name: str) -> Mapping[str, object]:
    """What a document has of a section, which may be in another one."""
    found: object = document
    for part in name.split("."):
        found = found.get(part, {}) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping):
        raise ConfigError(f"{name} is {found!r} but must be a section: [{name}]", key=name, value=found)
    return found


def _section(name: str, section_type: type[Section], values: Mapping[str, object]) -> Section:
    known = dict(knobs_of(section_type))
    _refuse_unknown(values, {f"{name}.{key}" for key in known}, "key", prefix=f"{name}.")
    given: dict[str, object] = {}
    for key, value in values.items():
        given[key] = tuple(value) if isinstance(value, list) else value
        check_value(f"{name}.{key}", given[key], kind_of(section_type, key), known[key])
    missing = [item.name for item in fields(section_type) if item.name not in given and not has_default(item)]
    if missing:
        raise ConfigError(
            f"{name}.{missing[0]} is missing; for example {missing[0]} = {known[missing[0]].example}",
            key=f"{name}.{missing[0]}",
        )
    return section_type(**given)  # type: ignore[arg-type]


def _refuse_unknown(
    given: Mapping[str, object], known: Mapping[str, object] | set[str], what: str, prefix: str = ""
) -> None:
    for key in given:
        name = f"{prefix}{key}"
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; there is {', '.join(sorted(known))}"
            raise ConfigError(f"unknown {what} {name}{hint}", key=name, nearest=near[0] if near else None)


def parse(text: str, source: str = "configuration", overrides: tuple[str, ...] = ()) -> Config:
    """A Config from TOML text. `overrides` are `section.key=value` items that win over it."""
    try:
        document: dict[str, object] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is no valid TOML: {error}", source=source) from None
    for override in overrides:
        apply_override(document, override)
    return from_mapping(document, source)


def load(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a node.toml. DataMissingError when there is no such file, ConfigError when it is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataMissingError(
            f"{path} does not exist; create a replica with `kimberlite format`", path=str(path)
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}", source=str(path)) from None
    return parse(text, str(path), overrides)


def new_replica(cluster: str, replica: int, addresses: Sequence[str], settings: Sequence[str], source: str) -> Config:
    """The configuration of a replica that is being made: who it is, and `section.key=value` items.

    Raises ConfigError.
    """
    document: dict[str, object] = {
        "cluster": {"id": parse_cluster_id(cluster).hex(), "replica": replica, "addresses": list(addresses)}
    }
    for setting in settings:
        apply_override(document, setting)
    return from_mapping(document, source)


def apply_override(document: dict[str, object], override: str) -> None:
    """Put `section.key=value` into a document. The value is TOML; a bare word is a string."""
    name, equals, value_text = override.partition("=")
    section, dot, key = name.strip().rpartition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"{override!r} is not section.key=value", value=override)
    try:
        value = tomllib.loads(f"value = {value_text}")["value"]
    except tomllib.TOMLDecodeError:
        value = value_text.strip()
    values: object = document
    for part in section.split("."):
        values = values.setdefault(part, {}) if isinstance(values, dict) else None
    if isinstance(values, dict):
        values[key] = value


def toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    # A JSON string is a TOML string but for DEL, which TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
