"""Every metric of the catalogue moves when its phenomenon happens: one story, played on a real cluster.

The story plays the catalogue's scenarios in their order on three replicas, and scrapes all of them
before and after each. A watcher reads the shared memory meanwhile, for what is over before a scrape.
Then there is one test for each metric, which looks for its movement in its scenario.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kimberlite import sync
from kimberlite._fast import events, framing
from kimberlite._fast.metrics import HistogramValue, Kind, Region
from kimberlite.cli import probe
from kimberlite.cli.local import LocalCluster, free_port
from kimberlite.config import LimitsConfig
from kimberlite.errors import DataMissingError, NoSpaceError, UnavailableError
from kimberlite.net import CLIENT_VERSION
from kimberlite.net.peers import HELLO_SECONDS
from kimberlite.storage.journal import journal_name
from kimberlite.telemetry import catalogue, region
from kimberlite.telemetry.catalogue import Metric, Role, labels, scenarios
from kimberlite.told import FAILURES, Telling
from kimberlite.types import Command, Operation

REPLICAS = 3
PEER_PORT_OFFSET = 1000  # the default of cluster.peer_port_offset
SESSIONS_MAX = 4
APPENDS = 600
SILENT_S = 2.0  # a replica counts as live for 1 s
DAMAGED = 300  # so many that repair asks the replica that is silent, too, though it asks the quick one first
LOAD_APPENDS = 300  # enough to set off the garbage collector
EVENTS_PER_APPEND = 5
RETENTION_BYTES = 24 << 20
WATCH_S = 0.005
CHECKPOINT_OPS = 100
DAY_S = 86_400
SHIFT = Path(__file__).parents[1] / "cases" / "shift.c"
GAUGES_S = 0.25  # gauges are set every 0.1 s
TURN_S = 0.25  # the longest turn of a loop on a busy machine

Scrape = dict[str, float]


def fetch(address: str | None, path: str, timeout: float = 10.0, **headers: str) -> tuple[int, str]:
    """Status and body of a request to a telemetry address."""
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def key(sample: str, labels: dict[str, str]) -> str:
    """A series without its constant labels, as in the shared memory: name{label="value",...}, labels sorted."""
    rest = sorted((name, value) for name, value in labels.items() if name not in catalogue.CONSTANT_LABELS)
    return sample + ("{" + ",".join(f'{name}="{value}"' for name, value in rest) + "}" if rest else "")


def parse(text: str) -> Scrape:
    return {
        key(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class RawClient:
    """A client of one replica that sends the frames it is told to, right or wrong."""

    def __init__(self, address: str, cluster: bytes) -> None:
        host, _, port = address.rpartition(":")
        self.cluster = cluster
        self.client = secrets.token_bytes(16)
        self.session = 0
        self.socket = socket.create_connection((host, int(port)), 60)
        self.received = b""
        self.ask(self.frame(Command.HELLO, count=CLIENT_VERSION))

    def frame(self, command: Command, body: bytes = b"", **fields: Any) -> bytes:
        header = framing.make_header(body, cluster=self.cluster, command=command, client=self.client, **fields)
        return header.raw + body

    def ask(self, frame: bytes) -> framing.Header:
        self.socket.sendall(frame)
        return self.next()

    def next(self) -> framing.Header:
        """The header of the next frame."""
        while True:
            frames, _, _ = framing.parse(self.received, 0, len(self.received), 8 << 20)
            if frames:
                self.received = self.received[frames[0][0].size :]
                return frames[0][0]
            chunk = self.socket.recv(1 << 16)
            assert chunk, "the connection was closed"
            self.received += chunk

    def register(self) -> framing.Header:
        answer = self.ask(self.frame(Command.REQUEST, operation=Operation.REGISTER))
        self.session = answer.session
        return answer

    def request(self, number: int, event: bytes = b"event", **told: Any) -> bytes:
        body = events.build([event])
        fields = {"operation": Operation.APPLY, "session": self.session, "request": number, "count": 1, **told}
        return self.frame(Command.REQUEST, body, **fields)


@dataclass
class Step:
    """One scenario as it was seen. Lists are by replica; None where a replica could not be scraped."""

    name: str
    primary: int
    before: list[Scrape | None] = field(default_factory=list)
    after: list[Scrape | None] = field(default_factory=list)
    between: list[tuple[float, float]] = field(default_factory=list)  # seconds between the scrapes: at least, at most
    high: list[dict[str, float]] = field(default_factory=lambda: [{} for _ in range(REPLICAS)])
    low: list[dict[str, float]] = field(default_factory=lambda: [{} for _ in range(REPLICAS)])
    restarted: set[int] = field(default_factory=set)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def backups(self) -> list[int]:
        return [replica for replica in range(REPLICAS) if replica != self.primary]

    def on(self, role: Role) -> list[int]:
        return {Role.EVERY: list(range(REPLICAS)), Role.PRIMARY: [self.primary], Role.BACKUP: self.backups}[role]

    def value(self, replica: int, series: str) -> float:
        scrape = self.after[replica]
        assert scrape is not None, f"replica {replica} was not scraped after {self.name}"
        return scrape[series]

    def change(self, replica: int, series: str) -> float:
        before = self.before[replica]
        if before is None or replica in self.restarted:
            return self.value(replica, series)
        return self.value(replica, series) - before[series]


class Watcher(threading.Thread):
    """Reads the shared memory of all replicas in a loop and keeps highest and lowest of each gauge."""

    def __init__(self, cluster: LocalCluster) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self._regions: dict[int, Region] = {}
        self.step: Step | None = None
        self.stopping = False

    def run(self) -> None:
        while not self.stopping:
            step = self.step
            for replica in range(REPLICAS) if step is not None else ():
                with contextlib.suppress(DataMissingError, OSError):
                    self._look(step, replica)
            time.sleep(WATCH_S)

    def _look(self, step: Step, replica: int) -> None:
        seen = self._regions.get(replica)
        if seen is None or not seen.is_current():
            # What has lost its name still tells how it ended.
            for old in (seen,) if seen is not None else ():
                self._keep(step, replica, old)
            seen = self._regions[replica] = region.find(self._cluster.replicas[replica].data)
        self._keep(step, replica, seen)

    def _keep(self, step: Step, replica: int, seen: Region) -> None:
        high, low = step.high[replica], step.low[replica]
        for series, value in zip(seen.series, seen.read(), strict=True):
            if not isinstance(value, HistogramValue) and not math.isnan(value):
                high[series.name] = max(high.get(series.name, value), value)
                low[series.name] = min(low.get(series.name, value), value)


class Place(NamedTuple):
    """A byte in the body of an entry."""

    op: int
    path: Path
    offset: int


class Player:
    """Plays the scenarios."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.steps: dict[str, Step] = {}
        self.clients: list[RawClient] = []
        self.watcher = Watcher(cluster)
        self.cluster_id = bytes.fromhex(str(probe.fetch_status(cluster.addresses[0], 5)["cluster"]))

    def scrape(self, replica: int) -> Scrape | None:
        if self.cluster.replicas[replica].pid is None:
            return None
        status, body = fetch(self.cluster.replicas[replica].telemetry, "/metrics")
        assert status == 200
        return parse(body)

    def primary(self) -> int:
        """Once there is one that all replicas agree on and whose log all have."""
        deadline = time.monotonic() + 120
        while True:
            answers = probe.fetch_all(self.cluster.addresses, 1.0)
            known = [answer for answer in answers if not isinstance(answer, UnavailableError)]
            views = {answer["view"] for answer in known}
            applied = {answer["applied"] for answer in known} | {answer["op"] for answer in known}
            leading = [answer["replica"] for answer in known if answer["role"] == "primary"]
            if len(known) == REPLICAS and len(views) == len(applied) == len(leading) == 1:
                assert isinstance(leading[0], int)
                return leading[0]
            assert time.monotonic() < deadline, f"no settled cluster: {answers}"
            time.sleep(0.05)

    def play(self, name: str, action: Callable[[Step], None]) -> None:
        step = self.steps[name] = Step(name, self.primary())
        time.sleep(GAUGES_S)
        began = []
        for replica in range(REPLICAS):
            asked_at = time.monotonic()
            step.before.append(self.scrape(replica))
            began.append((asked_at, time.monotonic()))
        self.watcher.step = step
        try:
            action(step)
            time.sleep(GAUGES_S)
            for replica in range(REPLICAS):
                asked_at = time.monotonic()
                step.after.append(self.scrape(replica))
                step.between.append((asked_at - began[replica][1], time.monotonic() - began[replica][0]))
        finally:
            self.watcher.step = None
            for client in self.clients:
                client.socket.close()
            self.clients.clear()

    def signal(self, replica: int, number: int) -> None:
        process = self.cluster.replicas[replica].process
        assert process is not None
        process.send_signal(number)

    def client(self, replica: int) -> RawClient:
        client = RawClient(self.cluster.addresses[replica], self.cluster_id)
        self.clients.append(client)
        return client

    def append(self, count: int, size: int = 100) -> None:
        with sync.connect(list(self.cluster.addresses)) as log:
            for _ in range(count):
                log.append([secrets.token_bytes(size)] * EVENTS_PER_APPEND, timeout=30)

    def until(self, condition: Callable[[], bool], what: str, timeout: float = 120.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
            time.sleep(0.02)

    # Scenarios

    def load(self, step: Step) -> None:
        for replica in range(REPLICAS):
            self.client(replica)
        self.append(LOAD_APPENDS)
        self.primary()  # until every replica has applied all: whichever is asked gives what it has
        with sync.connect(list(self.cluster.addresses)) as log:
            assert sum(1 for _ in log.read(start=0)) == LOAD_APPENDS * EVENTS_PER_APPEND

    def refusals(self, step: Step) -> None:
        clients = [self.client(step.primary) for _ in range(SESSIONS_MAX + 2)]
        for client in clients:
            assert client.register().command == Command.REPLY
        first = clients[-1].request(1)
        assert clients[-1].ask(first).command == Command.REPLY
        assert clients[-1].ask(first).command == Command.REPLY  # the same again
        telling = Telling()
        for error in FAILURES:
            telling.failed(error)
        second = clients[-1].request(2, **telling.fields())
        for _ in range(2):  # what is told once more is heard once
            assert clients[-1].ask(second).command == Command.REPLY
        for replica in range(REPLICAS):
            client = self.client(replica)
            assert client.ask(client.request(1)).command == Command.REJECT  # no session, or not the primary
            assert client.ask(client.frame(Command.READ, position=1 << 40)).command == Command.REJECT
            body = events.build([b"event"])
            broken = client.frame(Command.REQUEST, body, operation=Operation.APPLY, count=1)[:-1] + b"\xff"
            client.socket.sendall(broken)
            assert client.socket.recv(1) == b""  # cut off
            host, port = self.cluster.addresses[replica].split(":")
            with socket.create_connection((host, int(port))) as silent:
                silent.settimeout(2 * HELLO_SECONDS)
                assert silent.recv(1)  # a REJECT: it has not said who it is

    def repair(self, step: Step) -> None:
        """A backup misses operations, and fetches them; then many entries are damaged under it, and one of those that
        it asks for them has just been stopped."""
        victim, silent = step.backups
        step.facts |= {"victim": victim, "silent": silent}
        self.cluster.kill(victim)
        self.append(APPENDS)
        time.sleep(2 * GAUGES_S)  # until the lag of the victim is seen to last
        self.cluster.start(victim)
        step.restarted.add(victim)
        self.until(lambda: step.high[victim].get('repairs{outcome="repaired"}', 0) > 0, "entries are repaired")
        self.primary()

        def expires() -> bool:
            """The scrubber comes across the damage, and asks while the silent one is still held to be there."""
            places = self._places(victim)
            self.signal(silent, signal.SIGSTOP)
            try:
                self._flip(places[:: max(len(places) // DAMAGED, 1)])
                time.sleep(SILENT_S)
            finally:
                self.signal(silent, signal.SIGCONT)
            self.primary()
            self.until(lambda: probe.fetch_status(self.cluster.addresses[victim], 5)["faulty"] == 0, "it is repaired")
            high = step.high[victim]
            return high.get('repairs{outcome="expired"}', 0) > 0 and high.get("repair_inflight_count", 0) > 0

        self.until(expires, "requests expire, and one is seen under way")

        def level() -> bool:
            """Whoever leads now sees that the victim has everything."""
            step.facts["scrape"] = self.scrape(self.primary())
            return bool(step.facts["scrape"][f'vsr_replica_lag_operations{{peer="{victim}"}}'] == 0)

        self.until(level, "the victim has caught up")

    def damage(self, step: Step) -> None:
        """Flip bytes in the last entries of a journal, which a restart reads, and in a copy of a superblock."""
        victim = step.backups[0]
        step.facts["victim"] = victim
        self.cluster.kill(victim, signal.SIGTERM)
        data = self.cluster.replicas[victim].data
        journal = sorted(data.glob("journal-*"))[0]
        content = bytearray(journal.read_bytes())
        last = len(content.rstrip(b"\0")) // 4096
        for sector in (last - 1, last):
            content[4096 * sector + 300] ^= 0xFF
        journal.write_bytes(content)
        superblock = data / "superblock"
        content = bytearray(superblock.read_bytes())
        content[200] ^= 0xFF
        superblock.write_bytes(content)
        others = [replica for replica in range(REPLICAS) if replica != victim]
        for replica in others:  # nobody repairs it before it is seen
            self.signal(replica, signal.SIGSTOP)
        try:
            self.cluster.start(victim)
            step.restarted.add(victim)

            def is_told() -> bool:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    step.facts["scrape"] = self.scrape(victim)
                    return bool(step.facts["scrape"].get("vsr_journal_faulty", 0) > 0)
                return False

            self.until(is_told, "the damage is found")
        finally:
            for replica in others:
                self.signal(replica, signal.SIGCONT)
        self.until(lambda: probe.fetch_status(self.cluster.addresses[victim], 5)["faulty"] == 0, "it is repaired")
        # While it runs, what nobody reads: only a tour over everything comes across it.
        checkpoints: list[Path] = []

        def at_rest() -> bool:
            """No checkpoint is being written, and none of those before is left: what is damaged stays."""
            told: Any = probe.fetch_status(self.cluster.addresses[victim], 5)
            checkpoints[:] = data.glob("checkpoint-*-a")
            if told["applied"] - told["storage"]["checkpoint_op"] >= CHECKPOINT_OPS:
                self.append(CHECKPOINT_OPS)  # the last one due came while another was written: now the next
                return False
            return len(checkpoints) == 1 and told["storage"]["checkpoint_op"] > 0

        self.until(at_rest, "the last checkpoint is written")
        (checkpoint,) = checkpoints
        for path, offset in (
            (journal, 4096 + 300),
            (data / journal.name.replace("journal", "witness"), 4 * 512 + 100),
            (superblock, 20000),
            (checkpoint, 300),
        ):
            with path.open("r+b") as file:
                byte = os.pread(file.fileno(), 1, offset)[0]
                os.pwrite(file.fileno(), bytes([byte ^ 0xFF]), offset)
                os.fsync(file.fileno())

        def found() -> bool:
            status = probe.fetch_status(self.cluster.addresses[victim], 5)
            return all(status["scrub"]["damage"].values()) and status["faulty"] == 0

        self.until(found, "the scrubber has found it all, and it is repaired")

    def retention(self, step: Step) -> None:
        """Two segments more than are kept, and more operations than a checkpoint takes, while a replica is down:
        nothing is trimmed until it has come back and made its checkpoint, too."""
        absent = step.backups[1]
        self.cluster.kill(absent)
        self.append(110, (RETENTION_BYTES + (32 << 20)) // 110 // EVENTS_PER_APPEND)
        self.append(100)

        def waits() -> bool:
            told = str(probe.fetch_status(self.cluster.addresses[step.primary], 5)["unhealthy"])
            return "retention has waited" in told and f"on replica {absent} " in told

        self.until(waits, "the primary says for which replica the trim waits")
        step.facts["scrape"] = self.scrape(step.primary)
        self.cluster.start(absent)
        step.restarted.add(absent)
        self.primary()
        self.append(100)

        def trimmed(replica: int) -> bool:
            scrape = self.scrape(replica)
            if scrape is None:
                return False
            return scrape["vsr_log_first_event"] > 0 and math.isnan(scrape["vsr_trim_wait_seconds"])

        self.until(lambda: all(map(trimmed, range(REPLICAS))), "every replica has trimmed its log, no trim is due")

    def stall(self, step: Step) -> None:
        """The backups stop, clients go on asking: the primary fails to commit, and gives up in the end."""
        clients = [self.client(step.primary) for _ in range(3)]
        for client in clients:
            client.register()
        for replica in step.backups:
            self.signal(replica, signal.SIGSTOP)
        try:
            clients[0].socket.sendall(clients[0].request(1))

            def full() -> bool:
                told: Any = probe.fetch_status(self.cluster.addresses[step.primary], 5)
                return bool(told["pipeline"]["depth"] == 1)

            self.until(full, "the pipeline is full")
            for client in clients[1:]:
                client.socket.sendall(client.request(1))
            address = self.cluster.replicas[step.primary].telemetry

            def failing() -> set[str]:
                _, body = fetch(address, "/readyz", Accept="application/json")
                return {name for name, check in json.loads(body)["checks"].items() if not check["ok"]}

            self.until(lambda: failing() >= {"quorum", "commit"}, "the primary is not ready")
            step.facts["readyz"] = fetch(address, "/readyz")
            step.facts["readyz/quorum"] = fetch(address, "/readyz/quorum")
            step.facts["readyz/disk"] = fetch(address, "/readyz/disk")
            step.facts["livez"] = fetch(address, "/livez")
            step.facts["scrape"] = self.scrape(step.primary)
            time.sleep(1.0)  # past timing.abdicate_ms
        finally:
            for replica in step.backups:
                self.signal(replica, signal.SIGCONT)
        self.until(
            lambda: step.high[step.primary]["view_number"] > step.low[step.primary]["view_number"], "a view change"
        )
        self.primary()

    def recovering(self, step: Step) -> None:
        """A primary that starts again never leads its old view: it waits for the others, which are stopped."""
        for replica in step.backups:
            self.signal(replica, signal.SIGSTOP)
        try:
            self.cluster.kill(step.primary)
            self.cluster.start(step.primary)
            step.restarted.add(step.primary)
            address = self.cluster.replicas[step.primary].telemetry

            def status() -> float:
                try:
                    step.facts["scrape"] = parse(fetch(address, "/metrics")[1])
                    step.facts["readyz"] = fetch(address, "/readyz/status")
                except (OSError, http.client.HTTPException):
                    return math.nan  # between the old telemetry process and the new one
                return float(step.facts["scrape"].get("vsr_replica_status", math.nan))  # none while the old one lingers

            self.until(lambda: status() == 2 and step.facts["scrape"]["vsr_replica_up"] == 1, "it is recovering")
        finally:
            for replica in step.backups:
                self.signal(replica, signal.SIGCONT)

    def clock(self, step: Step) -> None:
        """A backup is started under a clock of its own, which is set back by a day while it runs, and right again."""
        victim = step.facts["victim"] = step.backups[0]
        directory = self.cluster.directory
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", directory / "shift.so", SHIFT, "-ldl"], check=True)

        def shift(seconds: int) -> None:
            (directory / "fresh").write_text(str(seconds))
            (directory / "fresh").replace(directory / "shift")

        shift(0)
        self.cluster.kill(victim)
        self.cluster.start(victim, ("env", f"LD_PRELOAD={directory}/shift.so", f"CLOCK_SHIFT={directory}/shift"))
        step.restarted.add(victim)
        self.primary()
        shift(-DAY_S)
        self.until(lambda: step.high[victim].get("retention_suspended", 0) == 1, "the clock is not believed")
        time.sleep(GAUGES_S)
        step.facts["scrape"] = self.scrape(victim)
        shift(0)
        self.until(lambda: (self.scrape(victim) or {})["vsr_retention_suspended"] == 0, "it is believed again")
        self.cluster.kill(victim)
        self.cluster.start(victim)
        self.primary()

    def contradict(self, replica: int, of: int, known: dict[str, Any]) -> None:
        """A heartbeat in the name of another replica, which is down, that names another entry than `replica` has."""
        host, _, port = self.cluster.addresses[replica].rpartition(":")
        inspect = [
            sys.executable,
            "-m",
            "kimberlite",
            "inspect",
            "superblock",
            "--json",
            self.cluster.replicas[of].data,
        ]
        who = json.loads(subprocess.run(inspect, check=True, capture_output=True).stdout)
        fields: dict[str, Any] = {
            "cluster": self.cluster_id,
            "replica": of,
            "view": known["view"],
            "epoch": who["epoch"],
            "client": bytes.fromhex(who["incarnation"]),
            "session": int(who["life"], 16),
        }
        hello = framing.make_header(command=Command.HELLO, count=REPLICAS, **fields)
        commit = known["commit"]
        beat = framing.make_header(
            command=Command.COMMIT, op=commit, commit=commit, position=commit, context=b"\6" * 16, **fields
        )
        with socket.create_connection((host, int(port) + PEER_PORT_OFFSET), 60) as peer:
            peer.sendall(hello.raw + beat.raw)
            assert peer.recv(1)  # our greeting is answered
            time.sleep(0.1)

    def kill(self, step: Step) -> None:
        known = probe.fetch_status(self.cluster.addresses[step.backups[0]], 5)
        self.cluster.kill(step.primary)
        self.contradict(step.backups[0], step.primary, known)
        self.cluster.wait_ready(120, need=REPLICAS - 1)
        usual = self.cluster.settings
        self.cluster.settings = (*usual, "storage.inline_threshold_us=1")
        self.cluster.start(step.primary)
        self.cluster.settings = usual
        step.restarted.add(step.primary)
        step.facts["primary"] = self.primary()

        def waits() -> bool:
            self.append(20)
            high = step.high[step.primary]
            return min(high.get("journal_wait", 0), high.get("journal_backlog", 0)) > 0

        self.until(waits, "its disk thread is seen at work")
        self.primary()  # until the one that was killed has these too

    def drain(self, step: Step) -> None:
        self.cluster.kill(step.primary, signal.SIGTERM)
        self.cluster.wait_ready(120, need=REPLICAS - 1)
        self.cluster.start(step.primary)
        step.restarted.add(step.primary)
        self.primary()

    def hang(self, step: Step) -> None:
        victim = step.facts["victim"] = step.backups[0]
        address = self.cluster.replicas[victim].telemetry
        self.signal(victim, signal.SIGSTOP)
        try:
            self.until(lambda: fetch(address, "/livez")[0] == 503, "the hang is noticed")
            step.facts["livez"] = fetch(address, "/livez")
            step.facts["scrape"] = self.scrape(victim)
        finally:
            self.signal(victim, signal.SIGCONT)

    def stuck(self, step: Step) -> None:
        """The last op, whose commit no disk knows yet, is damaged on all replicas: it is waited for, not skipped, and
        when the copies are back the cluster goes on with it."""
        self.append(1)
        while probe.fetch_status(self.cluster.addresses[self.primary()], 5)["op"] % CHECKPOINT_OPS == 0:
            self.append(1)  # a checkpoint would know of the commit
        for replica in range(REPLICAS):  # all at once: whoever is left alone would make its commit number durable
            self.signal(replica, signal.SIGSTOP)
        for replica in range(REPLICAS):
            self.cluster.kill(replica)
        places = [self._places(replica)[-1] for replica in range(REPLICAS)]
        step.facts["op"] = places[0].op
        self._flip(places)
        self.cluster.start_all()
        step.restarted |= set(range(REPLICAS))
        answers: list[Any] = []

        def waits() -> bool:
            answers[:] = probe.fetch_all(self.cluster.addresses, 5)
            return any("stuck" in answer.get("cannot_commit", ()) for answer in answers if isinstance(answer, dict))

        self.until(waits, "a replica says that the view change is stuck")
        replica = next(i for i, answer in enumerate(answers) if "stuck" in answer.get("cannot_commit", ()))
        step.facts["status"] = answers[replica]

        def told() -> bool:
            scrape = step.facts["scrape"] = self.scrape(replica)
            return bool(scrape["vsr_stuck_op"] and scrape['vsr_cannot_commit{reason="stuck"}'])

        self.until(told, "the metrics say it, too")
        for each in range(REPLICAS):
            self.cluster.kill(each)
        self._flip(places)
        self.cluster.start_all()
        self.primary()
        self.append(1)

    def _places(self, replica: int) -> list[Place]:
        """Where the entries of a journal are."""
        data = self.cluster.replicas[replica].data
        command = [sys.executable, "-m", "kimberlite", "inspect", "journal", "--json", str(data)]
        rows = [json.loads(row) for row in subprocess.check_output(command).splitlines()]
        return [Place(row["op"], data / journal_name(row["segment"]), row["offset"] + 300) for row in rows]

    def _flip(self, places: list[Place]) -> None:
        """Damage the entries at these places, or make them good again."""
        for path in {place.path for place in places}:
            with path.open("r+b") as file:
                for offset in [place.offset for place in places if place.path == path]:
                    os.pwrite(file.fileno(), bytes([os.pread(file.fileno(), 1, offset)[0] ^ 0xFF]), offset)
                os.fsync(file.fileno())

    def full(self, step: Step) -> None:
        """No disk has as much left as it should: appends are refused, reads go on."""
        usual = self.cluster.settings
        self.cluster.stop()
        self.cluster.settings = (*usual, f"storage.free_bytes_min={1 << 50}")
        self.cluster.start_all()
        self.cluster.settings = usual
        step.restarted |= set(range(REPLICAS))
        leader = self.primary()
        with sync.connect(list(self.cluster.addresses)) as log:
            with pytest.raises(NoSpaceError, match="nothing was appended"):
                log.append([b"refused"], timeout=10.0)
            told: Any = probe.fetch_status(self.cluster.addresses[leader], 5)
            assert next(iter(log.read(start=told["storage"]["first_position"], raw=True)))

        def told_full() -> bool:
            step.facts["scrape"] = self.scrape(leader)
            return bool(step.facts["scrape"]["vsr_disk_full"] == 1)

        self.until(told_full, "the metrics say that the disk is full")
        step.facts["readyz"] = fetch(self.cluster.replicas[leader].telemetry, "/readyz/disk")
        self.cluster.stop()
        self.cluster.start_all()
        self.primary()
        self.append(1)

    def write_failure(self, step: Step) -> None:
        """The kernel refuses a backup's writes from now on: it ends, and its last values can still be had."""
        victim = step.facts["victim"] = step.backups[0]
        replica = self.cluster.replicas[victim]
        assert replica.process is not None and replica.pid is not None
        resource.prlimit(replica.pid, resource.RLIMIT_FSIZE, (0, 0))
        self.append(5)
        step.facts["code"] = replica.process.wait(120)
        assert [code for _, code in self.cluster.ended()] == [step.facts["code"]]
        self.until(lambda: fetch(replica.telemetry, "/livez")[0] == 503, "the end is noticed")
        step.facts["livez"] = fetch(replica.telemetry, "/livez")
        step.facts["readyz"] = fetch(replica.telemetry, "/readyz")
        step.facts["scrape"] = parse(fetch(replica.telemetry, "/metrics")[1])
        began = time.monotonic()
        self.cluster.start(victim)
        step.restarted.add(victim)
        self.primary()
        step.facts["restart_s"] = time.monotonic() - began

    def fixed(self, step: Step) -> None:
        step.facts["status"] = probe.fetch_all(self.cluster.addresses, 5)
        step.facts["pids"] = [replica.pid for replica in self.cluster.replicas]
        step.facts["now"] = time.time()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, settings: tuple[str, ...]) -> Iterator[dict[str, Step]]:
    directory = tmp_path_factory.mktemp("telemetry")
    own = (
        f"limits.sessions_max={SESSIONS_MAX}",
        "limits.pipeline_max=1",
        f"checkpoint.ops={CHECKPOINT_OPS}",
        f"retention.bytes_max={RETENTION_BYTES}",
        f"retention.age_max_s={30 * DAY_S}",
        "scrub.bytes_per_s=8388608",
        "scrub.tour_interval_s=0",
        "storage.ring=false",  # it has a second copy of the last op, for whose want the view change is to be stuck
        "telemetry.statsd.address=127.0.0.1:1",  # where nobody listens
        "telemetry.statsd.interval_s=1",
        "storage.ring=false",  # it would have what a scenario damages at the end of a journal
        "storage.inline_threshold_us=1000000",  # any disk counts as quick; where a scenario wants it slow, it says so
        "timing.suspect_min_ms=800",  # on a busy machine no views change but those that a scenario wants
    )
    with LocalCluster(directory, REPLICAS, telemetry=True, settings=(*settings, *own)) as cluster:
        cluster.prepare()
        cluster.start_all()
        cluster.wait_ready(60)
        player = Player(cluster)
        player.watcher.start()
        try:
            for name in scenarios.SCENARIOS:
                player.play(name, getattr(player, name))
            yield player.steps
        finally:
            player.watcher.stopping = True
            player.watcher.join()
            for replica in cluster.replicas:
                print(f"--- {replica.log.name}\n{replica.log.read_text(errors='replace')[-2000:]}")


# What is looked for, by metric

Proof = Callable[[Step, Metric], None]


def series(metric: Metric, values: tuple[str, ...]) -> str:
    labels = dict(zip((label.name for label in metric.labels), values, strict=True))
    return key(metric.exposed_name("ms") + ("_count" if metric.kind is Kind.HISTOGRAM else ""), labels)


def rises(*wanted: tuple[str, ...], on: Callable[[Step], list[int]] | None = None) -> Proof:
    """A counter, the count of a histogram, or a gauge is higher afterwards, for each of the label values."""

    def proof(step: Step, metric: Metric) -> None:
        for replica in on(step) if on is not None else step.on(metric.role):
            for values in wanted or ((),):
                assert step.change(replica, series(metric, values)) > 0, (replica, values)

    return proof


def victim(step: Step) -> list[int]:
    return [step.facts["victim"]]


def primary(step: Step) -> list[int]:
    return [step.primary]


def backups(step: Step) -> list[int]:
    return step.backups


def both(*proofs: Proof) -> Proof:
    def proof(step: Step, metric: Metric) -> None:
        for each in proofs:
            each(step, metric)

    return proof


def passes(test: Callable[[float], bool], *values: str, on: Callable[[Step], list[int]] | None = None) -> Proof:
    """The value afterwards satisfies a condition."""

    def proof(step: Step, metric: Metric) -> None:
        for replica in on(step) if on is not None else step.on(metric.role):
            value = step.value(replica, series(metric, values))
            assert test(value), (replica, value)

    return proof


def reached(test: Callable[[float], bool], *values: str, on: Callable[[Step], list[int]] = victim) -> Proof:
    """At some moment meanwhile the cell held a value that satisfies a condition."""

    def proof(step: Step, metric: Metric) -> None:
        cell = catalogue.cell_name(metric, values)
        for replica in on(step):
            extremes = step.low[replica][cell], step.high[replica][cell]
            assert any(map(test, extremes)), (replica, extremes)

    return proof


def shown(test: Callable[[float], bool], *values: str, fact: str = "scrape") -> Proof:
    """A scrape that was made at the right moment holds a value that satisfies a condition."""

    def proof(step: Step, metric: Metric) -> None:
        value = step.facts[fact][series(metric, values)]
        assert test(value), value

    return proof


def equals(expected: Callable[[Step, int], float], tolerance: float = 0.0) -> Proof:
    def proof(step: Step, metric: Metric) -> None:
        for replica in step.on(metric.role):
            wanted = expected(step, replica)
            assert step.value(replica, series(metric, ())) == pytest.approx(wanted, rel=tolerance), replica

    return proof


def of_peers(inner: Callable[..., Proof], *arguments: Any, **more: Any) -> Proof:
    """For the peers of the primary."""

    def proof(step: Step, metric: Metric) -> None:
        for peer in step.backups:
            inner(*arguments, str(peer), **more)(step, metric)

    return proof


def rises_for_peers(step: Step, metric: Metric) -> None:
    rises(*((str(peer),) for peer in step.backups))(step, metric)


def lag_of_the_victim(test: Callable[[float], bool]) -> Proof:
    """The primary sees that the victim is behind; the victim sees it of itself, and catches up."""

    def proof(step: Step, metric: Metric) -> None:
        name = str(step.facts["victim"])
        reached(test, name, on=primary)(step, metric)
        shown(lambda value: value == 0, name)(step, metric)
        passes(lambda value: value == 0, name, on=victim)(step, metric)

    return proof


def critical_path(step: Step, metric: Metric) -> None:
    """Each commit was decided by one replica."""
    total = sum(step.change(step.primary, series(metric, values)) for values in metric.label_values(REPLICAS))
    assert total == step.change(step.primary, 'vsr_operations_total{outcome="committed"}') > 0
    own = step.change(step.primary, series(metric, (str(step.primary), "journal")))
    others = sum(step.change(step.primary, series(metric, (str(peer), "replicate"))) for peer in step.backups)
    assert own + others == total


def loop_time(step: Step, metric: Metric) -> None:
    """Every part moves, and together they are the time that has passed."""
    for replica in range(REPLICAS):
        changes = [step.change(replica, series(metric, (part,))) for part in labels.LOOP_PARTS]
        assert all(change > 0 for change in changes), (replica, changes)
        least, most = step.between[replica]
        # A turn that is under way when a scrape looks is charged when it ends.
        assert least - TURN_S <= sum(changes) <= most + TURN_S, (replica, least, sum(changes), most)


def exact_events(step: Step, metric: Metric) -> None:
    for replica in range(REPLICAS):
        assert step.change(replica, series(metric, ())) == LOAD_APPENDS * EVENTS_PER_APPEND, replica


def states(step: Step, metric: Metric) -> None:
    """Exactly one state is 1."""
    scrape = step.facts["scrape"]
    found = {values[0]: scrape[series(metric, values)] for values in metric.label_values(REPLICAS)}
    assert found == {name: float(name == "recovering") for name in found}


def moves_to_the_new_primary(step: Step, metric: Metric) -> None:
    assert step.primary != step.facts["primary"]
    for replica in range(REPLICAS):
        assert step.value(replica, series(metric, ())) == (replica == step.facts["primary"])


def claims_no_state(step: Step, metric: Metric) -> None:
    """Of the gauges of a replica that has ended three are left, at 0, and the memory of who says so."""
    left = {"replica_up": 0, "is_primary": 0, "can_commit": 0}
    scrape: Scrape = dict(step.facts["scrape"])
    assert {name: scrape[f"vsr_{name}"] for name in left} == left
    gauges = [found for found in catalogue.METRICS if found.kind is Kind.GAUGE]
    names = {found.exposed_name("ms") for found in gauges if found.name not in left and not found.is_of_telemetry}
    assert not [name for name in scrape if name.partition("{")[0] in names]


def free_space(step: Step, metric: Metric) -> None:
    info = os.statvfs(Path(step.facts["data"])) if "data" in step.facts else os.statvfs("/tmp")
    for replica in range(REPLICAS):
        assert 0 < step.value(replica, series(metric, ())) <= info.f_blocks * info.f_frsize


def labels_of(name: str, **expected: Callable[[str], bool]) -> Proof:
    """An info metric is 1, once, and its labels are what they should be."""

    def proof(step: Step, metric: Metric) -> None:
        for replica in range(REPLICAS):
            scrape = step.after[replica]
            assert scrape is not None
            (found,) = [series for series in scrape if series.startswith(f"vsr_{name}{{")]
            assert scrape[found] == 1
            for label, test in expected.items():
                value = found.partition(f'{label}="')[2].partition('"')[0]
                assert test(value), (label, value)

    return proof


def status_of(*path: str) -> Callable[[Step, int], float]:
    def find(step: Step, replica: int) -> float:
        value = step.facts["status"][replica]
        for part in path:
            value = value[part]
        return float(value)

    return find


def process_memory(step: Step, replica: int) -> float:
    pages = Path(f"/proc/{step.facts['pids'][replica]}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def clients_tell_of_all_but_the_last(step: Step, metric: Metric) -> None:
    """The load is one client, that appends one batch after another."""
    assert step.change(step.primary, series(metric, ())) == LOAD_APPENDS - 1


def each_failure_is_heard_once(step: Step, metric: Metric) -> None:
    for outcome in labels.CLIENT_FAILURE.values:
        assert step.change(step.primary, series(metric, (outcome,))) == 1, outcome


positive = lambda value: value > 0  # noqa: E731

PROOFS: dict[str, Proof] = {
    "prepare_latency": rises(),
    "commit_latency": rises(),
    "client_latency": clients_tell_of_all_but_the_last,
    "request_latency": rises(),
    "recovery_latency": passes(lambda count: count == 1),
    "journal_write_latency": rises(),
    "fsync_latency": rises(),
    "peer_round_trip_latency": rises_for_peers,
    "apply_latency": rises(),
    "event_loop_turn": rises(),
    "gc_pause": rises(),
    "commit_stage_latency": both(
        rises(*((stage,) for stage in labels.COMMIT_STAGES), on=primary),
        rises(("journal",), ("apply",), on=backups),
    ),
    "operations": rises(("committed",)),
    "operations_replayed": rises(on=victim),
    "events": exact_events,
    "bytes_written": rises(),
    "scrub_tours_completed": rises(),
    "scrub_last_tour": passes(lambda age: 0 <= age < 60),
    "scrub": rises(),
    "scrub_throughput": reached(positive, on=backups),
    "scrub_progress_ratio": reached(lambda part: part > 0.01, on=backups),
    "messages_sent": both(rises(("prepare",), ("commit",), ("reply",), on=primary), rises(("prepare_ok",), on=backups)),
    "messages_received": both(
        rises(("prepare_ok",), ("request",), ("hello",), on=primary), rises(("prepare",), ("commit",), on=backups)
    ),
    "client_sessions_registered": rises(),
    "commit_critical_path": critical_path,
    "network": rises(("received",), ("sent",)),
    "disk": rises(("write",)),
    "disk_operations": rises(("write",)),
    "event_loop_time": loop_time,
    "cpu": rises(("user",), ("system",)),
    "telemetry_cpu": rises(),
    "telemetry_dropped": rises(("statsd",)),
    "telemetry_snapshot": passes(positive),
    "op_number": rises(),
    "commit_number": rises(),
    "applied_number": rises(),
    "log_size": rises(),
    "log_entry_count": rises(),
    "log_event_count": exact_events,
    "log_first_event": rises(),
    "checkpoint_op": rises(),
    "trim_wait": both(shown(positive), passes(math.isnan)),
    "clock_offset": both(shown(lambda s: s == pytest.approx(-DAY_S, abs=60)), passes(lambda s: abs(s) < 60, on=victim)),
    "clock_log_ahead": shown(lambda s: 0 < s <= DAY_S),
    "retention_suspended": both(shown(lambda value: value == 1), passes(lambda value: value == 0)),
    "last_commit": passes(lambda age: 0 <= age < 5),
    "disk_free": free_space,
    "client_sessions_active": rises(),
    "client_connections": rises(),
    "client_connections_ended": rises(("slow_frame",)),
    "messages_dropped": rises(("malformed",)),
    "duplicate_requests": rises(),
    "client_failures": each_failure_is_heard_once,
    "identity_conflicts": rises(on=lambda step: step.backups[:1]),
    "client_sessions_evicted": rises(),
    "requests_rejected": both(
        rises(("position_beyond_end",)), rises(("not_primary",), on=backups), rises(("no_session",), on=primary)
    ),
    "repairs": rises(("requested",), ("repaired",), ("expired",), on=victim),
    "checkpoints": rises(),
    "leadership_given_up": rises(("abdicated",), on=primary),
    "stuck_op": both(
        lambda step, metric: shown(lambda op: op == step.facts["op"])(step, metric), passes(lambda op: op == 0)
    ),
    "repair_latency": rises(on=victim),
    "replica_lag_operations": lag_of_the_victim(lambda lag: lag >= APPENDS - 1),
    "replica_lag": lag_of_the_victim(lambda ns: ns > 100_000_000),
    "repair_budget_available": both(
        reached(lambda left: left < LimitsConfig().repairs_max), passes(lambda left: left == LimitsConfig().repairs_max)
    ),
    "repair_inflight_count": both(reached(positive), passes(lambda count: count == 0)),
    "repair_ewma_latency": lambda step, metric: reached(positive, str(step.facts["silent"]))(step, metric),
    "checksum_failures": rises(("journal",), ("superblock",), on=victim),
    "scrub_corruptions_detected": rises(("entry",), ("witness",), ("superblock",), ("checkpoint",), on=victim),
    "journal_faulty": both(shown(positive), passes(lambda count: count == 0)),
    "operations_failed": rises(("view_change",), on=primary),
    "quorum_margin": both(shown(lambda margin: margin == -1), reached(lambda margin: margin == 1, on=primary)),
    "can_commit": both(shown(lambda can: can == 0), passes(lambda can: can == 1)),
    "cannot_commit": both(shown(positive, "no_quorum"), passes(lambda reason: reason == 0, "no_quorum")),
    "prepare_ok_votes": both(shown(lambda votes: votes == 1), passes(lambda votes: votes == 0)),
    "oldest_uncommitted": both(shown(lambda age: age > 2), passes(math.isnan)),
    "peer_last_heard": lambda step, metric: of_peers(shown, lambda age: age > 1)(step, metric),
    "pending_requests": both(shown(positive), passes(lambda count: count == 0)),
    "pipeline_depth": both(shown(lambda depth: depth == 1), passes(lambda depth: depth == 0)),
    "replica_status": both(shown(lambda status: status == 2), passes(lambda status: status == 0)),
    "replica_state": states,
    "log_lines": rises(("written",), on=backups),
    "view_changes": lambda step, metric: _view_changes(step, metric),
    "view_change_latency": rises(),
    "is_primary": moves_to_the_new_primary,
    "view_number": passes(positive, on=backups),
    "journal_mode_switches": rises(on=primary),
    "journal_inline": both(
        passes(lambda inline: inline == 0, on=primary), passes(lambda inline: inline == 1, on=backups)
    ),
    "journal_backlog": both(reached(positive, on=primary), passes(lambda size: size == 0)),
    "journal_backlog_limit": equals(status_of("backlog", "limit")),
    "journal_wait": both(reached(positive, on=primary), passes(math.isnan, on=primary)),
    "disk_full": both(shown(lambda full: full == 1), passes(lambda full: full == 0)),
    "draining": both(reached(lambda value: value == 1, on=primary), passes(lambda value: value == 0)),
    "event_loop_last_turn": both(shown(lambda age: age > 5), passes(lambda age: age < 1)),
    "journal_errors": shown(lambda count: count == 1, "write"),
    "replica_up": both(shown(lambda up: up == 0), passes(lambda up: up == 1), claims_no_state),
    "quorum_size": equals(status_of("quorum")),
    "cluster_size": equals(status_of("replica_count")),
    "pending_requests_limit": equals(status_of("queue", "limit")),
    "pipeline_limit": equals(status_of("pipeline", "limit")),
    "client_sessions_limit": equals(lambda step, replica: SESSIONS_MAX),
    "client_connections_limit": equals(lambda step, replica: 4096),
    "memory_held": both(
        passes(lambda held: held >= 0, "clients"),
        passes(lambda held: held > 0, "peers"),
        passes(lambda held: held > 0, "entries"),
    ),
    "objects": both(*(passes(lambda count: count > 0, kind) for kind in labels.OBJECTS)),
    "memory_blocks": passes(lambda blocks: blocks > 10_000),
    "resident_memory": equals(process_memory, 0.2),
    "open_files": equals(lambda step, replica: len(os.listdir(f"/proc/{step.facts['pids'][replica]}/fd")), 0.5),
    "open_files_limit": equals(lambda step, replica: resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    "telemetry_resident_memory": passes(lambda size: 5 << 20 < size < 100 << 20),
    "start_time": equals(lambda step, replica: step.facts["now"], 0.001),
    "build_info": labels_of("build_info", version=bool, release=str.isdigit, python=lambda text: "." in text),
    "config_info": labels_of("config_info", sessions_max=lambda text: text == str(SESSIONS_MAX)),
}


def _view_changes(step: Step, metric: Metric) -> None:
    for replica in step.backups:
        total = sum(step.change(replica, series(metric, values)) for values in metric.label_values(REPLICAS))
        assert total > 0, replica
    voted = ("primary_silent", "primary_gone")
    assert any(step.change(replica, series(metric, (cause,))) > 0 for replica in step.backups for cause in voted)


@pytest.mark.parametrize("metric", catalogue.METRICS, ids=lambda metric: metric.name)
def test_metric_moves(metric: Metric, story: dict[str, Step]) -> None:
    PROOFS[metric.name](story[metric.scenario], metric)


def test_the_series_are_those_of_the_catalogue(story: dict[str, Step]) -> None:
    """Before anything has happened as after everything has: their number is a constant."""
    expected = {
        name
        for metric in catalogue.METRICS
        if metric.kind is not Kind.HISTOGRAM and metric.name not in catalogue.INFO_NAMES
        for values in metric.label_values(REPLICAS)
        for name in (series(metric, values),)
    }
    for step in story.values():
        for scrape in (*step.before, *step.after):
            if scrape is not None:
                assert len(scrape) == catalogue.series_count(REPLICAS)
                assert expected <= set(scrape)


def test_an_abdicated_primary_is_told_from_a_silent_one(story: dict[str, Step]) -> None:
    step = story[scenarios.STALL]
    assert step.change(step.primary, 'vsr_leadership_given_up_total{reason="abdicated"}') >= 1


def test_a_frame_that_fails_its_checksum_is_counted(story: dict[str, Step]) -> None:
    step = story[scenarios.REFUSALS]
    for replica in range(REPLICAS):
        assert step.change(replica, 'vsr_checksum_failures_total{component="network"}') == 1


def test_liveness_does_not_depend_on_a_quorum(story: dict[str, Step]) -> None:
    facts = story[scenarios.STALL].facts
    assert facts["livez"][0] == 200
    status, body = facts["readyz"]
    assert status == 503
    assert "1 of 3 replicas, 2 needed" in body
    assert "has 1 of 2 acks and waits for" in body
    assert facts["readyz/quorum"][0] == 503
    assert facts["readyz/disk"][0] == 200


def test_a_recovering_replica_is_not_ready(story: dict[str, Step]) -> None:
    status, body = story[scenarios.RECOVERING].facts["readyz"]
    assert status == 503
    assert "recovering in view" in body


def test_a_view_change_that_is_stuck_says_for_what(story: dict[str, Step]) -> None:
    facts = story[scenarios.STUCK].facts
    op, told = facts["op"], facts["status"]
    assert told["stuck_op"] == op
    assert not told["can_commit"] and {"view_change", "stuck"} <= set(told["cannot_commit"])
    assert f"op {op} is damaged or missing on every replica whose log is known" in told["unhealthy"]
    assert facts["scrape"]['vsr_cannot_commit{reason="stuck"}'] == 1


def test_liveness_of_a_replica_that_hangs(story: dict[str, Step]) -> None:
    status, body = story[scenarios.HANG].facts["livez"]
    assert status == 503
    assert "failed  event_loop: last turned" in body


def test_a_full_disk_is_counted_and_not_ready(story: dict[str, Step]) -> None:
    facts = story[scenarios.FULL].facts
    assert facts["scrape"]['vsr_requests_rejected_total{reason="disk_full"}'] > 0
    assert facts["readyz"][0] == 503
    assert "no room for more" in facts["readyz"][1]


def test_the_last_values_survive_a_crash(story: dict[str, Step]) -> None:
    facts = story[scenarios.WRITE_FAILURE].facts
    assert facts["code"] == 17
    assert facts["livez"][0] == facts["readyz"][0] == 503
    assert "has ended; what it counted is still served" in facts["livez"][1]
    assert facts["scrape"]['vsr_operations_total{outcome="committed"}'] > 0
    assert facts["scrape"]['vsr_cpu_seconds_total{mode="user"}'] > 0


def test_the_restarted_replica_takes_its_address_back(story: dict[str, Step]) -> None:
    step = story[scenarios.WRITE_FAILURE]
    assert step.value(step.facts["victim"], "vsr_replica_up") == 1
    assert step.value(step.facts["victim"], 'vsr_journal_errors_total{operation="write"}') == 0


# The telemetry process can do the replica no harm


@pytest.fixture
def served(start_cluster: Any) -> LocalCluster:
    """One replica that serves metrics."""
    cluster: LocalCluster = start_cluster(1, telemetry=True)
    return cluster


def telemetry_of(cluster: LocalCluster) -> dict[str, Any]:
    told = probe.fetch_status(cluster.addresses[0], 5)["telemetry"]
    assert isinstance(told, dict)
    return told


def test_scrapers_that_hang(served: LocalCluster, wait_until: Callable[..., None]) -> None:
    """Full of idle connections, half-sent requests and unread answers: the replica does not notice, a probe of its life
    is answered, and so is a scrape."""
    address = served.replicas[0].telemetry
    assert address is not None
    host, _, port = address.rpartition(":")
    hanging = []
    sent = (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
    for number in range(60):
        connection = socket.create_connection((host, int(port)), 60)
        with contextlib.suppress(OSError):  # it may have been refused
            connection.sendall(sent[number % 3])
        hanging.append(connection)
    with sync.connect(list(served.addresses)) as log:
        for _ in range(50):
            log.append([b"event"], timeout=30)

    def answered(path: str) -> bool:
        with contextlib.suppress(OSError):
            return fetch(address, path)[0] == 200
        return False

    wait_until(lambda: answered("/livez") and answered("/metrics"), "probe and scrape are answered")
    assert all(answered("/livez") for _ in range(10))
    for connection in hanging:
        connection.close()


def test_a_telemetry_process_that_stops_or_dies(served: LocalCluster, wait_until: Callable[..., None]) -> None:
    first = telemetry_of(served)
    assert first["running"] and first["restarts"] == 0 and first["problem"] == ""
    os.kill(first["pid"], signal.SIGSTOP)
    with sync.connect(list(served.addresses)) as log:
        log.append([b"event"], timeout=30)
        os.kill(first["pid"], signal.SIGKILL)
        wait_until(lambda: telemetry_of(served)["pid"] not in (None, first["pid"]), "it is started again")
        told = telemetry_of(served)
        assert told["restarts"] == 1
        assert told["problem"] == "the telemetry process was killed by signal 9"
        log.append([b"event"], timeout=30)
    status, body = fetch(served.replicas[0].telemetry, "/metrics")
    assert status == 200
    assert parse(body)["vsr_events_total"] == 2


def test_the_telemetry_process_ends_with_the_replica(served: LocalCluster, wait_until: Callable[..., None]) -> None:
    pid = telemetry_of(served)["pid"]
    path = next(path for path in region.paths(served.replicas[0].data) if path.exists())
    assert path.stat().st_mode & 0o777 == 0o600
    served.kill(0, signal.SIGTERM)
    assert not Path(f"/proc/{pid}").exists()
    assert not path.exists()


def test_address_in_use(served: LocalCluster, kimberlite_command: Any, start_cluster: Any, tmp_path: Path) -> None:
    other: LocalCluster = start_cluster(1)
    other.kill(0, signal.SIGTERM)
    taken = served.replicas[0].telemetry
    done = kimberlite_command("start", "--set", f"telemetry.listen={taken}", other.replicas[0].data, code=21)
    assert str(taken).encode() in done.stderr
    assert b"telemetry.listen" in done.stderr
    assert not any(path.exists() for path in region.paths(other.replicas[0].data))


# Proven against Prometheus


def test_a_real_prometheus(
    start_cluster: Any, tmp_path: Path, wait_until: Callable[..., None], prometheus_command: tuple[str, str]
) -> None:
    """It scrapes a replica in either units, and finds what the replica says of itself."""
    prometheus, promtool = prometheus_command
    clusters: dict[str, LocalCluster] = {}
    told: dict[str, dict[str, object]] = {}
    for units in catalogue.UNITS:
        cluster = clusters[units] = start_cluster(1, telemetry=True, settings=(f"telemetry.units={units}",))
        with sync.connect(list(cluster.addresses)) as log:
            log.append([b"event"] * 3)
        told[units] = probe.fetch_status(cluster.addresses[0], 5)
    text = fetch(clusters["base"].replicas[0].telemetry, "/metrics")[1]
    done = subprocess.run([promtool, "check", "metrics"], input=text.encode(), capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    jobs = "".join(
        f"  - job_name: {units}\n    static_configs: [{{targets: ['{cluster.replicas[0].telemetry}']}}]\n"
        for units, cluster in clusters.items()
    )
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(f"global: {{scrape_interval: 1s}}\nscrape_configs:\n{jobs}")
    web = f"127.0.0.1:{free_port(1)}"
    arguments = [f"--config.file={configuration}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    with subprocess.Popen(
        [prometheus, *arguments, f"--web.listen-address={web}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:

            def query(name: str) -> dict[str, Any]:
                """The latest sample of a metric by job."""
                with contextlib.suppress(OSError):
                    status, body = fetch(web, f"/api/v1/query?query={name}")
                    if status == 200:
                        return {found["metric"]["job"]: found for found in json.loads(body)["data"]["result"]}
                return {}

            wait_until(lambda: len(query("vsr_commit_number")) == 2, "Prometheus has scraped both")
            for units, found in query("vsr_commit_number").items():
                assert float(found["value"][1]) == told[units]["commit"]
                assert found["metric"]["replica_id"] == "0"
                assert found["metric"]["cluster"] == told[units]["cluster"]
            for found in query("scrape_samples_scraped").values():
                # It asks for OpenMetrics: when each counter and histogram began is there too, and who is speaking.
                created = sum(
                    len(list(metric.label_values(1))) for metric in catalogue.METRICS if metric.kind is not Kind.GAUGE
                )
                assert float(found["value"][1]) == catalogue.series_count(1) + created + 1
            for units, name in (("ms", "vsr_commit_latency_ms_count"), ("base", "vsr_commit_latency_seconds_count")):
                assert set(query(name)) == {units}
                assert float(query(name)[units]["value"][1]) > 0
        finally:
            process.terminate()
