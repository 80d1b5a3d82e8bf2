"""OTLP on real sockets: what an independent receiver decodes, and receivers that hang, refuse and flood."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings

from kimberlite._fast.metrics import Kind
from kimberlite.errors import NetworkError
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.pages import Pages
from kimberlite.telemetry.reading import Reader
from kimberlite.telemetry.recorder import Recorder
from kimberlite.telemetry.sinks.otlp import ANSWER_MAX, OtlpSink, otlp_name
from kimberlite.vsr.events import Event, EventKind

DELTA, CUMULATIVE = 1, 2  # AggregationTemporality


@pytest.fixture
def sink_of() -> Iterator[Callable[..., OtlpSink]]:
    made: list[OtlpSink] = []

    def make(
        pages: Pages, port: int, timeout_s: float = 5.0, delta: bool = False, exponential: bool = True
    ) -> OtlpSink:
        endpoint = f"http://127.0.0.1:{port}"
        made.append(OtlpSink(pages.about, endpoint, "http", 10.0, timeout_s, delta, exponential, essential=False))
        return made[-1]

    yield make
    for sink in made:
        sink.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Taking(BaseHTTPRequestHandler):
    """Keeps what it gets."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/v1/metrics"
        self.server.requests.append(ExportMetricsServiceRequest.FromString(body))  # type: ignore[attr-defined]
        self.answer()

    def answer(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class Refusing(Taking):
    def answer(self) -> None:
        self.send_response(400)
        self.send_header("Content-Length", "9")
        self.end_headers()
        self.wfile.write(b"not today")


class Hanging(Taking):
    def answer(self) -> None:
        self.server.ended.wait(30)  # type: ignore[attr-defined]


class Flooding(Taking):
    def answer(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while not self.server.ended.is_set():  # type: ignore[attr-defined]
                self.wfile.write(b"x" * 65536)
        except OSError:
            self.server.cut_off.set()  # type: ignore[attr-defined]


@pytest.fixture
def serve() -> Iterator[Callable[[type[Taking]], Any]]:
    servers: list[Any] = []

    def start(handler: type[Taking]) -> Any:
        server: Any = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.requests, server.ended, server.cut_off = [], threading.Event(), threading.Event()
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.ended.set()
        server.shutdown()
        server.server_close()


def commit(recorder: Recorder, count: int) -> None:
    recorder.record([Event(EventKind.COMMITTED, op, 3, 2_000_000) for op in range(count)])


def metrics_of(request: Any) -> dict[str, Any]:
    (resource,) = request.resource_metrics
    (scope,) = resource.scope_metrics
    return {metric.name: metric for metric in scope.metrics}


def attributes(point: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in point.attributes}


@pytest.mark.parametrize("units", catalogue.UNITS)
def test_an_independent_receiver_decodes_the_same(
    units: str, recorder: Recorder, sink_of: Callable[..., OtlpSink], reader: Reader
) -> None:
    pages = Pages(reader, units)
    commit(recorder, 7)
    port = free_port()
    page = pages.take()
    wanted = {
        otlp_name(metric, units)
        for metric in {sample.metric for sample in page.samples if sample.value == sample.value}
    }

    async def receive() -> dict[str, Any]:
        found: dict[str, Any] = {}
        async with OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(http_port=port)) as receiver:
            stream = receiver.stream_metrics()
            sending = asyncio.ensure_future(asyncio.to_thread(sink_of(pages, port).send, page))
            async with asyncio.timeout(30):
                async for metric in stream:
                    found[metric.name] = metric
                    if len(found) == len(wanted):
                        break
            await sending
        return found

    found = asyncio.run(receive())
    assert set(found) == wanted
    compared = 0
    for sample in page.samples:
        metric = sample.metric
        labels = dict(zip((label.name for label in metric.labels), sample.values, strict=True))
        told = found.get(otlp_name(metric, units))
        if told is None:
            continue
        assert told.description == metric.help
        data = {Kind.COUNTER: told.sum, Kind.GAUGE: told.gauge, Kind.HISTOGRAM: told.exponential_histogram}[metric.kind]
        points = [point for point in data.data_points if attributes(point) == labels]
        if metric.kind is Kind.HISTOGRAM:
            assert points[0].count == sample.value.count  # type: ignore[union-attr]
        elif sample.value == sample.value:
            (point,) = points
            value = point.as_int if point.WhichOneof("value") == "as_int" else point.as_double
            assert value == pytest.approx(sample.value / metric.scale(units))  # type: ignore[operator]
        else:
            assert not points
        compared += 1
    assert compared > 240
    assert found["vsr.commit_latency"].unit == {"ms": "ms", "base": "s"}[units]
    assert (found["vsr.cpu"].unit, found["vsr.disk_free"].unit, found["vsr.operations"].unit) == ("s", "By", "")
    assert (
        found["vsr.operations"].sum.aggregation_temporality == CUMULATIVE and found["vsr.operations"].sum.is_monotonic
    )


@pytest.mark.parametrize("units", catalogue.UNITS)
def test_exponential_histograms_are_exact(
    units: str,
    recorder: Recorder,
    sink_of: Callable[..., OtlpSink],
    reader: Reader,
    serve: Callable[[type[Taking]], Any],
) -> None:
    server = serve(Taking)
    draw = random.Random(3)
    durations = [0, 1, *(int(draw.lognormvariate(14, 2)) for _ in range(300))]
    recorder.record([Event(EventKind.VIEW_CHANGED, 1, ns) for ns in durations])
    pages = Pages(reader, units)
    sink_of(pages, server.server_port).send(pages.take())
    (point,) = metrics_of(server.requests[0])["vsr.view_change_latency"].exponential_histogram.data_points
    assert (point.count, point.zero_count, point.scale) == (len(durations), 1, 3)
    assert point.start_time_unix_nano == reader.region.started_unix_ns
    assert not point.HasField("min") and not point.HasField("max")
    unit = reader.region.bins.unit_ns
    for number, count in enumerate(point.positive.bucket_counts):
        index = point.positive.offset + number  # above 2 ** (index / 8), at or below 2 ** ((index + 1) / 8)

        def within(ns: int, index: int) -> bool:
            return ns**8 << max(-index, 0) <= unit**8 << max(index, 0)

        assert count == sum(within(ns, index + 1) and not within(ns, index) for ns in durations if ns)


def test_who_is_speaking(
    recorder: Recorder, sink_of: Callable[..., OtlpSink], reader: Reader, serve: Callable[[type[Taking]], Any]
) -> None:
    server = serve(Taking)
    pages = Pages(reader, "ms")
    sink_of(pages, server.server_port).send(pages.take())
    (resource,) = server.requests[0].resource_metrics
    told = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    about = pages.about
    assert told == {
        "service.name": "kimberlite",
        "service.instance.id": f"{about.cluster}/1",
        "service.version": "1.2.3",
        "cluster": about.cluster,
        "replica_id": "1",
    }


def test_deltas_and_classic_buckets(
    recorder: Recorder, sink_of: Callable[..., OtlpSink], reader: Reader, serve: Callable[[type[Taking]], Any]
) -> None:
    server = serve(Taking)
    pages = Pages(reader, "ms")
    sink = sink_of(pages, server.server_port, delta=True, exponential=False)
    times = [reader.region.started_unix_ns]
    for count in (5, 2):
        commit(recorder, count)
        page = pages.take()
        sink.send(page)
        found = metrics_of(server.requests[-1])
        (point,) = [p for p in found["vsr.operations"].sum.data_points if attributes(p) == {"outcome": "committed"}]
        assert (point.as_int, point.start_time_unix_nano, point.time_unix_nano) == (count, times[-1], page.unix_ns)
        assert found["vsr.operations"].sum.aggregation_temporality == DELTA
        (classic,) = found["vsr.commit_latency"].histogram.data_points
        assert (classic.count, classic.sum) == (count, 2.0 * count)
        assert list(classic.explicit_bounds) == list(catalogue.BY_NAME["commit_latency"].buckets_ms)
        assert list(classic.bucket_counts) == [0, 0, 0, count, 0, 0, 0, 0, 0, 0]
        times.append(page.unix_ns)


def test_what_was_refused_is_in_the_next_delta(
    recorder: Recorder, sink_of: Callable[..., OtlpSink], reader: Reader, serve: Callable[[type[Taking]], Any]
) -> None:
    server = serve(Refusing)
    pages = Pages(reader, "ms")
    sink = sink_of(pages, server.server_port, delta=True)
    commit(recorder, 5)
    with pytest.raises(NetworkError, match=r"400|Bad Request"):
        sink.send(pages.take())
    server.RequestHandlerClass = Taking
    commit(recorder, 2)
    sink.send(pages.take())
    (point,) = [
        point
        for point in metrics_of(server.requests[-1])["vsr.operations"].sum.data_points
        if attributes(point) == {"outcome": "committed"}
    ]
    assert (point.as_int, point.start_time_unix_nano) == (7, reader.region.started_unix_ns)


def test_a_receiver_that_hangs(
    sink_of: Callable[..., OtlpSink], reader: Reader, serve: Callable[[type[Taking]], Any]
) -> None:
    server = serve(Hanging)
    pages = Pages(reader, "ms")
    began = time.monotonic()
    with pytest.raises(NetworkError):
        sink_of(pages, server.server_port, timeout_s=0.3).send(pages.take())
    assert time.monotonic() - began < 5


def test_a_receiver_that_floods(
    sink_of: Callable[..., OtlpSink], reader: Reader, serve: Callable[[type[Taking]], Any]
) -> None:
    """An answer without an end is cut off, and fills no memory."""
    server = serve(Flooding)
    pages = Pages(reader, "ms")
    with pytest.raises(NetworkError):
        sink_of(pages, server.server_port, timeout_s=1.0).send(pages.take())
    assert server.cut_off.wait(10)
    assert ANSWER_MAX < 1 << 20


def test_nobody_listens(sink_of: Callable[..., OtlpSink], reader: Reader) -> None:
    pages = Pages(reader, "ms")
    with pytest.raises(NetworkError, match="refused"):
        sink_of(pages, free_port(), timeout_s=0.3).send(pages.take())


def test_over_grpc(recorder: Recorder, reader: Reader) -> None:
    """Of the extra otel-grpc, to a server of grpcio with the service that OpenTelemetry publishes."""
    requests: list[Any] = []

    class Service(metrics_service_pb2_grpc.MetricsServiceServicer):  # type: ignore[misc]
        def Export(self, request: Any, context: Any) -> Any:
            requests.append(request)
            return ExportMetricsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    pages = Pages(reader, "ms")
    sink = OtlpSink(pages.about, f"http://127.0.0.1:{port}", "grpc", 10.0, 5.0, False, True, essential=True)
    try:
        commit(recorder, 4)
        sink.send(pages.take())
        (point,) = metrics_of(requests[0])["vsr.commit_latency"].exponential_histogram.data_points
        assert point.count == 4
        server.stop(0).wait()
        with pytest.raises(NetworkError):
            OtlpSink(pages.about, f"http://127.0.0.1:{port}", "grpc", 10.0, 0.3, False, True, True).send(pages.take())
    finally:
        sink.close()
        server.stop(0).wait()


def test_a_node_has_nothing_of_it() -> None:
    """OpenTelemetry stays out of the process of a replica, though it is installed and set."""
    code = """
import json, sys
import kimberlite.node.node, kimberlite.telemetry.sinks
print(json.dumps(sorted(name.partition(".")[0] for name in sys.modules)))
"""
    loaded = set(json.loads(subprocess.check_output([sys.executable, "-P", "-c", code])))
    assert not loaded & {"opentelemetry", "requests", "google", "grpc", "prometheus_client"}
