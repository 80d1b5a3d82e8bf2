"""`dev`: a local cluster in the foreground."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from kimberlite.cli import probe
from kimberlite.cli.common import DEFAULT_PORT, json_option, note, print_json
from kimberlite.cli.local import LocalCluster, Replica
from kimberlite.cli.replica import settings_option
from kimberlite.errors import UnavailableError

RESTART_AFTER_S = 1.0
STATUS_TIMEOUT_S = 5.0
FOLLOW_S = 0.5  # from one look at the logs to the next
SHOWN = ("warning", "error")  # levels


class Follower:
    """What replicas tell in their logs from now on, of the levels that are SHOWN: docs/logs.md. The rest stays in the
    files."""

    def __init__(self, replicas: Iterable[Replica]) -> None:
        self._at = {replica.log: replica.log.stat().st_size for replica in replicas}

    def news(self) -> Iterator[str]:
        for path, at in self._at.items():
            with path.open("rb") as file:
                file.seek(at)
                whole, end, _ = file.read().rpartition(b"\n")  # the last line may come in two looks
            self._at[path] = at + len(whole + end)
            for line in whole.splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError):  # none of a log: the last words of a process
                    said = json.loads(line)
                    if said["level"] in SHOWN:
                        yield f"{said['level']}: {said['message']} [{said['id']}]"


class Signals:
    """SIGINT, SIGTERM, SIGHUP and SIGCHLD as something to wait for.

    The handlers only set flags; `threading.Event.wait` in the main thread returns when one does.
    """

    def __init__(self) -> None:
        self.stop = False
        self.woken = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(signal.SIGHUP, self._on_stop)
        signal.signal(signal.SIGCHLD, self._on_child)

    def _on_stop(self, number: int, frame: object) -> None:
        if self.stop:
            raise KeyboardInterrupt  # asked twice: do not wait for an orderly end
        self.stop = True
        self.woken.set()

    def _on_child(self, number: int, frame: object) -> None:
        self.woken.set()

    def wait(self, timeout: float | None) -> None:
        self.woken.wait(timeout)
        self.woken.clear()


@click.command(short_help="Run a real local cluster in the foreground.")
@click.option("--replicas", type=click.IntRange(1, 6), default=3, show_default=True, help="Number of processes.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default="kimberlite-data",
    show_default=True,
    help="Where the data is; an existing one continues.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 60_000),
    default=DEFAULT_PORT,
    show_default=True,
    help="Client port of replica 0; the others follow. 0: free ones.",
)
@click.option("--restart", is_flag=True, help="Start a replica again when its process ends.")
@settings_option
@json_option
def dev(replicas: int, directory: Path, port: int, restart: bool, settings: Sequence[str], as_json: bool) -> None:
    """Run a real local cluster in the foreground.

    One process per replica, on this machine, with durable writes. Ctrl-C, SIGTERM and the end of
    its terminal stop it; the same --dir continues with its data. What the replicas tell of is in
    DIR/INDEX.log; warnings and errors are shown here, unless --json is given. For trying things out and for
    development: three replicas on one disk survive the loss of a process, not of the disk.
    """
    signals = Signals()
    with LocalCluster(directory, replicas, port, telemetry=True, settings=tuple(settings)) as cluster:
        created = cluster.prepare()
        cluster.start_all()
        cluster.wait_ready(stop=lambda: signals.stop)
        if not signals.stop:
            announce(cluster, created, as_json)
        supervise(cluster, signals, restart, None if as_json else Follower(cluster.replicas))
    note("stopped")


def announce(cluster: LocalCluster, created: bool, as_json: bool) -> None:
    """Say where everything is: of metrics what the replicas say, which know whether they serve any."""
    telemetry = [metrics_of(answer) for answer in probe.fetch_all(cluster.addresses, STATUS_TIMEOUT_S)]
    if as_json:
        print_json(
            {
                "replicas": [
                    {
                        "index": replica.index,
                        "address": replica.address,
                        "pid": replica.pid,
                        "data": str(replica.data.absolute()),
                        "log": str(replica.log.absolute()),
                        "telemetry": telemetry[replica.index],
                    }
                    for replica in cluster.replicas
                ],
                "telemetry": telemetry[0],
                "console": None,
            }
        )
        return
    note(f"{'new' if created else 'existing'} cluster of {len(cluster.replicas)} in {cluster.directory.absolute()}")
    for replica in cluster.replicas:
        note(
            f"  replica {replica.index}  {replica.address}  pid {replica.pid}  log {replica.log}"
            + (f"  metrics {where}/metrics" if (where := telemetry[replica.index]) else "")
        )
    default = cluster.addresses[0].endswith(f":{DEFAULT_PORT}") and len(cluster.replicas) == 3
    if not default:
        note(f"  export KIMBERLITE_ADDRESSES={','.join(cluster.addresses)}")
    note("try: kimberlite append FILE, kimberlite read, kimberlite status. Ctrl-C stops the cluster.")


def metrics_of(answer: dict[str, object] | UnavailableError) -> str | None:
    """The URL of the metrics of a replica; None when it serves none."""
    telemetry = answer.get("telemetry") if not isinstance(answer, UnavailableError) else None
    address = telemetry.get("address") if isinstance(telemetry, dict) else None
    return f"http://{address}" if address else None


def supervise(cluster: LocalCluster, signals: Signals, restart: bool, follower: Follower | None) -> None:
    """Report replicas that end, start them again when asked to, and what they tell, until a signal to stop."""
    due: dict[int, float] = {}
    while not signals.stop:
        for replica, code in cluster.ended():
            report(replica, code)
            if restart:
                due[replica.index] = time.monotonic() + RESTART_AFTER_S
        now = time.monotonic()
        for index in [index for index, when in due.items() if when <= now]:
            del due[index]
            replica = cluster.start(index)
            note(f"replica {index} started again, pid {replica.pid}")
        if not restart and all(replica.process is None for replica in cluster.replicas):
            note("no replica is left")
            return
        for line in follower.news() if follower is not None else ():
            note(line)
        waits = [when - now for when in due.values()] + [FOLLOW_S] * (follower is not None)
        signals.wait(min(waits, default=None))


def report(replica: Replica, code: int) -> None:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    last = replica.last_log_line()
    note(f"replica {replica.index} {how}" + (f": {last}" if last and code > 0 else ""))
