"""kill -9 before every system call by which one replica of three writes its disk, under load.

    python tests/rigs/kill_points.py               a sample over all kinds, for as long as --seconds says
    python tests/rigs/kill_points.py --all         every one

One *life* of the victim is a script: start, appends over a change of segment, with checkpoints, until the log is
trimmed, view changes until it leads, appends over another change of segment, a pause in which it loses the lead, an
orderly stop. A first life is only traced: that says
which calls there are, and how many of each. Then, for each call and each N, the victim is started under
`strace --inject=CALL:signal=KILL:when=N`, which kills it on entry to that call, before the call acts. It is started
again without strace, catches up, and the cluster goes on; clients append all the time and write down what they saw.

strace counts calls by thread. Writes of the journal and of the superblock are made by one thread: the event loop's when
`storage.inline_threshold_us` is high, the disk thread when it is 0; both are enumerated, and the buffered mode. What
threads do that make the next segment's files is selected by file name (strace -P).

A life in which the kill never came is an error: it shows nothing. At the end of each cluster: no acknowledged event is
lost, none is there twice (the exact checker of the simulator judges the clients' histories), the three replicas hold
the same entries, and `kimberlite inspect journal` and `kimberlite verify` find no damage.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import Follower, Load, RigCluster, RigError, end_in_order, judge, running, show, wait_for

from kimberlite import _sys
from kimberlite.errors import UnavailableError
from kimberlite.storage.journal import journal_name, witness_name

CALLS = (
    "pwritev",
    "pwritev2",
    "pwrite64",
    "fdatasync",
    "fsync",
    "sync_file_range",
    "fallocate",
    "ftruncate",
    "rename",
    "renameat",
    "renameat2",
    "unlinkat",
    "io_submit",
)
SEGMENT_BYTES = 384 << 10  # 96 sectors; made in two chunks
# Few and large appends: segments change often, and a life has not more calls than it must.
RATE = 15.0  # a second
EVENT_BYTES = (40, 12_000)
# Checkpoints and trims come in every life; what is kept lasts for seconds, so that the follower sees all of it.
SETTINGS = ("limits.prepare_bytes_max=65536", "checkpoint.ops=24", f"retention.bytes_max={4 * SEGMENT_BYTES}")
VICTIM = 1
LIVES_EACH = 12  # for one cluster: its logs grow, and a start reads them
LIFE_S = 60.0
KILLED = -signal.SIGKILL

# How the victim writes: name -> settings.
WAYS = {
    "direct, event loop": ("storage.inline_threshold_us=1000000",),
    "direct, disk thread": ("storage.inline_threshold_us=0",),
    "buffered, event loop": ('storage.mode="buffered"', "storage.inline_threshold_us=1000000"),
}
ANY = "any file"
NEXT_JOURNAL = "next journal"
NEXT_WITNESS = "next witness"


@dataclass(frozen=True, slots=True)
class Point:
    """Kill before call number `number` (of a thread) of this name, on these files. target: the kind of file that it
    was about in the life that was only traced; another life may have another batch there."""

    way: str
    call: str
    files: str
    number: int
    target: str

    def __str__(self) -> str:
        return f"{self.call} {self.number} ({self.files}; {self.way})"


@dataclass(slots=True)
class Killed:
    """A life that ended where it should: what it was about to do."""

    point: Point
    target: str  # kind of the file
    phase: str


class Victim:
    """The replica under test, its lives and deaths."""

    def __init__(self, cluster: RigCluster, load: Load, trace: Path) -> None:
        self.cluster = cluster
        self.load = load
        self.trace = trace
        self.phase = ""

    def ended(self) -> bool:
        process = self.cluster.replicas[VICTIM].process
        return process is None or process.poll() is not None

    def exit_code(self) -> int | None:
        process = self.cluster.replicas[VICTIM].process
        return process.wait() if process is not None else None

    def next_segment(self) -> int:
        """Number of the segment that is made next: its files do not exist yet."""
        return max(self.segments(), default=-1) + 1

    def segments(self) -> set[int]:
        """Numbers of the segments of which there is a file."""
        names = os.listdir(self.cluster.replicas[VICTIM].data)
        matches = (re.fullmatch(r"(?:journal|witness)-(\d+)", name) for name in names)
        return {int(match[1]) for match in matches if match is not None}

    def start(self, point: Point | None) -> None:
        """Start under strace; without a point it only watches."""
        command = ["strace", "-D", "-f", "-y", "-qq", "-o", str(self.trace)]
        if point is not None and point.files != ANY:
            number = self.next_segment()
            name = (journal_name if point.files == NEXT_JOURNAL else witness_name)(number) + ".new"
            # By the name it has in the directory, and as it is given to calls with a directory's descriptor.
            command += ["-P", str(self.cluster.replicas[VICTIM].data.resolve() / name), "-P", name]
        self._leave_unfinished_files()
        command += ["-e", f"trace={','.join(CALLS)}"]
        if point is not None:
            command += ["-e", f"inject={point.call}:signal=KILL:when={point.number}"]
        self.trace.unlink(missing_ok=True)
        self.cluster.start(VICTIM, under=command)

    def _leave_unfinished_files(self) -> None:
        """As a crash in the middle of making them would: the start has something to remove, every time."""
        number = self.next_segment()
        for name in (journal_name(number), witness_name(number)):
            (self.cluster.replicas[VICTIM].data / f"{name}.new").write_bytes(b"\xa5" * 4096)

    def live(self, ended: Callable[[], bool]) -> None:
        """The script of one life, from the moment of its start; returns early when `ended` says so."""
        cluster, load = self.cluster, self.load
        deadline = time.monotonic() + LIFE_S

        def until(condition: Callable[[], bool], what: str) -> bool:
            """False when the life has ended."""
            while not ended():
                if load.error is not None:
                    raise RigError(f"a client failed: {load.error!r}") from load.error
                if condition():
                    return True
                if time.monotonic() > deadline:
                    raise RigError(f"{what}: not within {LIFE_S:.0f} s of a life")
                time.sleep(0.05)
            return False

        def answers(index: int) -> bool:
            status = cluster.statuses()[index]
            return status is not None and status["status"] == "normal"

        def segment_changes() -> Callable[[], bool]:
            before = self.next_segment()
            return lambda: self.next_segment() > before

        self.phase = "start"
        if not until(lambda: answers(VICTIM), "the victim answers"):
            return
        self.phase = "appends"
        if not until(segment_changes(), "a change of segment"):
            return
        self.phase = "trim"
        before = min(self.segments())
        if not until(lambda: min(self.segments()) > before, "the log is trimmed"):
            return
        self.phase = "view change"
        while (leader := cluster.primary()) != VICTIM:
            if leader is not None:
                cluster.kill(leader, signal.SIGTERM)
                there = until(lambda: cluster.primary() is not None, "another leads")
                cluster.start(leader)
                if not there or not until(lambda leader=leader: answers(leader), "it is back"):  # type: ignore[misc]
                    return
            elif not until(lambda: cluster.primary() is not None, "one leads"):
                return
        self.phase = "appends as primary"
        if not until(segment_changes(), "a change of segment as primary"):
            return
        self.phase = "loses the lead"
        process = cluster.replicas[VICTIM].process
        if process is not None and not ended():
            process.send_signal(signal.SIGSTOP)
            try:
                wait_for(lambda: cluster.primary() not in (None, VICTIM), "another leads while it is paused")
            finally:
                process.send_signal(signal.SIGCONT)
        if not until(lambda: answers(VICTIM), "it goes on as a backup"):
            return
        self.phase = "appends as backup"
        wanted = load.acknowledged + 10
        until(lambda: load.acknowledged >= wanted, "more appends")

    def stop(self) -> int | None:
        self.phase = "stop"
        return self.cluster.kill(VICTIM, signal.SIGTERM)


@dataclass(slots=True)
class Call:
    """One call as strace shows it: its number among those of its thread and name, from 1."""

    thread: str
    name: str
    number: int
    arguments: str
    result: str = ""


def calls_of(trace: Path) -> list[Call]:
    """Every call that a trace shows, in order of entry."""
    found: list[Call] = []
    counts: Counter[tuple[str, str]] = Counter()
    open_calls: dict[str, Call] = {}
    for line in trace.read_text(errors="replace").splitlines():
        if match := re.match(r"(\d+) +<\.\.\. \w+ resumed>.*= (\S+)", line):
            if match[1] in open_calls:
                open_calls.pop(match[1]).result = match[2]
        elif match := re.match(r"(\d+) +(\w+)\((.*?)(?: <unfinished \.\.\.>|\) += (\S+).*)$", line):
            thread, name, arguments, result = match.groups()
            counts[thread, name] += 1
            call = Call(thread, name, counts[thread, name], arguments, result or "")
            found.append(call)
            if result is None:
                open_calls[thread] = call
    return found


def kind_of(rest: str) -> str:
    """Which kind of file a call is about: the first path in it."""
    paths = re.findall(r'<([^>]*)>|"([^"]*)"', rest)
    names = [Path(a or b).name for a, b in paths if a or b]
    for name in names:
        match = re.match(r"(journal|witness|checkpoint)-\S*?(\.new)?$|(superblock|lock|kimberlite-metrics)", name)
        if match:
            return (match[1] or match[3]) + (match[2] or "")
    return "directory"


def plan(way: str, trace: Path) -> list[Point]:
    """All points of one way of writing, out of the trace of a whole life."""
    calls = calls_of(trace)
    makers = {call.thread for call in calls if call.name == "fallocate" and kind_of(call.arguments).endswith(".new")}
    makers.discard(calls[0].thread)  # the event loop, which makes the files of checkpoints
    points: dict[tuple[str, str, int], Point] = {}
    for call in calls:  # of the threads that start() and the write engine run on: no file name is needed
        if call.thread not in makers:
            point = Point(way, call.name, ANY, call.number, kind_of(call.arguments))
            points.setdefault((call.name, ANY, call.number), point)
    first: dict[str, str] = {}
    counts: Counter[tuple[str, str, str]] = Counter()
    for call in calls:  # and what makes the files of the next segment, whichever thread that is
        kind = kind_of(call.arguments)
        name = re.search(r"(?:journal|witness)-\d+\.new", call.arguments)
        if name is None or first.setdefault(kind, name[0]) != name[0]:
            continue
        files = NEXT_JOURNAL if kind.startswith("journal") else NEXT_WITNESS
        counts[call.thread, call.name, files] += 1
        number = counts[call.thread, call.name, files]
        points.setdefault((call.name, files, number), Point(way, call.name, files, number, kind))
    return list(points.values())


def sample(points: Sequence[Point], seed: int) -> list[Point]:
    """All of them in an order in which every beginning is spread over calls, files and numbers."""
    generator = random.Random(seed)
    kinds: dict[tuple[str, str, str], list[Point]] = {}
    for point in points:
        kinds.setdefault((point.call, point.files, point.target), []).append(point)
    names = list(kinds)
    generator.shuffle(names)
    kinds = {name: kinds[name] for name in names}
    for group in kinds.values():
        # The earlier ones sooner, mostly: a life that ends early leaves time for others.
        group.sort(key=lambda point: generator.random() * point.number, reverse=True)
    order: list[Point] = []
    while any(kinds.values()):
        for group in kinds.values():
            if group:
                order.append(group.pop())
    return order


class Rig:
    """Runs lives, and remembers what they showed."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.seed = seed
        self.killed: list[Killed] = []
        self.events = self.appends = self.unknown = self.trimmed = self.clusters = 0
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            self.settings = ("storage.unsafe=true",) if _sys.why_volatile(descriptor) else ()
        finally:
            os.close(descriptor)

    def cluster(self, way: str) -> RigCluster:
        self.clusters += 1
        settings = (*self.settings, *WAYS[way], *SETTINGS)
        return RigCluster(self.directory / f"cluster-{self.clusters}", settings=settings, segment_bytes=SEGMENT_BYTES)

    def traced_life(self, way: str) -> list[Point]:
        """A life without a kill: which points there are."""
        cluster = self.cluster(way)
        with running(cluster):
            cluster.prepare()
            cluster.start_all()
            cluster.wait_ready(60)
            follower = Follower(cluster.addresses).start()
            load = Load(cluster.addresses, rate=RATE, sizes=EVENT_BYTES, seed=self.seed).start()
            load.wait_progress(10)
            victim = Victim(cluster, load, cluster.directory / "trace")
            cluster.kill(VICTIM)
            victim.start(None)
            victim.live(victim.ended)
            code = victim.stop()
            if code != 0:
                raise RigError(f"the life without a kill ended with {code}")
            cluster.start(VICTIM)
            load.wait_progress(5)
            cluster.wait_ready(60)
            self._judge(cluster, load, follower)
        points = plan(way, victim.trace)
        self._discard(cluster)
        return points

    def lives(self, way: str, points: Sequence[Point], deadline: float, say: Callable[[str], None]) -> None:
        """One cluster in which the victim dies at each of these points, until the deadline."""
        cluster = self.cluster(way)
        with running(cluster):
            cluster.prepare()
            cluster.start_all()
            cluster.wait_ready(60)
            follower = Follower(cluster.addresses).start()
            load = Load(cluster.addresses, rate=RATE, sizes=EVENT_BYTES, seed=self.seed + self.clusters).start()
            victim = Victim(cluster, load, cluster.directory / "trace")
            load.wait_progress(10)
            for point in points:
                if time.monotonic() > deadline:
                    break
                began = time.monotonic()
                killed = self.life(victim, point)
                self.killed.append(killed)
                say(f"{point}: before {killed.target}, {killed.phase}; {time.monotonic() - began:.1f} s")
            self._judge(cluster, load, follower)
        self._discard(cluster)

    def life(self, victim: Victim, point: Point) -> Killed:
        """Start it under strace, let it die at the point, start it again, and see the cluster go on."""
        cluster, load = victim.cluster, victim.load
        cluster.kill(VICTIM, signal.SIGTERM)
        victim.start(point)
        deadline = time.monotonic() + LIFE_S
        while not victim.ended():
            if time.monotonic() > deadline:
                raise RigError(f"{point}: the kill never came, the run shows nothing")
            victim.live(victim.ended)
            if point.files != ANY:
                break  # these files are made once
        phase = victim.phase
        code = victim.stop() if not victim.ended() else victim.exit_code()
        if code != KILLED:
            raise RigError(f"{point}: the kill never came, the victim ended with {code}: the run shows nothing")
        unfinished: list[Call] = []

        def is_in_the_trace() -> bool:
            """strace outlives what it traces."""
            wanted = (point.call, point.number, "?")
            calls = calls_of(victim.trace)
            unfinished[:] = [call for call in calls if (call.name, call.number, call.result) == wanted]
            return bool(unfinished)

        try:
            wait_for(is_in_the_trace, f"{point}: in the trace the victim is in that call when it is killed", 10)
        except RigError:
            print(victim.trace.read_text(errors="replace")[-2000:])
            raise
        cluster.start(VICTIM)
        load.wait_progress(5)
        try:
            cluster.wait_ready(60)
        except UnavailableError as error:
            raise RigError(f"{point}: after the kill {error}") from error
        commit = max(int(str(status["commit"])) for status in cluster.statuses() if status is not None)

        def caught_up() -> bool:
            status = cluster.statuses()[VICTIM]
            return status is not None and int(str(status["applied"])) >= commit

        wait_for(caught_up, f"{point}: the victim has caught up", 60)
        return Killed(point, kind_of(unfinished[-1].arguments), phase)

    def _judge(self, cluster: RigCluster, load: Load, follower: Follower) -> None:
        load.stop()
        verdict = judge(cluster, load, follower)
        self.events += verdict.events
        self.appends += verdict.appends
        self.unknown += verdict.unknown
        self.trimmed += verdict.trimmed

    def _discard(self, cluster: RigCluster) -> None:
        shutil.rmtree(cluster.directory)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every point, however long it takes")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="of the sample (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, help="of the sample and of the clients; drawn and printed when not given")
    parser.add_argument("--way", choices=sorted(WAYS), action="append", help="only these ways of writing")
    parser.add_argument("--dir", type=Path, help="where the data goes; a temporary directory when not given")
    options = parser.parse_args(arguments)
    end_in_order()
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    ways = options.way or list(WAYS)
    if not options.all:
        ways = [random.Random(seed).choice(ways)]
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-points-", dir=options.dir) as directory:
        rig = Rig(Path(directory), seed)
        points: dict[str, list[Point]] = {}
        try:
            for way in ways:
                points[way] = sample(rig.traced_life(way), seed)
                shown = Counter((point.call, point.target, point.files) for point in points[way])
                print(f"{way}: {len(points[way])} points", flush=True)
                for (call, target, files), count in sorted(shown.items()):
                    print(f"  {call:<10} {target:<18} {count:>4}  ({files})", flush=True)
            deadline = float("inf") if options.all else time.monotonic() + options.seconds
            say = lambda line: print(f"  {len(rig.killed):>4}  {line}", flush=True)  # noqa: E731
            for way in ways:
                for first in range(0, len(points[way]), LIVES_EACH):
                    if time.monotonic() < deadline:
                        rig.lives(way, points[way][first : first + LIVES_EACH], deadline, say)
        except Exception as error:  # a person or a test reads one line; the logs were shown
            print(f"FAILED: {show(error)}", flush=True)
            raise
    table = Counter((killed.point.call, killed.target) for killed in rig.killed)
    print("killed before", flush=True)
    for (call, target), count in sorted(table.items()):
        print(f"  {call:<10} {target:<18} {count:>4}")
    phases = Counter(killed.phase for killed in rig.killed)
    print("in the phase  " + ", ".join(f"{phase}: {count}" for phase, count in sorted(phases.items())))
    if not rig.killed:
        print("FAILED: there was no time for a single kill", flush=True)
        return 1
    total = sum(map(len, points.values()))
    print(
        f"{len(rig.killed)} kills of {total} points, {rig.clusters} clusters, {rig.appends} appends acknowledged, "
        f"{rig.unknown} unknown, {rig.events} events ({rig.trimmed} trimmed), none lost, none twice, "
        f"{time.monotonic() - began:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
