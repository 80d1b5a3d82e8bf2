"""Real clusters for the integration tests: processes, sockets and disks of this machine.

Helpers are fixtures, because test modules cannot import each other here. Everything is
below pytest's temporary directory. When that is on a file system that cannot make a write
durable (tmpfs, overlay), replicas are told so and the tests go on: they are then about
processes, not about disks.
"""

from __future__ import annotations

import contextlib
import os
import pty
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from kimberlite.cli import probe
from kimberlite.cli.local import LocalCluster
from kimberlite.errors import UnavailableError

SEGMENT_BYTES = 16 << 20
WEAK_FILE_SYSTEMS = {"tmpfs", "ramfs", "overlay"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.integration)


def file_system(path: Path) -> str:
    """Type of the file system that holds `path`, from the longest mount point above it."""
    best = ("", "")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if path.resolve().is_relative_to(mount) and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """`--set` items that every replica of the tests gets."""
    chosen = [f"storage.segment_bytes={SEGMENT_BYTES}"]
    if file_system(tmp_path_factory.getbasetemp()) in WEAK_FILE_SYSTEMS:
        chosen.append("storage.unsafe=true")
    return tuple(chosen)


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of processes under test: no addresses from outside, paths absolute."""
    chosen = {key: value for key, value in os.environ.items() if not key.startswith("KIMBERLITE_")}
    if "PYTHONPATH" in chosen:
        chosen["PYTHONPATH"] = os.pathsep.join(
            str(Path(part).absolute()) for part in chosen["PYTHONPATH"].split(os.pathsep)
        )
        os.environ["PYTHONPATH"] = chosen["PYTHONPATH"]  # replicas inherit it
    return chosen


class Command(Protocol):
    def __call__(
        self,
        *arguments: str | Path,
        addresses: Sequence[str] = (),
        input: bytes | None = None,
        output: Path | None = None,
        code: int | None = 0,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[bytes]: ...


@pytest.fixture
def kimberlite_command(environment: dict[str, str], tmp_path: Path) -> Command:
    """Run the command line as a process and check its exit code (None: any). output: a file for standard output."""

    def run(
        *arguments: str | Path,
        addresses: Sequence[str] = (),
        input: bytes | None = None,
        output: Path | None = None,
        code: int | None = 0,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[bytes]:
        with output.open("wb") if output is not None else contextlib.nullcontext(subprocess.PIPE) as stdout:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "kimberlite", *map(str, arguments)],
                input=input if input is not None else b"",
                stdout=stdout,
                stderr=subprocess.PIPE,
                env={**environment, **({"KIMBERLITE_ADDRESSES": ",".join(addresses)} if addresses else {})},
                cwd=tmp_path,
                timeout=timeout,
            )
        if code is not None and done.returncode != code:
            pytest.fail(f"{arguments}: exit code {done.returncode}, not {code}\n{done.stderr.decode(errors='replace')}")
        assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
        return done

    return run


class OnTerminal(Protocol):
    def __call__(self, *arguments: str | Path, addresses: Sequence[str] = ()) -> tuple[int, bytes, bytes]: ...


@pytest.fixture
def on_terminal(environment: dict[str, str], tmp_path: Path) -> OnTerminal:
    """Run the command line with a terminal as its standard error: exit code, standard output, what was shown."""

    def run(*arguments: str | Path, addresses: Sequence[str] = ()) -> tuple[int, bytes, bytes]:
        leader, terminal = pty.openpty()
        running = subprocess.Popen(
            [sys.executable, "-P", "-m", "kimberlite", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=terminal,
            env={
                **environment,
                **({"KIMBERLITE_ADDRESSES": ",".join(addresses)} if addresses else {}),
                "TERM": "xterm",
                "COLUMNS": "200",
            },
            cwd=tmp_path,
        )
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the last writer of a terminal has gone
            while chunk := os.read(leader, 4096):
                shown += chunk
        os.close(leader)
        output, _ = running.communicate()
        return running.returncode, output, shown

    return run


LONGEST = 64 << 10
# Share of the lines, and the most bytes they have: 270 MB for a million.
LENGTHS = ((0.97, 120), (0.025, 4 << 10), (0.005, LONGEST))


def mixed_lines(count: int, seed: int) -> Iterator[bytes]:
    """`count` lines of 0 to 64 KiB, mostly short ones: one half UTF-8 text, one half arbitrary bytes."""
    generator = random.Random(seed)
    noise = generator.randbytes(1 << 20).replace(b"\n", b"\x00")
    words = ["replica", "Kimberlit", "größer", "Журнал", "複製", "журнал", "🙂", "naïve"]
    text = " ".join(generator.choice(words) for _ in range(150_000)).encode()[: 1 << 20]
    shares, limits = zip(*LENGTHS, strict=True)
    for _ in range(count):
        (limit,) = generator.choices(limits, shares)
        length = int(generator.random() * (limit + 1))
        start = int(generator.random() * (len(noise) - LONGEST))
        yield (noise if generator.random() < 0.5 else text)[start : start + length] + b"\n"


@pytest.fixture(name="mixed_lines", scope="session")
def mixed_lines_fixture() -> Callable[[int, int], Iterator[bytes]]:
    """A generator of lines, from a count and a seed."""
    return mixed_lines


class StartCluster(Protocol):
    def __call__(self, replicas: int = 3, *, settings: Sequence[str] = (), telemetry: bool = False) -> LocalCluster: ...


@pytest.fixture
def start_cluster(
    tmp_path: Path, settings: tuple[str, ...], environment: dict[str, str], request: pytest.FixtureRequest
) -> Iterator[StartCluster]:
    """Start real clusters; stopped at the end of the test, with their logs shown when it failed."""
    started: list[LocalCluster] = []
    own = settings

    def start(replicas: int = 3, *, settings: Sequence[str] = (), telemetry: bool = False) -> LocalCluster:
        directory = tmp_path / f"cluster-{len(started)}"
        cluster = LocalCluster(directory, replicas, telemetry=telemetry, settings=(*own, *settings))
        started.append(cluster)
        cluster.prepare()
        cluster.start_all()
        cluster.wait_ready(60)
        return cluster

    yield start
    for cluster in started:
        cluster.stop()
        for replica in cluster.replicas:
            if replica.log.exists():
                sys.stderr.write(f"--- {replica.log.name}\n{replica.log.read_text(errors='replace')[-4000:]}\n")


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 120.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout} s")
        time.sleep(0.05)


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., None]:
    """Poll until a condition holds; the test fails after a time."""
    return wait_until


@pytest.fixture
def primary_of() -> Callable[[LocalCluster], int]:
    """Index of the replica that leads now."""

    def find(cluster: LocalCluster) -> int:
        for _ in range(600):
            for index, answer in enumerate(probe.fetch_all(cluster.addresses, 1.0)):
                if not isinstance(answer, UnavailableError) and answer["role"] == "primary":
                    return index
            time.sleep(0.05)
        pytest.fail("no primary within 30 s")

    return find


@pytest.fixture
def settled() -> Callable[[LocalCluster], None]:
    """Wait until every replica answers, and has applied all that the most advanced one has.

    A replica that was away learns what is committed before it holds it: reads show what is applied.
    """

    def wait(cluster: LocalCluster) -> None:
        def equal() -> bool:
            answers = probe.fetch_all(cluster.addresses, 1.0)
            if any(isinstance(answer, UnavailableError) for answer in answers):
                return False
            reached = {answer[number] for answer in answers for number in ("op", "commit", "applied")}
            return len(reached) == 1

        wait_until(equal, "all replicas have applied the same", 60)

    return wait


@pytest.fixture
def prometheus_command() -> tuple[str, str]:
    """Paths of prometheus and promtool (Debian package prometheus)."""
    found = [shutil.which(name) for name in ("prometheus", "promtool")]
    if None in found:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    return str(found[0]), str(found[1])
