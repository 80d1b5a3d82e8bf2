"""StatsD on a real socket: what is in the datagrams, and what is told again when nobody listened."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from kimberlite.telemetry import catalogue
from kimberlite.telemetry.pages import Pages
from kimberlite.telemetry.reading import Reader
from kimberlite.telemetry.recorder import Recorder
from kimberlite.telemetry.sinks.statsd import PACKET_MAX, StatsdSink, number
from kimberlite.vsr.events import Event, EventKind

LINE = re.compile(r"([A-Za-z0-9_.-]+):(-?[0-9.]+)\|([cg])(\|#[\w:,-]+)?")


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        made.setblocking(False)
        yield made


@pytest.fixture
def sink_of() -> Iterator[Callable[..., StatsdSink]]:
    made: list[StatsdSink] = []

    def make(pages: Pages, server: socket.socket, dialect: str = "statsd", essential: bool = False) -> StatsdSink:
        made.append(StatsdSink(pages.about, *server.getsockname(), dialect, 10, "vsr", essential))
        return made[-1]

    yield make
    for sink in made:
        sink.close()


def received(server: socket.socket) -> list[bytes]:
    packets = []
    while True:
        try:
            packets.append(server.recv(65536))
        except BlockingIOError:
            return packets


def lines(server: socket.socket) -> list[tuple[str, float, str, str]]:
    found = []
    for packet in received(server):
        assert len(packet) <= PACKET_MAX
        for line in packet.decode().split("\n"):
            match = LINE.fullmatch(line)
            assert match, line
            found.append((match[1], float(match[2]), match[3], match[4] or ""))
    return found


def counters(server: socket.socket) -> dict[str, float]:
    return {name: value for name, value, kind, _ in lines(server) if kind == "c"}


def commit(recorder: Recorder, count: int) -> None:
    recorder.record([Event(EventKind.COMMITTED, op, 3, 2_000_000) for op in range(count)])


def test_counters_are_what_came_since(
    recorder: Recorder, reader: Reader, sink_of: Callable[..., StatsdSink], server: socket.socket
) -> None:
    pages = Pages(reader, "ms")
    sink = sink_of(pages, server)
    commit(recorder, 5)
    sink.send(pages.take())
    first = counters(server)
    assert first["vsr.replica_1.operations.committed"] == 5 and first["vsr.replica_1.events"] == 15
    assert first["vsr.replica_1.commit_latency_ms.count"] == 5 and first["vsr.replica_1.commit_latency_ms.sum"] == 10
    sink.send(pages.take())
    assert "vsr.replica_1.operations.committed" not in counters(server)
    commit(recorder, 2)
    sink.send(pages.take())
    assert counters(server)["vsr.replica_1.operations.committed"] == 2


def test_quantiles_are_of_what_came_since(
    recorder: Recorder, reader: Reader, sink_of: Callable[..., StatsdSink], server: socket.socket
) -> None:
    pages = Pages(reader, "ms")
    sink = sink_of(pages, server)
    for duration_ms in (1, 80):
        recorder.record([Event(EventKind.VIEW_CHANGED, 1, duration_ms * 1_000_000)] * 10)
        sink.send(pages.take())
        found = {name: value for name, value, kind, _ in lines(server) if kind == "g"}
        for quantile in ("p50", "p99", "p999"):
            assert found[f"vsr.replica_1.view_change_latency_ms.{quantile}"] == pytest.approx(duration_ms, rel=0.05)


def test_a_gauge_below_zero_is_set_and_not_subtracted(
    reader: Reader, put: Callable[..., None], sink_of: Callable[..., StatsdSink], server: socket.socket
) -> None:
    put("clock_offset", -7_500_000_000)
    pages = Pages(reader, "ms")
    sink_of(pages, server).send(pages.take())
    (packet,) = [packet for packet in received(server) if b"clock_offset" in packet]
    name = b"vsr.replica_1.clock_offset_seconds"
    assert name + b":0|g\n" + name + b":-7.5|g" in packet  # in one datagram, in this order
    sink_of(pages, server, "dogstatsd").send(pages.take())
    (found,) = [line for line in lines(server) if line[0] == "vsr.clock_offset_seconds"]
    assert found[1] == -7.5


def test_tags(recorder: Recorder, reader: Reader, sink_of: Callable[..., StatsdSink], server: socket.socket) -> None:
    pages = Pages(reader, "base")
    commit(recorder, 3)
    sink_of(pages, server, "dogstatsd").send(pages.take())
    found = lines(server)
    ours = f"cluster:{pages.about.cluster},replica_id:1"
    assert ("vsr.operations", 3, "c", f"|#{ours},outcome:committed") in found
    assert ("vsr.events", 9, "c", f"|#{ours}") in found
    assert all(tags.startswith(f"|#{ours}") for *_, tags in found)


def test_what_is_not_known_is_not_sent(
    reader: Reader, sink_of: Callable[..., StatsdSink], server: socket.socket
) -> None:
    pages = Pages(reader, "ms")
    sink_of(pages, server).send(pages.take())
    names = {name for name, *_ in lines(server)}
    assert "vsr.replica_1.cluster_size" in names and not any("oldest_uncommitted" in name for name in names)
    assert not any("build_info" in name or "config_info" in name for name in names)


def test_only_what_is_essential(reader: Reader, sink_of: Callable[..., StatsdSink], server: socket.socket) -> None:
    pages = Pages(reader, "ms")
    sink_of(pages, server, essential=True).send(pages.take())
    essential = {metric.exposed_name("ms").removesuffix("_total") for metric in catalogue.METRICS if metric.essential}
    assert {"vsr_" + name.split(".")[2] for name, *_ in lines(server)} <= essential


def test_what_nobody_heard_is_told_again(
    recorder: Recorder, reader: Reader, sink_of: Callable[..., StatsdSink], server: socket.socket
) -> None:
    pages = Pages(reader, "ms")
    sink = sink_of(pages, server)
    address = server.getsockname()
    server.close()
    commit(recorder, 5)
    with pytest.raises(ConnectionRefusedError):
        sink.send(pages.take())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(address)
        again.setblocking(False)
        commit(recorder, 2)
        sink.send(pages.take())
        assert counters(again)["vsr.replica_1.operations.committed"] == 7


def test_a_server_that_does_not_read_holds_nobody_up(
    recorder: Recorder, reader: Reader, sink_of: Callable[..., StatsdSink], server: socket.socket
) -> None:
    """What its buffer does not hold is lost, as UDP is; the sink does not wait for a moment."""
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    pages = Pages(reader, "ms")
    sink = sink_of(pages, server)
    began = time.monotonic()
    for _ in range(20):
        commit(recorder, 1)
        sink.send(pages.take())
    assert time.monotonic() - began < 5


def test_a_later_process_does_not_tell_again_what_an_earlier_one_told(
    recorder: Recorder, reader: Reader, sink_of: Callable[..., StatsdSink], server: socket.socket
) -> None:
    commit(recorder, 5)
    pages = Pages(reader, "ms", is_first=False)
    sink = sink_of(pages, server)
    sink.send(pages.take())
    assert received(server) == []
    commit(recorder, 2)
    sink.send(pages.take())
    assert counters(server)["vsr.replica_1.operations.committed"] == 2


def test_a_name_that_is_not_known(reader: Reader) -> None:
    pages = Pages(reader, "ms")
    with pytest.raises(OSError):
        StatsdSink(pages.about, "no-such-host.invalid", 8125, "statsd", 10, "vsr", False).send(pages.take())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (5.0, "5"),
        (-7.5, "-7.5"),
        (1e-7, "0.0000001"),
        (1e22, "1" + 22 * "0"),
        (0.3, "0.3"),
        (1e-12, "0"),
    ],
)
def test_numbers_have_no_exponent(value: float, text: str) -> None:
    assert float(number(value)) == pytest.approx(float(text), abs=1e-9) and "e" not in number(value)
