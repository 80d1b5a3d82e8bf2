"""How metrics leave the telemetry process. A replica imports nothing of it but this.

prometheus   what a scraper gets: text, OpenMetrics; protobuf is in its own module
protobuf     Prometheus' protobuf exposition, with native histograms
otlp         to an OpenTelemetry collector
statsd       to a StatsD or DogStatsD server
pump         sinks at work: interval, queue, thread
changes      counters and histograms as differences
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kimberlite.telemetry.pages import About
    from kimberlite.telemetry.sinks.pump import Sink

Settings = Mapping[str, Mapping[str, Any]]
"""By sink what is set of it: the keys of [telemetry.otlp] and [telemetry.statsd]; `host` and `port` of an address."""


def make(settings: Settings, about: About) -> Iterator[Sink]:
    """The sinks that are set. Raises ImportError when the package of one is not installed."""
    if "otlp" in settings:
        from kimberlite.telemetry.sinks.otlp import OtlpSink

        told = settings["otlp"]
        yield OtlpSink(
            about,
            told["endpoint"],
            told["protocol"],
            told["interval_s"],
            told["timeout_s"],
            is_delta=told["temporality"] == "delta",
            is_exponential=told["histograms"] == "exponential",
            essential=told["metrics"] == "essential",
        )
    if "statsd" in settings:
        from kimberlite.telemetry.sinks.statsd import StatsdSink

        told = settings["statsd"]
        yield StatsdSink(
            about,
            told["host"],
            told["port"],
            told["dialect"],
            told["interval_s"],
            told["prefix"],
            essential=told["metrics"] == "essential",
        )
