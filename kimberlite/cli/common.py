"""What commands share: options, output and the event loop. Imported by commands only."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Container, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from kimberlite.config import parse_addresses, parse_cluster_id

if TYPE_CHECKING:
    from rich.progress import Progress

    from kimberlite.client.aio import Log
    from kimberlite.types import ClusterId

CONNECT_TIMEOUT_S = 10.0  # for any replica to answer at all
DEFAULT_PORT = 7100
DEFAULT_ADDRESSES = f"127.0.0.1:{DEFAULT_PORT},{DEFAULT_PORT + 1},{DEFAULT_PORT + 2}"

SECONDS_MAX = 1e6  # eleven days: more is an error of units, and the largest numbers overflow where they are used
COUNT = click.IntRange(0, (1 << 63) - 1)  # a position, or a number of events
POSITIVE = click.IntRange(1, 1_000_000_000)
JOBS = click.IntRange(1, 1_024)

F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")


def addresses_option(function: F) -> F:
    """--addresses, from KIMBERLITE_ADDRESSES, by default those of `kimberlite dev`."""
    return click.option(
        "--addresses",
        type=parse_addresses,
        envvar="KIMBERLITE_ADDRESSES",
        default=DEFAULT_ADDRESSES,
        show_default=True,
        metavar="HOST:PORT,...",
        help="Client addresses of the replicas; `host:7100,7101` repeats the host. [env: KIMBERLITE_ADDRESSES]",
    )(function)


def cluster_option(function: F) -> F:
    """--cluster, from KIMBERLITE_CLUSTER: only that cluster is talked to."""
    return click.option(
        "--cluster",
        type=parse_cluster_id,
        envvar="KIMBERLITE_CLUSTER",
        metavar="ID",
        help="Id of the cluster that the addresses must be of; another one is refused. [env: KIMBERLITE_CLUSTER]",
    )(function)


def seconds(low: float | None = None) -> Callable[[object], float]:
    """The type of an option that is a duration: finite, at most SECONDS_MAX, and above 0 or from `low` on."""
    bounds = f"from {low:g} to {SECONDS_MAX:.0f}" if low is not None else f"above 0 and up to {SECONDS_MAX:.0f}"

    def parse(text: object) -> float:
        try:
            value = float(str(text))
        except ValueError:
            value = math.nan
        if not (value > 0 if low is None else low <= value) or value > SECONDS_MAX:
            raise click.BadParameter(f"{text} is no number of seconds {bounds}.")
        return value

    return parse


def input_file(name: str) -> BinaryIO:
    """The type of an argument that is a file to read; `-` is standard input."""
    if name == "-":
        return sys.stdin.buffer
    try:
        return open(name, "rb")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise click.BadParameter(f"{name!r}: {error.strerror}") from None


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")(function)


def timeout_option(default: float, what: str) -> Callable[[F], F]:
    return click.option(
        "--timeout",
        type=seconds(),
        default=default,
        show_default=True,
        metavar="SECONDS",
        help=what,
    )


def print_json(value: object) -> None:
    """One line of JSON on standard output, written out at once."""
    click.echo(json.dumps(value, ensure_ascii=False))
    sys.stdout.flush()


def note(text: str) -> None:
    """A line for people, on standard error. When that is gone (the terminal was closed) there are none."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def connect(addresses: Sequence[str], cluster: ClusterId | None, timeout: float, only: bool = False) -> Log:
    """A client of the cluster, to be entered; no longer than `timeout` is waited for a replica to answer at all.
    only: see kimberlite.connect."""
    import kimberlite

    wanted = cluster.hex() if cluster is not None else None
    return kimberlite.connect(addresses, cluster=wanted, only=only, timeout=min(timeout, CONNECT_TIMEOUT_S))


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop. Ctrl-C cancels it and raises KeyboardInterrupt."""
    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


def table(columns: Sequence[str], rows: Sequence[Mapping[str, object]], left: Container[str] = ()) -> str:
    """Rows as text for people, numbers to the right but for columns in `left`; a missing value is `-`."""
    cells = [list(columns)]
    right = {name for name in columns if name not in left and any(isinstance(row.get(name), int) for row in rows)}
    for row in rows:
        cells.append(["-" if row.get(name) is None else str(row[name]) for name in columns])
    widths = [max(len(line[column]) for line in cells) for column in range(len(columns))]
    return "\n".join(
        "  ".join(
            value.rjust(width) if name in right else value.ljust(width)
            for name, value, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in cells
    )


def bytes_text(count: float) -> str:
    """A byte count for people: 1536 is `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class ProgressBar:
    """A progress bar on standard error when that is a terminal; gives a function to advance it by bytes.

    what: the word before it. total: of bytes; None when it is not known.
    """

    def __init__(self, what: str, total: int | None) -> None:
        self._what = what
        self._total = total
        self._progress: Progress | None = None

    def __enter__(self) -> Callable[[int], None]:
        if not sys.stderr.isatty():
            return lambda count: None
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        progress = Progress(
            TextColumn(self._what),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        task = progress.add_task(self._what, total=self._total)
        progress.start()
        self._progress = progress
        return lambda count: progress.advance(task, count)

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
