"""The life of a Node in a host program: what ends it, what it leaves as it was, how long its end may take.

One replica, in this process, without telemetry. A fault is put into one of its parts while it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lab import core_of

import kimberlite
from kimberlite.cli.local import free_port
from kimberlite.config import Config, from_mapping
from kimberlite.errors import InvariantError, KimberliteError, WriteFailedError
from kimberlite.node import retention
from kimberlite.node.format import format_replica
from kimberlite.node.node import Node
from kimberlite.storage.scrub import Damage
from kimberlite.vsr.events import Event, EventKind
from kimberlite.vsr.leading import Leading

LIMIT_S = 30.0
CLUSTER = "6c" * 16


def config_of(directory: Path, replicas: int = 1, **sections: dict[str, object]) -> Config:
    """A formatted replica 0 on free ports. The others of the cluster are not there."""
    port = free_port(replicas)
    config = from_mapping(
        {
            "cluster": {"id": CLUSTER, "replica": 0, "addresses": [f"127.0.0.1:{port + i}" for i in range(replicas)]},
            "telemetry": {"enabled": False},
            "storage": {"segment_bytes": 8 << 20, "unsafe": True, "free_bytes_min": 0, "inline_threshold_us": 0},
            **sections,
        }
    )
    format_replica(config, directory)
    return config


def broken(*_: object, **__: object) -> Any:
    raise ZeroDivisionError("put in by the test")


def break_dialler(node: Node) -> None:
    """As an exception that the dialler does not know of."""
    waiting = [task for task in node.parts.peers.diallers if not task.done()]
    assert waiting
    node.parts.peers._addresses = ()


# What is broken, once the replica runs, and has something to do.
FAULTS: dict[str, Callable[[Node], None]] = {
    "a tick": lambda node: setattr(node.driver, "on_tick", broken),
    "a round": lambda node: setattr(node.driver, "on_input", broken),
    "a completion": lambda node: setattr(node.driver, "on_disk", broken),
    "the scrubber": lambda node: setattr(node.scrubber, "tick", broken),
    "the gauges": lambda node: setattr(node.recorder, "update", broken),
    "the clock": lambda node: setattr(node.driver.core, "set_clock_offset", broken),
    "retention": lambda node: setattr(retention, "choose", broken),
    "waiting reads": lambda node: setattr(node.parts.server, "on_applied", broken),
    "a dialler": break_dialler,
}


class Ends:
    """An on_fatal that remembers."""

    def __init__(self) -> None:
        self.errors: list[KimberliteError] = []

    def __call__(self, error: KimberliteError) -> None:
        self.errors.append(error)


@contextlib.asynccontextmanager
async def running(directory: Path, replicas: int = 1, **sections: Any) -> AsyncIterator[tuple[Node, Ends, Config]]:
    config = config_of(directory, replicas, **sections)
    ends = Ends()
    async with Node(config, directory, on_fatal=ends) as node:
        yield node, ends, config
    # What was cut off, or was being accepted, is gone before the loop is.
    await until(lambda: len(asyncio.all_tasks()) == 1 and not node.parts.server._clients.all())
    await asyncio.sleep(0.05)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", FAULTS)
def test_an_exception_anywhere_ends_the_replica_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "choose", retention.choose)  # put back at the end

    async def story() -> None:
        replicas = 2 if name == "a dialler" else 1
        async with running(tmp_path / "0", replicas) as (node, ends, config):
            reader, writer = await asyncio.open_connection(*config.client_address)
            log = kimberlite.connect(list(config.cluster.addresses), timeout=1.0)
            FAULTS[name](node)
            if replicas == 1:
                with contextlib.suppress(KimberliteError):
                    async with log:
                        await log.append([b"x"], timeout=1.0)
            await until(lambda: ends.errors)
            # Silent: what was connected is cut off, and nobody gets in.
            async with asyncio.timeout(LIMIT_S):
                assert await reader.read() == b""
            with pytest.raises(OSError):
                await asyncio.open_connection(*config.client_address)
            writer.close()
            await writer.wait_closed()
            await asyncio.sleep(0.1)
            (error,) = ends.errors  # told once
            assert isinstance(error, InvariantError)
            assert ("ZeroDivisionError" in str(error)) != (name == "a dialler")
            assert isinstance(error.__cause__, Exception)
            assert node.status()["replica"] == 0  # the host may still look

    asyncio.run(story())


def test_a_failed_write_has_its_own_error(tmp_path: Path) -> None:
    def failed() -> None:
        raise WriteFailedError("no more")

    async def story() -> None:
        async with running(tmp_path / "0") as (node, ends, _):
            node.driver.on_tick = failed  # type: ignore[method-assign]
            await until(lambda: ends.errors)
            assert str(ends.errors[0]) == "no more"

    asyncio.run(story())


def test_the_log_of_events(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On standard error; what happened before a fatal error stands before it."""

    async def story() -> None:
        async with running(tmp_path / "0") as (node, ends, _):
            await until(lambda: node.driver.core.state.execution.recover_to is None)
            node.recorder.record([Event(EventKind.FAULTY, 7)])
            node.driver.on_tick = broken  # type: ignore[method-assign]
            await until(lambda: ends.errors)
            print("the end", file=sys.stderr, flush=True)
            node.recorder.record([Event(EventKind.FAULTY, 8)])

    asyncio.run(story())
    said = capfd.readouterr().err.splitlines()
    (damaged,) = [number for number, line in enumerate(said) if "its own entry of op" in line]
    assert damaged < said.index("the end")
    ids = [json.loads(line)["id"] for line in said if line.startswith("{")]
    assert (ids.count("started"), ids.count("recovered"), ids.count("faulty")) == (1, 1, 1)
    assert ids[-1] == "failed", "and nothing afterwards"


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_what_a_node_tells_by_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Damage that the scrubber finds, a disk that is full and has room again, and who is sent away."""

    async def story() -> None:
        async with running(tmp_path / "0") as (node, _, config):
            gauges, scrubber = node.parts.gauges, node.scrubber
            scrubber.damage[Damage.WITNESS] += 2
            gauges.update()
            for least in (1 << 50, 0):
                node.parts.space.least = least
                gauges.look_at_space()
                gauges.update()
                gauges.update()
            reader, writer = await asyncio.open_connection(*config.client_address)
            host, port = writer.get_extra_info("sockname")
            writer.write(b"GET / HTTP/1.1\r\nHost: marker\r\n\r\n" + bytes(300))
            async with asyncio.timeout(LIMIT_S):
                await reader.read()
            writer.close()
            sent_away.append(f"{host}:{port}")

    sent_away: list[str] = []
    asyncio.run(story())
    said = {line["id"]: line["fields"] for line in lines_of(capfd.readouterr().err)}
    assert said["damage_found"] == {"what": "witness", "found_count": 2}
    assert "below storage.free_bytes_min" in said["disk_full"]["reason"]
    assert said["disk_has_room"]["free_bytes"] > 0
    assert said["connection_refused"] == {"address": sent_away[0], "reason": "bad_magic"}
    assert said["stopped"] == {"how": "in order"}


class Quoting(kimberlite.EventLog):
    """Its words are those of the event that it can not apply."""

    needs_body = True

    def apply(self, batches: Any) -> Any:
        raise ValueError(bytes(batches[0].body))


def test_no_line_quotes_what_was_appended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        config = config_of(tmp_path / "0")
        ends = Ends()
        async with Node(config, tmp_path / "0", Quoting(), on_fatal=ends):
            async with kimberlite.connect(list(config.cluster.addresses)) as log:
                with pytest.raises(KimberliteError):
                    await log.append([b"MARKER"], timeout=1.0)
            await until(lambda: ends.errors)
        assert "MARKER" in str(ends.errors[0]), "whoever wrote the machine is told"

    asyncio.run(story())
    told = capfd.readouterr().err
    assert [line["id"] for line in lines_of(told)][-1] == "failed"
    assert "MARKER" not in told


def test_a_standard_error_that_nobody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop never waits for it, nor does the end for long; its thread ends as well."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(1 << 16))
    os.set_blocking(writing, True)

    async def story() -> float:
        async with running(tmp_path / "0") as (node, ends, _):
            await until(lambda: node.driver.core.state.execution.recover_to is None)
            began = time.monotonic()
            for op in range(1000):
                node.recorder.record(
                    [Event(EventKind.FAULTY, op), Event(EventKind.STUCK, op), Event(EventKind.PRIMARY)]
                )
            took = time.monotonic() - began
            await asyncio.sleep(0.1)
            assert not ends.errors
        return took

    with open(writing, "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert asyncio.run(story()) < 5, "30 lines that are waited for would take 15 s"
        names = [thread for thread in threading.enumerate() if thread.name == "kimberlite-log"]
        for thread in names:
            thread.join(LIMIT_S)
        assert not any(thread.is_alive() for thread in names)
        monkeypatch.undo()
    os.close(reading)


def test_a_start_that_fails_in_its_first_step_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path / "0")
    monkeypatch.setattr("kimberlite.node.driver.Driver.start", broken)
    ends = Ends()

    async def story() -> None:
        async with Node(config, tmp_path / "0", on_fatal=ends):
            pytest.fail("started")

    with pytest.raises(InvariantError, match="put in by the test"):
        asyncio.run(story())
    assert len(ends.errors) == 1


@pytest.mark.parametrize("part", ["server", "peers"])
def test_who_is_accepted_while_it_falls_silent_is_cut_off(part: str, tmp_path: Path) -> None:
    class Late:
        aborted = False

        def abort(self) -> None:
            self.aborted = True

    async def story() -> None:
        async with running(tmp_path / "0", 2) as (node, ends, _):
            node.driver.on_tick = broken  # type: ignore[method-assign]
            await until(lambda: ends.errors)
            late = Late()
            getattr(node.parts, part)._on_open(late)
            assert late.aborted

    asyncio.run(story())


HOST = """
import asyncio, sys
from pathlib import Path
import kimberlite
from kimberlite import config, errors

def broken(): raise ZeroDivisionError
def fatal(error):
    print("told", flush=True)
    {fatal}

async def main():
    data = Path(sys.argv[1])
    async with kimberlite.Node(config.load(data / "node.toml"), data{options}) as node:
        node.driver.on_tick = broken
        await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("options", "fatal", "code", "told"),
    [
        ("", "", 50, b""),
        (", on_fatal=fatal", "1 / 0", 50, b"told\n"),
        (", on_fatal=fatal", "sys.exit(7)", 7, b"told\n"),
    ],
)
def test_nothing_in_on_fatal_keeps_a_replica_alive(
    options: str, fatal: str, code: int, told: bytes, tmp_path: Path
) -> None:
    config_of(tmp_path / "0")
    program = HOST.format(options=options, fatal=fatal)
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "0")], stdout=subprocess.PIPE, timeout=LIMIT_S)
    assert (done.returncode, done.stdout) == (code, told)


def test_a_file_of_the_data_never_gets_the_number_of_standard_error(tmp_path: Path) -> None:
    """A host that has closed its descriptors, as daemons did, and writes to them all the same."""
    config_of(tmp_path / "0")
    program = """
import asyncio, os, sys
from pathlib import Path
import kimberlite
from kimberlite import config
data = Path(sys.argv[1])
for number in range(3): os.close(number)
async def main():
    async with kimberlite.Node(config.load(data / "node.toml"), data):
        found = {n: os.readlink(f"/proc/self/fd/{n}") for n in map(int, os.listdir("/proc/self/fd"))
                 if os.path.exists(f"/proc/self/fd/{n}")}
    os._exit(len([n for n, where in found.items() if n < 3 and str(data) in where]) if any(
        str(data) in where for where in found.values()) else 99)
asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path / "0")], timeout=LIMIT_S).returncode == 0


# What a host program keeps

HOST_IS_LEFT_ALONE = """
import asyncio, gc, os, resource, signal, sys, threading
from pathlib import Path
import kimberlite

def seen(loop):
    return {
        "frozen": gc.get_freeze_count(), "thresholds": gc.get_threshold(), "collects": gc.isenabled(),
        "debug": gc.get_debug(),
        "signals": [signal.getsignal(n) for n in sorted(signal.valid_signals())],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()), "wakeup": signal.set_wakeup_fd(-1),
        "limits": {n: resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith("RLIMIT_")},
        "hooks": [sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook],
        "loop": [loop.get_exception_handler(), loop.get_debug(), asyncio.get_event_loop_policy()],
        "streams": [sys.stdin, sys.stdout, sys.stderr], "cwd": os.getcwd(), "environment": dict(os.environ),
        "nice": os.getpriority(os.PRIO_PROCESS, 0), "switch": sys.getswitchinterval(),
    }

async def main():
    data, loop = Path(sys.argv[1]), asyncio.get_running_loop()
    config = kimberlite.config.load(data / "node.toml")
    callbacks = list(gc.callbacks)
    before = seen(loop)
    async with kimberlite.Node(config, data, kimberlite.EventLog()) as node:
        async with kimberlite.connect(list(config.cluster.addresses)) as log:
            await log.append([b"x"])
        during = seen(loop)
        await node.drain()
    after = seen(loop)
    for now in (during, after):
        wrong = {key: (before[key], now[key]) for key in before if before[key] != now[key]}
        assert not wrong, wrong
    assert gc.callbacks == callbacks
    assert threading.active_count() == 1 or all(t.daemon or "asyncio" in t.name for t in threading.enumerate()[1:])

resource.setrlimit(resource.RLIMIT_NOFILE, (512, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
signal.signal(signal.SIGHUP, lambda *_: None)
runner = asyncio.Runner()
runner.get_loop()
signal.set_wakeup_fd(-1)
runner.get_loop().run_until_complete(main())
"""


@pytest.mark.parametrize("telemetry", [False, True])
def test_a_host_program_is_left_as_it_is(telemetry: bool, tmp_path: Path) -> None:
    config_of(tmp_path / "0", telemetry={"enabled": telemetry, "listen": "127.0.0.1:0"})
    program = [sys.executable, "-c", HOST_IS_LEFT_ALONE, str(tmp_path / "0")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr


# The end in order


def hang(node: Node) -> None:
    """Something is under way that never ends."""
    for name in ("on_tick", "on_disk"):
        setattr(node.driver, name, lambda: None)
    node.parts.gauges.update = lambda: None  # type: ignore[method-assign]
    core = core_of(node)
    core.role = Leading(0, set())
    core.pipeline.append(None)  # type: ignore[arg-type]


def test_waiting_for_the_pipeline_ends(tmp_path: Path) -> None:
    """Also in a cluster of one, whose disk has hung."""

    async def story() -> None:
        async with running(tmp_path / "0", timing={"drain_ms": 200}) as (node, _, _):
            hang(node)
            began = time.monotonic()
            async with asyncio.timeout(LIMIT_S):
                await node.drain()
            assert time.monotonic() - began >= 0.2
            core_of(node).pipeline.clear()

    asyncio.run(story())


def test_an_end_does_not_wait_for_what_can_not_happen(tmp_path: Path) -> None:
    """Connected to peers that have not been heard for long: no commit can come of them."""

    async def story() -> None:
        async with running(tmp_path / "0", 3, timing={"drain_ms": 600_000}) as (node, _, _):
            hang(node)
            node.parts.peers._greeted.update((1, 2))
            assert len(node.parts.peers.connected) == 2
            async with asyncio.timeout(LIMIT_S):
                await node.drain()
            core_of(node).pipeline.clear()

    asyncio.run(story())


@pytest.mark.parametrize("settings", [(False, True, False), (True, False, True)])
def test_a_ring_is_used_or_not_at_any_start_and_nothing_is_lost(tmp_path: Path, settings: tuple[bool, ...]) -> None:
    """Each life goes on with what the one before had left when it was killed: a copy of its directory."""

    async def story() -> None:
        config = config_of(tmp_path / "0")
        said: list[bytes] = []
        for life, is_used in enumerate(settings):
            own = replace(config, storage=replace(config.storage, ring=is_used))
            directory = tmp_path / str(life)
            async with (
                Node(own, directory) as node,
                kimberlite.connect(list(config.cluster.addresses), timeout=LIMIT_S) as log,
            ):
                for number in range(5):
                    said.append(b"%d %d" % (life, number))
                    await log.append([said[-1]])
                assert [event async for event in log.read(raw=True)] == said
                assert node.driver.store.ring_mark.nonce != bytes(16) or not any(settings[: life + 1])
                shutil.copytree(directory, tmp_path / str(life + 1), ignore=shutil.ignore_patterns("*.sock"))

    asyncio.run(story())
