"""kill -9 before every system call by which one replica of three writes its disk, under load.

    python tests/rigs/kill_points.py               a sample over all kinds, for as long as --seconds says
    python tests/rigs/kill_points.py --all         every one
    ... --plain                                    without checkpoints and trims: fewer kinds of calls, a log that grows

One *life* of the victim is a script: start, appends over a change of segment, with checkpoints, until the log is
trimmed, view changes until it leads, appends over another change of segment, a pause in which it loses the lead, an
orderly stop. A first life is only traced: that says
which calls there are, and how many of each. Then, for each call and each N, the victim is started under
`strace --inject=CALL:signal=KILL:when=N`, which kills it on entry to that call, before the call acts. It is started
again, catches up, and the cluster goes on; clients append all the time and write down what they saw. The start after a
kill is the next life, with its own kill to come; a life that is killed before it has caught up is followed by one
without a kill, which must. The other two replicas and the clients go on through all of it.

Each kill is printed as it happens. SIGTERM ends the rig after the kill under way: the cluster is judged, and what was
shown so far is printed.

strace counts calls by thread. Writes of the journal and of the superblock are made by one thread: the event loop's when
`storage.inline_threshold_us` is high, the disk thread when it is 0; both are enumerated, and the buffered mode. What
threads do that make the next segment's files is selected by file name (strace -P).

A life in which the kill never came shows nothing. Of files that are made ahead it is tried again, a few times: one that
is needed early is not zeroed to its end. Else it is an error. At the end of each cluster: no acknowledged event is
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

from harness import Follower, Load, RigCluster, RigError, judge, running, show, wait_for

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
# Few and large appends: segments change often, and a life has not more calls than it must. Some fit the ring.
RATE = 20.0  # a second
EVENT_BYTES = (40, 12_000)
EVENTS = (1, 2, 5)
# Events that the follower may be behind: it must see what will be trimmed, at whatever speed the machine has today.
BEHIND_MAX = 100
SETTINGS = ("limits.prepare_bytes_max=65536",)
CHECKPOINTS_AND_TRIMS = ("checkpoint.ops=24", f"retention.bytes_max={4 * SEGMENT_BYTES}")  # in every life
VICTIM = 1
LIVES_EACH = 60  # for one cluster
LIVES_EACH_PLAIN = 15  # its logs grow, and a start reads them
LIFE_S = 120.0
LIVES_MAX = 5  # until a file that is made ahead is not needed before the call comes
KILLED = -signal.SIGKILL

# How the victim writes: name -> settings.
WAYS = {
    "direct, event loop": ("storage.inline_threshold_us=1000000",),
    "direct, disk thread": ("storage.inline_threshold_us=0",),
    "direct, event loop, no ring": ("storage.inline_threshold_us=1000000", "storage.ring=false"),
    "buffered, event loop": ('storage.mode="buffered"', "storage.inline_threshold_us=1000000"),
}
ANY = "any file"
NEXT_JOURNAL = "next journal"
NEXT_WITNESS = "next witness"


class NeverCameError(RigError):
    """A life in which the victim did not make the call that it was to die at."""


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

    def __init__(self, cluster: RigCluster, load: Load, trace: Path, trims: bool) -> None:
        self.cluster = cluster
        self.load = load
        self.trace = trace
        self.phase = ""
        self.trims = trims
        self.caught_up = False  # since its last start, with what the others had committed before

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
        # No --seccomp-bpf, quick as it is: strace 6.1 injects nothing with it.
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
        self.caught_up = False
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

        def has_committed() -> bool:
            status = cluster.statuses()[VICTIM]
            return status is not None and status["status"] == "normal" and int(str(status["applied"])) >= commit

        def segment_changes() -> Callable[[], bool]:
            before = self.next_segment()
            return lambda: self.next_segment() > before

        self.phase = "start"
        commit = self.committed()
        if not until(has_committed, "the victim has caught up"):
            return
        self.caught_up = True
        self.phase = "appends"
        if not until(segment_changes(), "a change of segment"):
            return
        if self.trims:
            self.phase = "trim"
            before = min(self.segments())
            if not until(lambda: min(self.segments()) > before, "the log is trimmed"):
                return
        self.phase = "view change"
        while (leader := cluster.primary()) != VICTIM:
            if leader is None:
                if not until(lambda: cluster.primary() is not None, "one leads"):
                    return
            elif not self._pause(leader, until) or not until(
                lambda leader=leader: answers(leader),  # type: ignore[misc]
                "the one that led is back",
            ):
                return
        self.phase = "appends as primary"
        if not until(segment_changes(), "a change of segment as primary"):
            return
        self.phase = "loses the lead"
        if not self._pause(VICTIM, until) or not until(lambda: answers(VICTIM), "it goes on as a backup"):
            return
        self.phase = "appends as backup"
        wanted = load.acknowledged + 10
        until(lambda: load.acknowledged >= wanted, "more appends")

    def _pause(self, index: int, until: Callable[[Callable[[], bool], str], bool]) -> bool:
        """Pause a replica until another leads. False when the victim's life has ended meanwhile."""
        process = self.cluster.replicas[index].process
        if process is None or process.poll() is not None:
            return not self.ended()
        process.send_signal(signal.SIGSTOP)
        try:
            return until(lambda: self.cluster.primary(without=index) is not None, "another leads while one is paused")
        finally:
            process.send_signal(signal.SIGCONT)

    def committed(self) -> int:
        """What the others have committed."""
        statuses = self.cluster.statuses(without=VICTIM)
        return max((int(str(status["commit"])) for status in statuses if status is not None), default=0)

    def recover(self, after: str) -> None:
        """Start it without strace, and see it catch up and the cluster go on."""
        self.cluster.start(VICTIM)
        self.load.wait_progress(5)
        try:
            self.cluster.wait_ready(60)
        except UnavailableError as error:
            raise RigError(f"{after}: after the kill {error}") from error
        commit = self.committed()

        def caught_up() -> bool:
            status = self.cluster.statuses()[VICTIM]
            return status is not None and int(str(status["applied"])) >= commit

        wait_for(caught_up, f"{after}: the victim has caught up", 60)

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
        match = re.match(r"(journal|witness|checkpoint)-\S*?(\.new)?$|(superblock|lock|ring|kimberlite-metrics)", name)
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

    def __init__(self, directory: Path, seed: int, plain: bool) -> None:
        self.directory = directory
        self.seed = seed
        self.plain = plain
        self.stopping = False  # asked to end
        self.killed: list[Killed] = []
        self.events = self.appends = self.unknown = self.trimmed = self.clusters = 0
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            self.settings = ("storage.unsafe=true",) if _sys.why_volatile(descriptor) else ()
        finally:
            os.close(descriptor)

    def on_signal(self, number: int, frame: object) -> None:
        """The first SIGTERM lets the kill under way end and the cluster be judged, a second ends at once."""
        if self.stopping:
            raise SystemExit(128 + number)
        self.stopping = True

    def cluster(self, way: str) -> RigCluster:
        self.clusters += 1
        settings = (*self.settings, *WAYS[way], *SETTINGS, *(() if self.plain else CHECKPOINTS_AND_TRIMS))
        return RigCluster(self.directory / f"cluster-{self.clusters}", settings=settings, segment_bytes=SEGMENT_BYTES)

    def clients(self, cluster: RigCluster) -> tuple[Load, Follower]:
        """Clients that append, and one that reads, all started."""
        follower = Follower(cluster.addresses)
        load = Load(
            cluster.addresses,
            rate=RATE,
            sizes=EVENT_BYTES,
            counts=EVENTS,
            seed=self.seed + self.clusters,
            hold=lambda: load.end > len(follower.log) + BEHIND_MAX,
        )
        return load.start(), follower.start()

    def traced_life(self, way: str) -> list[Point]:
        """A life without a kill: which points there are."""
        cluster = self.cluster(way)
        with running(cluster):
            cluster.prepare()
            cluster.start_all()
            cluster.wait_ready(60)
            load, follower = self.clients(cluster)
            load.wait_progress(10)
            victim = Victim(cluster, load, cluster.directory / "trace", not self.plain)
            self._begin(cluster, load)
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

    def _begin(self, cluster: RigCluster, load: Load) -> None:
        """The data was formatted as the first release did: the first start after the birth makes the ring, once. What
        is counted are the calls of those after it."""
        cluster.kill(VICTIM)
        cluster.start(VICTIM)
        load.wait_progress(5)
        cluster.wait_ready(60)
        cluster.kill(VICTIM)

    def lives(self, way: str, points: Sequence[Point], deadline: float, say: Callable[[str], None]) -> None:
        """One cluster in which the victim dies at each of these points, until the deadline."""
        cluster = self.cluster(way)
        with running(cluster):
            cluster.prepare()
            cluster.start_all()
            cluster.wait_ready(60)
            load, follower = self.clients(cluster)
            victim = Victim(cluster, load, cluster.directory / "trace", not self.plain)
            load.wait_progress(10)
            self._begin(cluster, load)
            for point in points:
                if self.stopping or time.monotonic() > deadline:
                    break
                began = time.monotonic()
                killed = self.dies_once(victim, point)
                self.killed.append(killed)
                say(f"{point}: before {killed.target}, {killed.phase}; {time.monotonic() - began:.1f} s")
            if victim.ended():
                victim.recover("the last life")
            self._judge(cluster, load, follower)
        self._discard(cluster)

    def dies_once(self, victim: Victim, point: Point) -> Killed:
        """In one of a few lives, for files that are made ahead."""
        for _ in range(LIVES_MAX - 1):
            try:
                return self.life(victim, point)
            except NeverCameError:
                if point.files == ANY:
                    raise
        return self.life(victim, point)

    def life(self, victim: Victim, point: Point) -> Killed:
        """Start it under strace and let it die at the point.

        It is down when the last life had caught up: then this start is the one after that kill, or the first of two.
        """
        cluster, load = victim.cluster, victim.load
        if not victim.ended():
            cluster.kill(VICTIM, signal.SIGTERM)
        victim.start(point)
        load.wait_progress(1)
        deadline = time.monotonic() + LIFE_S
        while not victim.ended():
            if time.monotonic() > deadline:
                raise RigError(f"{point}: the kill never came, the run shows nothing")
            victim.live(victim.ended)
            if point.files != ANY:
                break  # these files are made once
        phase = victim.phase
        code = victim.stop() if not victim.ended() else victim.exit_code()
        if code == 0:
            raise NeverCameError(f"{point}: the kill never came, the victim ended in order: the run shows nothing")
        if code != KILLED:
            raise RigError(f"{point}: the kill never came, the victim ended with {code}")
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
        if not victim.caught_up:
            victim.recover(str(point))
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
    parser.add_argument("--plain", action="store_true", help="lives without checkpoints and trims")
    parser.add_argument("--way", choices=sorted(WAYS), action="append", help="only these ways of writing")
    parser.add_argument("--dir", type=Path, help="where the data goes; a temporary directory when not given")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    ways = options.way or list(WAYS)
    if not options.all:
        ways = [random.Random(seed).choice(ways)]
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    points: dict[str, list[Point]] = {}
    failures = 0
    with tempfile.TemporaryDirectory(prefix="kill-points-", dir=options.dir) as directory:
        rig = Rig(Path(directory), seed, options.plain)
        signal.signal(signal.SIGTERM, rig.on_signal)
        try:
            for way in ways:
                points[way] = sample(rig.traced_life(way), seed)
                shown = Counter((point.call, point.target, point.files) for point in points[way])
                print(f"{way}: {len(points[way])} points", flush=True)
                for (call, target, files), count in sorted(shown.items()):
                    print(f"  {call:<10} {target:<18} {count:>4}  ({files})", flush=True)
        except Exception as error:  # a person or a test reads one line; the logs were shown
            print(f"FAILED: {show(error)}", flush=True)
            raise
        total = sum(map(len, points.values()))
        deadline = float("inf") if options.all else time.monotonic() + options.seconds
        say = lambda line: print(f"  {len(rig.killed):>4}/{total}  {line}", flush=True)  # noqa: E731
        each = LIVES_EACH_PLAIN if options.plain else LIVES_EACH
        for way in ways:
            left = points[way]
            while left and not rig.stopping and time.monotonic() < deadline:
                before = len(rig.killed)
                try:
                    rig.lives(way, left[:each], deadline, say)
                except Exception as error:  # the logs were shown; the other points are tried in another cluster
                    failures += 1
                    print(f"FAILED: {show(error)}", flush=True)
                    if not options.all:
                        raise
                    left = left[1:]
                left = left[len(rig.killed) - before :]
    _summarize(rig, total, time.monotonic() - began)
    if failures:
        print(f"FAILED: {failures} clusters")
    elif not rig.killed:
        print("FAILED: there was no time for a single kill")
    return 1 if failures or not rig.killed else 0


def _summarize(rig: Rig, total: int, seconds: float) -> None:
    """What was shown, for people. Events are counted of clusters that were judged."""
    table = Counter((killed.point.call, killed.target) for killed in rig.killed)
    print("killed before", flush=True)
    for (call, target), count in sorted(table.items()):
        print(f"  {call:<10} {target:<18} {count:>4}")
    phases = Counter(killed.phase for killed in rig.killed)
    print("in the phase  " + ", ".join(f"{phase}: {count}" for phase, count in sorted(phases.items())))
    print(
        f"{len(rig.killed)} kills of {total} points, {rig.clusters} clusters, {rig.appends} appends acknowledged, "
        f"{rig.unknown} unknown, {rig.events} events ({rig.trimmed} trimmed), none lost, none twice, "
        f"{seconds:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
