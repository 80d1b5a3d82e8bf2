"""The keys of [telemetry.otlp] and [telemetry.statsd]: where metrics are sent.

May import: config.knobs.
"""

from __future__ import annotations

from dataclasses import dataclass

from kimberlite.config.knobs import knob

METRICS = ("all", "essential")


@dataclass(frozen=True, slots=True)
class OtlpConfig:
    """Metrics to an OpenTelemetry collector, or to whatever takes OTLP. Needs the extra `otel`: `pip install
    'kimberlite-vsr[otel]'`, and `telemetry.enabled`."""

    endpoint: str = knob(
        "",
        "URL of the receiver, `http://127.0.0.1:4318` for a collector on this machine; /v1/metrics is added. Empty: "
        "nothing is sent. Headers, certificates and compression are set in the environment of the replica, as the "
        "exporter of OpenTelemetry reads them: OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE.",
    )
    protocol: str = knob(
        "http",
        "`http`: protobuf over HTTP. `grpc`: for which the extra is `otel-grpc`, and the port usually 4317.",
        choices=("http", "grpc"),
    )
    interval_s: int = knob(
        10,
        "How often metrics are sent.",
        unit="s",
        low=1,
        high=3_600,
        too_low="The receiver stores more, and the telemetry process takes more CPU time.",
        too_high="What is over between two of them is not seen.",
    )
    timeout_s: int = knob(
        5,
        "How long the receiver may take, repetitions included.",
        unit="s",
        low=1,
        high=600,
        too_low="A receiver that is slow for a moment costs readings.",
        too_high="Readings wait for a receiver that hangs, and the fourth is dropped.",
    )
    temporality: str = knob(
        "cumulative",
        "Whether counters and histograms are told as totals since the start of the replica, or as what came since the "
        "last delivery. Most receivers want `cumulative`; some that store changes want `delta`.",
        choices=("cumulative", "delta"),
    )
    histograms: str = knob(
        "exponential",
        "`exponential`: scale 3, exact, quantiles within 4.4 %. `explicit`: the classic buckets, for receivers that "
        "take nothing else.",
        choices=("exponential", "explicit"),
    )
    metrics: str = knob("all", "Which metrics are sent.", choices=METRICS)


@dataclass(frozen=True, slots=True)
class StatsdConfig:
    """Metrics to a StatsD or DogStatsD server, over UDP. Needs `telemetry.enabled`."""

    address: str = knob("", "Address of the server, `127.0.0.1:8125`. Empty: nothing is sent.")
    dialect: str = knob(
        "statsd",
        "`statsd`: the values of labels are parts of the name. `dogstatsd`: they are tags.",
        choices=("statsd", "dogstatsd"),
    )
    interval_s: int = knob(
        10,
        "How often metrics are sent. As the flush interval of the server.",
        unit="s",
        low=1,
        high=3_600,
        too_low="More datagrams, and quantiles of few events.",
        too_high="What is over between two of them is not seen.",
    )
    prefix: str = knob(
        "vsr",
        "What every name begins with. Where several clusters report to one server without tags, another one for each.",
    )
    metrics: str = knob("all", "Which metrics are sent.", choices=METRICS)
