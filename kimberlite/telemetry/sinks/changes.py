"""What has changed since a sink last told it: counters and histograms as differences.

What was not delivered is not told: it is in the next difference. A telemetry process that is not the first of its
replica begins with what the replica had counted already: its predecessor has told that.

Thread rules: that of the sink. May import: _fast.metrics, telemetry.
"""

from __future__ import annotations

from collections.abc import Iterable

from kimberlite._fast.metrics import HistogramValue, Kind
from kimberlite.telemetry.pages import About, Page
from kimberlite.telemetry.reading import Sample

Key = tuple[str, tuple[str, ...]]
Value = float | HistogramValue


class Changes:
    """What a sink has told, by series."""

    def __init__(self, about: About) -> None:
        self._told: dict[Key, Value] = {}
        self.since_unix_ns = about.started_unix_ns if about.is_first else 0
        """Until when everything was told."""

    def begin(self, page: Page) -> bool:
        """Whether there is something to tell: not on the first page of a process that is not the first."""
        if self.since_unix_ns:
            return True
        self.tell(page.samples)
        self.since_unix_ns = page.unix_ns
        return False

    def of(self, sample: Sample) -> Value:
        """By how much a counter or histogram has grown."""
        before, value = self._told.get(_key(sample), 0), sample.value
        if isinstance(value, HistogramValue):
            return difference(value, before) if isinstance(before, HistogramValue) else value
        return value - before if not isinstance(before, HistogramValue) else value

    def tell(self, samples: Iterable[Sample]) -> None:
        """These were delivered."""
        for sample in samples:
            if sample.metric.kind is not Kind.GAUGE:
                self._told[_key(sample)] = sample.value

    def save(self) -> dict[Key, Value]:
        """For `restore`: what was told until now."""
        return dict(self._told)

    def restore(self, told: dict[Key, Value]) -> None:
        """What was told since was not heard."""
        self._told = told


def _key(sample: Sample) -> Key:
    return sample.metric.name, sample.values


def difference(value: HistogramValue, before: HistogramValue) -> HistogramValue:
    """What a histogram has counted since."""
    bins = {number: count - before.bins.get(number, 0) for number, count in value.bins.items()}
    return HistogramValue(
        value.count - before.count,
        value.sum_ns - before.sum_ns,
        tuple(count - had for count, had in zip(value.buckets, before.buckets, strict=True)),
        {number: count for number, count in bins.items() if count},
    )
