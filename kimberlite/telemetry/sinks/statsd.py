"""StatsD over UDP, and DogStatsD, which has tags.

Counters are sent as what they have grown by since the last delivery, gauges as they are, of a histogram how its count
and its sum have grown and the quantiles of what came since. A datagram has PACKET_MAX bytes at most: what does not get
fragmented on its way. Sending never waits.

    https://github.com/statsd/statsd/blob/master/docs/metric_types.md
    https://docs.datadoghq.com/developers/dogstatsd/datagram_shell/

A gauge below 0 needs care: plain StatsD takes "-5" for "5 less". Set to 0 first, in the same datagram, it is right.
UDP says nothing of what is lost on the way. Only that nobody listens is told, when the machine of the receiver answers:
then nothing of the round counts as told, and it is in the next one.

Thread rules: that of the sink. May import: _fast.metrics, telemetry.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Iterator
from typing import NamedTuple

from kimberlite._fast.metrics import HistogramValue, Kind, quantile
from kimberlite.telemetry.catalogue import Source
from kimberlite.telemetry.pages import About, Page, label_names
from kimberlite.telemetry.reading import Sample
from kimberlite.telemetry.sinks.changes import Changes

PACKET_MAX = 1400
PLAIN, DOG = "statsd", "dogstatsd"
DIALECTS = (PLAIN, DOG)
QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}


class Lines(NamedTuple):
    """What is sent of a sample, and must not be torn apart."""

    text: bytes
    sample: Sample


class StatsdSink:
    """A server of one of DIALECTS at an address. prefix: what every name begins with."""

    name = "statsd"

    def __init__(
        self, about: About, host: str, port: int, dialect: str, interval_s: float, prefix: str, essential: bool
    ) -> None:
        self.interval_s = interval_s
        self._about = about
        self._address = host, port
        self._is_plain = dialect == PLAIN
        self._prefix = prefix
        self._essential = essential
        self._changes = Changes(about)
        self._socket: socket.socket | None = None

    def send(self, page: Page) -> None:
        """Raises OSError when the system or the receiver refuses a datagram: the rest is for the next page."""
        if not self._changes.begin(page):
            return
        told = self._changes.save()
        try:
            if self._socket is None:
                self._socket = self._connect()
            for packet, samples in packets(self._lines(page)):
                self._socket.send(packet)
                self._changes.tell(samples)
        except OSError as error:
            if isinstance(error, ConnectionRefusedError):
                self._changes.restore(told)
            self._disconnect()  # the name may have got another address
            raise
        self._changes.since_unix_ns = page.unix_ns

    def _connect(self) -> socket.socket:
        family, kind, protocol, _, address = socket.getaddrinfo(*self._address, type=socket.SOCK_DGRAM)[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setblocking(False)
            made.connect(address)  # so that refusals are heard of
        except BaseException:
            made.close()
            raise
        return made

    def close(self) -> None:
        """Nothing more is sent."""
        self._disconnect()

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _lines(self, page: Page) -> Iterator[Lines]:
        for sample in page.select(self._essential):
            if sample.metric.source is not Source.INFO and (text := self._told(sample)):
                yield Lines("\n".join(text).encode(), sample)

    def _told(self, sample: Sample) -> list[str]:
        """The lines of a sample; none when there is nothing to say."""
        name, tags = self._names(sample)
        scale = sample.metric.scale(self._about.units)
        if sample.metric.kind is Kind.GAUGE:
            return self._gauge(name, tags, sample.value, scale)
        change = self._changes.of(sample)
        if isinstance(change, HistogramValue):
            return self._histogram(name, tags, change, scale) if change.count else []
        return [f"{name}:{number(change / scale)}|c{tags}"] if change > 0 else []

    def _gauge(self, name: str, tags: str, value: float | HistogramValue, scale: float) -> list[str]:
        if isinstance(value, HistogramValue) or not math.isfinite(value):
            return []
        line = f"{name}:{number(value / scale)}|g{tags}"
        return [f"{name}:0|g{tags}", line] if value < 0 and self._is_plain else [line]

    def _histogram(self, name: str, tags: str, change: HistogramValue, scale: float) -> list[str]:
        bins = self._about.bins
        shares = {key: quantile(change.bins, q, bins) / scale for key, q in QUANTILES.items()}
        return [
            f"{name}.count:{change.count}|c{tags}",
            f"{name}.sum:{number(change.sum_ns / scale)}|c{tags}",
            *(f"{name}.{key}:{number(value)}|g{tags}" for key, value in shares.items()),
        ]

    def _names(self, sample: Sample) -> tuple[str, str]:
        """Name and tags. Plain StatsD has no tags: the replica and the values of the labels are parts of the name."""
        metric, about = sample.metric, self._about
        name = metric.exposed_name(about.units).removesuffix("_total").partition("_")[2]
        if self._is_plain:
            parts = (self._prefix, f"replica_{about.replica}", name, *map(word, sample.values))
            return ".".join(parts), ""
        values = (about.cluster, str(about.replica), *sample.values)
        pairs = ",".join(f"{key}:{word(value)}" for key, value in zip(label_names(metric), values, strict=True))
        return f"{self._prefix}.{name}", f"|#{pairs}"


def word(text: str) -> str:
    """Without what separates in either dialect."""
    return re.sub(r"[^\w-]", "_", text)


def number(value: float) -> str:
    """In full, without an exponent."""
    return str(int(value)) if value == int(value) else f"{value:.9f}".rstrip("0")


def packets(lines: Iterator[Lines]) -> Iterator[tuple[bytes, list[Sample]]]:
    """Lines as datagrams of PACKET_MAX bytes at most."""
    texts: list[bytes] = []
    samples: list[Sample] = []
    size = 0
    for text, sample in lines:
        if texts and size + len(text) > PACKET_MAX:
            yield b"\n".join(texts), samples
            texts, samples, size = [], [], 0
        texts.append(text)
        samples.append(sample)
        size += len(text) + 1
    if texts:
        yield b"\n".join(texts), samples
