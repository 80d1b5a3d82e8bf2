"""Conversions by enumeration: data of the first release becomes that of a cluster that is born, and power fails.

Three replicas that run the first release have acknowledged appends. All stop; one of them may be behind, be put back to
an older image of its disk, or never come again, which the others are told of. They start under this release, and while
they convert their data one replica loses power: after each of its writes in turn, with that write whole or its last
half garbage, and one copy of what it has twice or more damaged besides. It starts again. Then the cluster is born,
everything that was acknowledged is there, appends go on, and all of it also after another stop of all.

`python -m kimberlite.vopr.conversion_crashes FIRST STEP EVERY` prints reports on a part of the cases: the workers.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from random import Random

from kimberlite.storage import birth, superblock
from kimberlite.types import Birth, Bytes
from kimberlite.vopr import conversions
from kimberlite.vopr.disk import UNIT, Files, corrupt
from kimberlite.vopr.enumeration import FAILURES_SHOWN, check, failure_text
from kimberlite.vopr.identities import identity_on
from kimberlite.vopr.plan import MS, Plan, draw
from kimberlite.vopr.workers import Workers, show
from kimberlite.vopr.world import World

REPLICAS, APPENDS = 3, 3
PART = 50  # cases of one report
BIRTH_NS_MAX = 20_000 * MS
WHOLE, BEHIND, OLDER_IMAGE, LOST = "whole", "behind", "older image", "lost"
ONE_HAS_IT = "older image, and the next one behind"  # the third alone has what was acknowledged
COPIED = (superblock.NAME, birth.NAME)


@dataclass(frozen=True, slots=True)
class Case:
    """What has happened to whom before, and which write power fails after. copy: file and number of the copy that is
    damaged besides; None: none."""

    before: str
    of: int
    victim: int
    write: int
    torn: bool
    copy: tuple[str, int] | None

    def text(self) -> str:
        damage = "" if self.copy is None else f", copy {self.copy[1]} of {self.copy[0]} damaged"
        tear = ", torn" if self.torn else ""
        before = "all are whole" if self.before == WHOLE else f"replica {self.of}: {self.before}"
        return f"{before}; replica {self.victim} loses power at write {self.write}{tear}{damage}"


@dataclass
class Report:
    cases: int = 0
    wrong: int = 0
    failures: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)  # what had happened before -> cases

    def add(self, case: Case, failure: str) -> None:
        self.cases += 1
        self.kinds[case.before] = self.kinds.get(case.before, 0) + 1
        if failure:
            self.wrong += 1
            self.failures = [*self.failures, failure][:FAILURES_SHOWN]

    def merge(self, other: Report) -> None:
        self.cases += other.cases
        self.wrong += other.wrong
        self.failures = (self.failures + other.failures)[:FAILURES_SHOWN]
        self.kinds = dict(Counter(self.kinds) + Counter(other.kinds))


class _PowerCut(Exception):
    """Power has failed in the middle of whatever the replica did."""


def _plan() -> Plan:
    """Nothing fails but what a case lets fail."""
    plan = replace(draw(1, APPENDS), replica_count=REPLICAS, client_count=1, converted=True, birth=False, weights={})
    plan = replace(plan, loss=0, duplication=0, reorder=0, corruption=0, replay=0, garbage=0, clock_skew_ns=0)
    plan = replace(plan, latency_ns=100_000, disk_latency_ns=100_000, scrub_bytes_per_s=0, reader_count=0)
    return replace(plan, checkpoint_ops=4096, retention_bytes=0, retention_age_s=0, snapshot_ns=0, persistent="")


class _World(World):
    """Counts the writes of one replica, and lets power fail after one of them."""

    def __init__(self) -> None:
        self.victim: int | None = None
        self.writes = 0
        self.until_cut: int | None = None
        self.tears = False
        super().__init__(_plan(), faults=())

    def on_write(self, index: int, name: str, offset: int, data: Bytes) -> None:
        super().on_write(index, name, offset, data)
        if index != self.victim:
            return
        self.writes += 1
        if self.writes != self.until_cut:
            return
        self.victim = None
        if self.tears:
            half = len(data) // 2 // UNIT * UNIT
            content = self.files[index].durable[name]
            content[offset + half : offset + len(data)] = Random(self.writes).randbytes(len(data) - half)
        raise _PowerCut

    def append(self, count: int) -> None:
        """So many more appends, all of which must be acknowledged."""
        client = self.clients[0]
        client.quota += count
        self.at(self.now, client.append if client.history else client.begin)
        deadline = self.now + BIRTH_NS_MAX
        check(self.run_until(deadline, lambda: not client.busy), f"no append is acknowledged: {self.describe()}")

    def start_all(self) -> None:
        for index in self.whole:
            self.restart(index)

    def stop_all(self) -> None:
        for node in self.nodes:
            self.crash(node.index)


def _before(case: Case) -> _World:
    """The cluster under the first release, stopped, as the case has it. `whole` are those that come again."""
    world = _World()
    world.clients[0].quota = 0
    world.append(APPENDS)
    image: Files | None = None
    if case.before in (OLDER_IMAGE, ONE_HAS_IT):
        image = world.files[case.of].copy()
    if case.before in (BEHIND, ONE_HAS_IT):
        world.crash(case.of if case.before == BEHIND else (case.of + 1) % REPLICAS)
    world.append(APPENDS)
    world.run_until(world.now + 300 * MS, lambda: False)  # the commit number is known everywhere
    world.stop_all()
    if image is not None:
        world.put_in(case.of, image)
    if case.before == LOST:
        world.left_out = (case.of,)
        world.drawer.lost.add(case.of)
    conversions.convert(world)
    return world


def writes_of(before: str, of: int, victim: int) -> int:
    """How many writes a conversion takes of that replica, until the cluster goes on."""
    world = _before(Case(before, of, victim, 0, False, None))
    world.victim = victim
    world.start_all()
    world.append(1)
    return world.writes


def judge(case: Case) -> None:
    """Raises Wrong, and whatever crashes."""
    world = _before(case)
    world.victim, world.until_cut, world.tears = case.victim, case.write, case.torn
    try:
        world.start_all()
        world.append(1)
    except _PowerCut:
        world.crash(case.victim)
    check(world.victim is None, "power did not fail: there are fewer writes")
    if case.copy is not None:
        _damage(world.files[case.victim], *case.copy)
    world.start_all()
    _goes_on(world)
    world.stop_all()
    world.start_all()
    _goes_on(world)
    world.run_until(world.now + 1000 * MS, lambda: False)  # who was behind has caught up
    world.checkers.check_end(world, [record for client in world.clients for record in client.history])


def _damage(files: Files, name: str, copy: int) -> None:
    if name in files.durable:
        corrupt(files, name, copy * superblock.COPY_BYTES, UNIT, Random(copy))


def _goes_on(world: _World) -> None:
    world.append(1)
    members = [identity_on(world.files[index]) for index in world.whole]
    check(all(member.birth is Birth.FORMED for member in members), "appends go on before the cluster is born")
    check(len({member.digest for member in members}) == 1, "two births of one cluster")


def cases() -> Iterator[Case]:
    """All of them, in an order of which every so many are of all kinds."""
    copies = [None, *((name, copy) for name in COPIED for copy in range(superblock.COPIES))]
    for victim in range(REPLICAS):
        situations = [(WHOLE, victim)]
        situations += [(before, of) for before in (BEHIND, OLDER_IMAGE, ONE_HAS_IT, LOST) for of in range(REPLICAS)]
        for before, of in situations:
            if before == LOST and of == victim:
                continue
            for write in range(1, writes_of(before, of, victim) + 1):
                for torn in (False, True):
                    for copy in copies:
                        yield Case(before, of, victim, write, torn, copy)


def total(every: int = 1) -> int:
    return sum(1 for _ in islice(cases(), 0, None, every))


def try_one(case: Case) -> str:
    """What is wrong with a case; the empty string when nothing is."""
    try:
        judge(case)
    except Exception as error:  # whatever a crash makes happen is what is looked for
        return f"{case.text()}: {failure_text(error)}"
    return ""


def enumerate_part(first: int, step: int, every: int) -> Generator[Report, None, None]:
    """Of every every-th case, those with the numbers first, first + step, ...: a report on each PART of them."""
    report = Report()
    for case in islice(cases(), first * every, None, step * every):
        report.add(case, try_one(case))
        if report.cases == PART:
            yield report
            report = Report()
    yield report


def enumerate_all(every: int = 1, jobs: int = 1) -> Generator[Report, None, None]:
    """All cases, or every so many, on that many processes: reports to be merged, as they come."""
    if jobs <= 1:
        yield from enumerate_part(0, 1, every)
        return
    with Workers(__name__, [(index, jobs, every) for index in range(jobs)]) as workers:
        for value in workers.values():
            yield Report(**value)


def _worker(arguments: Sequence[str]) -> None:
    first, step, every = map(int, arguments)
    for report in enumerate_part(first, step, every):
        show(asdict(report))


if __name__ == "__main__":
    _worker(sys.argv[1:])
