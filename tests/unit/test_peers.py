"""benches/peers: how rows become a table, when the command fails, and what failover counts. No system is started."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import peers
import pytest
from sidebyside import failover, tables
from sidebyside.rows import REPLICAS, json_rows
from sidebyside.systems import etcd, kimberlite
from sidebyside.workspace import Skip, Workspace


def row(system: str, workload: str, rate: float | None, p50: float, **more: Any) -> dict[str, Any]:
    return {
        "system": system,
        "version": "1",
        "workload": workload,
        "durable": "yes",
        "ops_per_s": rate,
        "p50_ms": p50,
        "p99_ms": 2 * p50,
        **more,
    }


def gaps(system: str, *found: float, **more: Any) -> dict[str, Any]:
    return row(system, "failover", None, found[0], gaps_ms=list(found), **more)


# Rows


def test_several_rows_of_one_system_become_their_medians() -> None:
    rows = [row("etcd", "c1", rate, p50) for rate, p50 in ((100, 9.0), (300, 1.0), (200, 2.0))]
    [one] = tables.merged([*rows, {"system": "etcd", "error": "it broke"}, {"system": "etcd", "skipped": "not there"}])
    assert (one["ops_per_s"], one["p50_ms"], one["p99_ms"]) == (200, 2.0, 4.0)


def test_another_version_or_workload_is_another_row() -> None:
    rows = [row("etcd", "c1", 1, 1), row("etcd", "c64", 1, 1), {**row("etcd", "c1", 1, 1), "version": "2"}]
    assert len(tables.merged(rows)) == 3


def test_gaps_are_put_together_for_each_signal() -> None:
    rows = [
        gaps("etcd", 10, 30, lost=1),
        gaps("etcd", 20, lost=2, signal="KILL"),  # a row that says no signal is of this one
        gaps("etcd", 500, lost=0, signal="STOP"),
    ]
    killed, stopped = tables.merged(rows)
    assert killed["gaps_ms"] == [10, 30, 20]
    assert (killed["p50_ms"], killed["p99_ms"], killed["n"], killed["lost"]) == (20, 30, 3, 3)
    assert (stopped["p50_ms"], stopped["lost"]) == (500, 0)


def test_events_a_second_are_what_counts() -> None:
    printed = 'starting\n{"ops_per_s": 10, "events_per_s": 80}\n[1]\n{"ops_per_s": 5}\n'
    assert [one["ops_per_s"] for one in json_rows(printed)] == [80, 5]


# The table


def test_the_table() -> None:
    rows = [
        row("kimberlite", "c1", 900, 1.0),
        row("etcd", "c1", 1800, 0.5),
        row("etcd", "batch", None, 4.0),
        gaps("etcd", 1300, lost=0),
        gaps("kimberlite", 13, lost=0),
        gaps("etcd", 1500, lost=0, signal="STOP"),
        {"system": "etcd", "workload": "failover", "error": "no leader"},
        {"system": "nats", "skipped": "no nats-server on PATH"},
        {"system": "nats", "skipped": "no nats-server on PATH"},
    ]
    text = tables.table(rows, "kimberlite")
    lines = text.splitlines()
    assert "| etcd 1 | yes | 1,800 | 0.50 | 1.00 | 0.50x | 2.00x | 2.00x |" in lines
    assert "| kimberlite 1 | yes | 900.0 | 1.00 | 2.00 | 1.00x | 1.00x | 1.00x |" in lines
    assert "| etcd 1 | yes | - | 4.00 | 8.00 | - | - | - |" in lines
    assert "| etcd 1 | 1,300 | 1,300 | 1 | 1,300 | 0 | 0.01x |" in lines
    assert "| etcd 1 | 1,500 | 1,500 | 1 | 1,500 | 0 | - |" in lines  # Kimberlite was not stopped in any row
    assert "Not measured: etcd failover (no leader); nats (no nats-server on PATH)." in lines
    titles = [line for line in lines if line.startswith("### ")]
    assert [title[4:].split(":")[0] for title in titles] == ["c1", "batch", "failover", "failover"]
    assert "SIGKILL" in titles[2] and "SIGSTOP" in titles[3]


def test_the_table_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rate in (("old", 100), ("new", 300)):
        (tmp_path / name).write_text(json.dumps(row("etcd", "c1", rate, 1.0)) + "\n")
    assert peers.main(["table", str(tmp_path / "old"), str(tmp_path / "new"), "--base", "etcd"]) == 0
    assert "| etcd 1 | yes | 200.0 | 1.00 | 2.00 | 1.00x | 1.00x | 1.00x |" in capsys.readouterr().out


# What makes the command fail


@pytest.fixture
def systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three that are there, or not, or break."""

    def works(_: Any, results: Any) -> None:
        results.add(row("works", "c1", 100, 1.0))

    def half(_: Any, results: Any) -> None:
        works(_, results)
        results.skip("half-durable", "too old")

    def missing(_: Any, results: Any) -> None:
        raise Skip("no missing on PATH")

    def broken(_: Any, results: Any) -> None:
        raise RuntimeError("first line\nit broke")

    monkeypatch.setattr(peers, "BENCHES", {"works": works, "half": half, "missing": missing, "broken": broken})
    monkeypatch.setattr(peers, "NAMES", list(peers.BENCHES))


@pytest.mark.parametrize(
    ("argv", "rows", "said"),
    [
        (["works"], 1, []),
        (["missing"], 0, ["missing was skipped: no missing on PATH"]),
        (["all", "--only", "works,missing", "--rounds", "2"], 2, ["missing was skipped: no missing on PATH"]),
        (["half"], 1, ["half-durable was skipped: too old"]),
        (["all"], 2, ["broken failed: it broke"]),  # nobody named what is skipped
    ],
)
def test_what_was_asked_for_by_name_must_be_measured(
    systems: None, capsys: pytest.CaptureFixture[str], argv: list[str], rows: int, said: list[str]
) -> None:
    assert peers.main(argv) == (1 if said else 0)
    shown = capsys.readouterr()
    assert [line for line in shown.err.splitlines() if line.startswith("peers.py: ")] == [
        f"peers.py: {s}" for s in said
    ]
    assert [one["system"] for one in json_rows(shown.out) if "workload" in one] == ["works"] * rows


def test_a_system_that_is_not_here_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("NATS_SERVER", "TIGERBEETLE", "KIMBERLITE_BENCH"):
        monkeypatch.delenv(name, raising=False)
    for system, said in {
        "etcd": "no h2load on PATH",
        "nats": "no nats-server on PATH and none in NATS_SERVER",
        "kimberlite": "KIMBERLITE_BENCH is not set",
    }.items():
        assert peers.main([system, "--dir", str(tmp_path)]) == 1
        assert f"peers.py: {system} was skipped: {said}" in capsys.readouterr().err
    assert peers.main(["failover", "--targets", "etcd", "--dir", str(tmp_path)]) == 1
    assert "peers.py: etcd failover was skipped: no etcd on PATH" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_unknown_system_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        peers.main(["all", "--only", "etcd,zookeeper"])
    assert caught.value.code == 2 and "no system 'zookeeper'" in capsys.readouterr().err


# Failover


class FakeCluster:
    """Answers at once, except while its leader is away; the log of one member lacks `lacks` appends."""

    system, version, durable, client = "fake", "1", "no", "none"

    def __init__(self, lacks: int = 0) -> None:
        self.lacks = lacks
        self.there = threading.Event()
        self.calls: list[str] = []

    def start_all(self) -> None:
        self.there.set()

    def leader(self) -> int:
        return 1

    def take(self, what: str, i: int) -> None:
        self.calls.append(f"{what} {i}")
        self.there.clear()
        threading.Timer(0.3, self.there.set).start()  # the others have elected

    def kill(self, i: int) -> None:
        self.take("kill", i)

    def pause(self, i: int) -> None:
        self.take("pause", i)

    def restart(self, i: int) -> None:
        self.calls.append(f"restart {i}")

    def resume(self, i: int) -> None:
        self.calls.append(f"resume {i}")

    def connect(self, i: int, timeout: float) -> FakeCluster:
        return self

    def append(self) -> int | None:
        time.sleep(0.001)
        return 1 if self.there.wait(0.05) else None

    def close(self) -> None:
        pass

    def missing(self, receipts: Sequence[int]) -> int:
        assert all(receipts)
        return self.lacks


@pytest.mark.parametrize(("signal", "calls"), [("KILL", ["kill 1", "restart 1"]), ("STOP", ["pause 1", "resume 1"])])
def test_the_gap_is_what_the_client_saw(monkeypatch: pytest.MonkeyPatch, signal: str, calls: list[str]) -> None:
    monkeypatch.setattr(failover, "moment", float)
    target = FakeCluster(lacks=3)
    measured = failover.measure(target, signal, 1, 0.05)
    assert target.calls == calls
    [gap] = measured["gaps_ms"]
    assert gap >= 250 and measured["p50_ms"] == pytest.approx(gap, abs=0.1)
    assert (measured["signal"], measured["n"], measured["lost"]) == (signal, 1, 3)
    assert measured["failures"] >= 1 and measured["acked"] >= 70
    assert failover.Appender.__name__ not in {type(thread).__name__ for thread in threading.enumerate()}


def test_lost_appends_make_the_command_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lossy(name: str, _: Any, results: Any) -> None:
        results.add(gaps(name, 5.0, lost=2 if name == "kimberlite" else 0))

    monkeypatch.setattr(failover, "bench", lossy)
    assert peers.main(["failover"]) == 1
    assert "peers.py: kimberlite failover lost 2 acknowledged appends\n" in capsys.readouterr().err


def test_a_member_that_lacks_an_append_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kimberlite: another event at its position, or the end of the log before it. etcd: no such key."""
    logs = {"a": [0, 1, 2], "b": [0, 9, 2], "c": [0, 1]}
    receipts = [(0, 0), (1, 1), (2, 2)]

    class FakeLog:
        def __init__(self, addresses: list[str], **_: Any) -> None:
            [self.address] = addresses

        def __enter__(self) -> FakeLog:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, *, raw: bool) -> Iterator[bytes]:
            return map(kimberlite.event_of, logs[self.address])

    monkeypatch.setattr("kimberlite.sync.connect", FakeLog)
    monkeypatch.setattr(kimberlite.KimberliteCluster, "leader", lambda *_, **__: 0)
    with Workspace(str(tmp_path)) as workspace:
        cluster = kimberlite.KimberliteCluster(workspace)
        for address, lacking in (("a", 0), ("b", 1), ("c", 1)):
            monkeypatch.setattr(type(cluster.cluster), "addresses", ("a", address))
            assert cluster.missing(receipts) == lacking
        keys = {0: {b"1", b"2"}, 1: {b"1"}, 2: {b"1", b"2", b"3"}}
        monkeypatch.setattr(etcd, "need", lambda _: "/bin/false")
        members = etcd.EtcdCluster(workspace)
        monkeypatch.setattr(members, "leader", lambda **_: 0)
        monkeypatch.setattr(members, "keys", keys.__getitem__)
        assert members.missing([b"1", b"2"]) == 1
        assert len(members.ports) == REPLICAS
    assert not list(tmp_path.iterdir())


# The workspace


def test_nothing_is_left_of_a_workspace(tmp_path: Path) -> None:
    """What it started has ended, also what does not listen; its directory is gone. An error passes through."""
    with pytest.raises(RuntimeError, match="as ever"), Workspace(str(tmp_path)) as workspace:
        process = workspace.spawn(["sleep", "600"], "sleeper")
        closed = []
        workspace.closing.callback(closed.append, True)
        raise RuntimeError("as ever")
    assert process.poll() is not None and closed == [True]
    assert not list(tmp_path.iterdir())


def test_a_process_that_ends_is_told_with_its_words(tmp_path: Path) -> None:
    with Workspace(str(tmp_path)) as workspace:
        workspace.spawn(["sh", "-c", "echo no port >&2; exit 3"], "server")
        with pytest.raises(RuntimeError, match="a process ended: no port"):
            workspace.wait(lambda: os.path.exists("/nowhere"), "server", timeout=20)
