"""Corruption by enumeration: small replicas, every single damage of their disks, and what becomes of each.

    bits         every bit of every file, one at a time
    sectors      every one zeroed, filled with ones, unreadable, swapped with every other, in the place of every
                 other, as it was at every earlier time; and every superblock copy as it was
    files        every one cut short at every byte, and gone

Of some replicas only some files are damaged bit by bit and byte by byte in whole, for the others show nothing new
(`Specimen.whole`); of the rest there is a sample.

Each image is started by the production store and everything is read from it. Nothing may crash; what is served must
be what was acknowledged, byte for byte; what is not served must be known to be damaged, never be called absent;
with the entries of a peer all of it must be repaired; and after another start nothing may be wrong any more. A start
may be refused only where one event took more than one copy: no two copies of the superblock left, or a whole file. The
audit of the damaged disk must name the very ops that a replica on it finds damaged.

`python -m kimberlite.vopr.corruption FIRST STEP EVERY` prints reports on every STEP-th image: the workers.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from kimberlite._fast.framing import make_header
from kimberlite.errors import CheckpointError, DataMissingError, StorageError, SuperblockError
from kimberlite.storage import superblock
from kimberlite.storage.audit import Audit, Cause
from kimberlite.storage.interface import SECTOR
from kimberlite.storage.journal import RECORD_BYTES, journal_name, round_up, witness_name
from kimberlite.storage.scrub import Scrubber
from kimberlite.storage.store import Store, format_store
from kimberlite.types import ClusterId, Command, EntryState, Header, Message, Operation, ViewState, root_header
from kimberlite.vopr.disk import Files, ImageDisk, make_unreadable
from kimberlite.vopr.enumeration import FAILURES_SHOWN, Wrong, check, failure_text
from kimberlite.vopr.workers import Workers, show

CLUSTER: ClusterId = b"storage-cluster!"
SEGMENT_BYTES = 64 << 10
PART = 500  # images of one report
ROOT = root_header(make_header, CLUSTER)
# What an audit may still say of an image that has been repaired: nothing of it is about the log.
LEFT_OVER = {Cause.FILE_SIZE, Cause.ENTRY_TORN}


def copied(files: Files) -> Files:
    """Contents and unreadable sectors, without the books that checkers of a run keep."""
    return Files(
        {name: bytearray(content) for name, content in files.durable.items()},
        {name: set(sectors) for name, sectors in files.unreadable.items()},
    )


def changed(files: Files, *places: tuple[str, int, bytes]) -> Files:
    """Other bytes at places (file, offset, bytes). Files without any are shared, for an ImageDisk."""
    durable = dict(files.durable)
    for name in {place[0] for place in places}:
        durable[name] = bytearray(durable[name])
    for name, offset, data in places:
        durable[name][offset : offset + len(data)] = data
    return Files(durable)


def prepare(before: Header, body: bytes = b"", *, view: int = 0, commit: int = 0, events: int = 1) -> Message:
    """The prepare after `before`."""
    header = make_header(
        body,
        cluster=CLUSTER,
        command=Command.PREPARE,
        replica=0,
        view=view,
        op=before.op + 1,
        commit=commit,
        parent=before.checksum,
        operation=Operation.APPLY,
        position=before.position + before.count,
        count=events,
    )
    return Message(header, body)


def chain(
    sizes: Sequence[int], *, after: Header = ROOT, view: int = 0, salt: int = 0, events: int = 1
) -> list[Message]:
    """Prepares with bodies of those sizes, one after another."""
    result: list[Message] = []
    for number, size in enumerate(sizes):
        body = bytes((number + salt + at) % 251 for at in range(size))
        result.append(prepare(result[-1].header if result else after, body, view=view, events=events))
    return result


# The replica that is damaged


@dataclass(frozen=True, slots=True)
class Specimen:
    """A replica's disk, what it has acknowledged and promised, and how the disk was at earlier times."""

    name: str
    files: Files
    history: list[Files]
    entries: list[Message]  # acknowledged, in order of their ops from 1
    state: ViewState
    first_op: int  # those below were trimmed
    used: dict[str, int]  # bytes of a file up to which damage is enumerated
    matters: dict[str, range]  # the bytes of a file in which every bit does
    whole: tuple[str, ...] = ("journal", "witness", "superblock")  # files that are damaged bit by bit
    scrubbed: bool = False  # what a restart does not read is found by a tour of the scrubber

    @property
    def served(self) -> list[Message]:
        """The entries that can be read."""
        return self.entries[self.first_op - 1 :]


class _Builder:
    """Writes a log, and keeps what the disk was after each step."""

    def __init__(self) -> None:
        self.files = Files()
        format_store(
            ImageDisk(self.files),
            make_header,
            cluster=CLUSTER,
            replica=0,
            replica_count=3,
            segment_bytes=SEGMENT_BYTES,
        )
        self.store = Store(ImageDisk(self.files), make_header)
        self.store.recover()
        self.history: list[Files] = []
        self.state = self.store.view_state
        self._keep()

    def _keep(self) -> None:
        self.store.completions()
        self.history.append(copied(self.files))

    def append(self, entries: Sequence[Message]) -> None:
        self.store.append(1, entries)
        self._keep()

    def checkpoint(self, op: int) -> None:
        mark = self.store.mark(op)
        if mark is None:
            raise Wrong("a checkpoint can be made")
        self.store.write_checkpoint(mark, 1, b"sessions", b"the state of the machine")
        settle(self.store)
        self._keep()

    def trim(self, entry: Message) -> None:
        """To that entry, which is the first that is left."""
        self.store.trim(entry.header.op, entry.header.position)
        settle(self.store)
        self._keep()

    def enter(self, state: ViewState, keep: int) -> None:
        """A view change whose log has none of the ops above `keep` that stand here."""
        self.store.set_view_state(1, state)
        self.state = state
        self._keep()
        self.store.truncate(keep)

    def specimen(self, name: str, entries: list[Message]) -> Specimen:
        used = {}
        first_op = self.store.first_op
        matters = {superblock.NAME: range(superblock.COPIES * superblock.COPY_BYTES)}
        for message in entries[first_op - 1 :]:
            number, index, _, offset = self.store.place_of(message.header.op)
            start = offset or 0
            for file, at, size in (
                (witness_name(number), index * RECORD_BYTES, RECORD_BYTES),
                (journal_name(number), start, round_up(message.header.size)),
            ):
                matters[file] = range(matters[file].start if file in matters else at, at + size)
        for file, content in self.files.durable.items():
            end = len(content.rstrip(b"\0"))
            behind = SECTOR if file.startswith("journal-") else len(content)
            used[file] = min((end + SECTOR - 1) // SECTOR * SECTOR + behind, len(content))
        return Specimen(name, self.files, self.history[:-1], entries, self.state, first_op, used, matters)


def small() -> Specimen:
    """Four entries in six sectors, in the place of two of an older view."""
    builder = _Builder()
    builder.append(chain([700, 3000], salt=9))
    entries = chain([100, 9000, 0, 300], view=1)
    builder.enter(ViewState(1, 1, base=0, suffix_head=0, suffix=(ROOT,)), 0)
    for message in entries:
        builder.append([message])
    return builder.specimen("one segment", entries)


def checkpointed() -> Specimen:
    """Six entries; a restart begins behind the fourth."""
    builder = _Builder()
    entries = chain([100, 9000, 0, 300, 5000, 20])
    for message in entries[:5]:
        builder.append([message])
    builder.checkpoint(4)
    builder.append(entries[5:])
    specimen = builder.specimen("with a checkpoint", entries)
    copies = {n: range(len(content)) for n, content in builder.files.durable.items() if n.startswith("checkpoint")}
    return replace(specimen, matters=specimen.matters | copies, whole=("checkpoint",), scrubbed=True)


def trimmed() -> Specimen:
    """Three segments, the first of which is gone, and the second read only in part; a restart begins in the second."""
    builder = _Builder()
    entries = chain([20_000] * 5 + [300, 9000, 20_000, SECTOR, 100])
    for message in entries[:8]:
        builder.append([message])
    builder.checkpoint(6)
    builder.trim(entries[4])
    for message in entries[8:]:
        builder.append([message])
    return replace(builder.specimen("trimmed", entries), whole=(), scrubbed=True)


def long() -> Specimen:
    """Four segments of a log, one of which a restart does not read, and a fifth that an older view had filled."""
    builder = _Builder()
    old = chain([SECTOR - 256] * 60 + [20_000, 9000, SECTOR])
    for start in range(0, len(old), 7):
        builder.append(old[start : start + 7])
    kept = old[:50]
    suffix = tuple(message.header for message in kept[-8:])
    builder.enter(ViewState(2, 2, commit=45, base=45, suffix_head=50, suffix=suffix), 50)
    new = chain([5000, 100, SECTOR - 256, 0], after=kept[-1].header, view=2, salt=3)
    for message in new:
        builder.append([message])
    return builder.specimen("four segments", kept + new)


# What happens to it


@dataclass(slots=True)
class Damage:
    """A disk after one event. may_refuse: errors with which a start on it may end."""

    text: str
    files: Files
    may_refuse: tuple[type[StorageError], ...] = ()
    is_double: bool = False  # it hits both pieces of evidence for an op, journal and witness
    must: str = ""  # how it has to end, where that is known beforehand


@dataclass(frozen=True, slots=True)
class Kind:
    """All damages of one kind, by number from 0."""

    name: str
    count: int
    make: Callable[[int], Damage]


def kinds(specimen: Specimen) -> list[Kind]:
    files, used = specimen.files, specimen.used
    names = sorted(files.durable)
    sectors = [(name, at) for name in names for at in range(0, used[name], SECTOR)]
    pairs = list(itertools.combinations(sectors, 2))
    orders = list(itertools.permutations(sectors, 2))
    versions = list(range(len(specimen.history)))
    copies = [(version, copy) for version in versions for copy in range(superblock.COPIES)]
    older = [(version, sector) for version in versions for sector in sectors]

    def bit(name: str) -> Callable[[int], Damage]:
        def make(number: int) -> Damage:
            at = number // 8
            image = changed(files, (name, at, bytes([files.durable[name][at] ^ 1 << number % 8])))
            ends = "repaired" if name.startswith("journal-") else "healed"
            must = ends if at in specimen.matters.get(name, ()) else ""
            return Damage(f"bit {number % 8} of byte {at} of {name}", image, must=must)

        return make

    def filled(byte: int) -> Callable[[int], Damage]:
        def make(number: int) -> Damage:
            name, at = sectors[number]
            image = changed(files, (name, at, bytes([byte]) * SECTOR))
            return Damage(f"{name} offset {at} filled with {byte:#x}", image)

        return make

    def unreadable(number: int) -> Damage:
        name, at = sectors[number]
        image = changed(files)
        make_unreadable(image, name, at // SECTOR)
        return Damage(f"{name} offset {at} can not be read", image)

    def swapped(number: int) -> Damage:
        left, right = pairs[number]
        image = changed(files, (*left, _sector(files, right)), (*right, _sector(files, left)))
        hit = {_what(left[0]), _what(right[0])}
        # Both copies of a checkpoint: without one, a log that was trimmed has no beginning.
        lost = hit == {"checkpoint"} and left[0] != right[0] and specimen.first_op > 1
        return Damage(
            f"{left} and {right} swapped",
            image,
            may_refuse=(CheckpointError,) if lost else (),
            is_double=hit == {"journal", "witness"},
        )

    def misdirected(number: int) -> Damage:
        source, target = orders[number]
        return Damage(f"{source} also at {target}", changed(files, (*target, _sector(files, source))))

    def rolled_back(number: int) -> Damage:
        version, sector = older[number]
        image = changed(files, (*sector, _sector(specimen.history[version], sector)))
        return Damage(f"{sector} as it was in version {version}", image)

    def copy_rolled_back(number: int) -> Damage:
        version, copy = copies[number]
        at = copy * superblock.COPY_BYTES
        old = specimen.history[version].durable[superblock.NAME][at : at + superblock.COPY_BYTES]
        image = changed(files, (superblock.NAME, at, bytes(old)))
        return Damage(f"superblock copy {copy} as it was in version {version}", image)

    def cut(name: str) -> Callable[[int], Damage]:
        def make(length: int) -> Damage:
            image = Files(files.durable | {name: files.durable[name][:length]})
            lost = name == superblock.NAME and length < superblock.READ_QUORUM * superblock.COPY_BYTES
            return Damage(f"{name} cut to {length} bytes", image, (SuperblockError,) if lost else ())

        return make

    def gone(number: int) -> Damage:
        image = Files({name: content for name, content in files.durable.items() if name != names[number]})
        return Damage(f"{names[number]} gone", image, (DataMissingError, SuperblockError))

    return [
        *(Kind(f"bits of a {_what(name)}", used[name] * 8, bit(name)) for name in names),
        Kind("sector zeroed", len(sectors), filled(0)),
        Kind("sector of ones", len(sectors), filled(0xFF)),
        Kind("sector unreadable", len(sectors), unreadable),
        Kind("sectors swapped", len(pairs), swapped),
        Kind("sector misdirected", len(orders), misdirected),
        Kind("sector rolled back", len(older), rolled_back),
        Kind("superblock copy rolled back", len(copies), copy_rolled_back),
        *(Kind(f"{_what(name)} cut short", len(files.durable[name]), cut(name)) for name in names),
        Kind("file gone", len(names), gone),
    ]


def _what(name: str) -> str:
    """journal, witness, superblock."""
    return name.split("-")[0]


def _sector(files: Files, place: tuple[str, int]) -> bytes:
    """A sector as it was; zeros where there was no such file."""
    name, at = place
    return bytes(files.durable.get(name, b"")[at : at + SECTOR]).ljust(SECTOR, b"\0")


# What becomes of it


def judge(specimen: Specimen, damage: Damage) -> str:
    """Start on a damaged disk, read everything, repair it. Returns how it ended: refused, repaired (from a peer),
    healed (by the start alone) or harmless. Raises Wrong, and whatever crashes."""
    image, entries, head = damage.files, specimen.entries, len(specimen.entries)
    before = dict(image.durable)
    audit = Audit(ImageDisk(image))
    try:
        named = {finding.op for finding in audit.findings() if not finding.harmless and finding.op is not None}
    except FileNotFoundError:
        named = set()
    try:
        store = Store(ImageDisk(image), make_header)
        recovered = store.recover()
    except damage.may_refuse:
        return "refused"
    except StorageError as error:
        raise Wrong(f"the start was refused: {error}") from error
    settle(store)
    if specimen.scrubbed:
        scrubber = Scrubber(store, bytes_per_s=0, seed=0, now=0)
        while not scrubber.tours:
            scrubber.step()
        settle(store)
    check(recovered.view_state == specimen.state, "the promises are others")
    is_doubtful = recovered.head > head and damage.is_double  # it may fear to have had more
    check(recovered.head == head or is_doubtful, f"the log ends with op {recovered.head}")
    check(store.first_op == specimen.first_op, f"the log begins with op {store.first_op}")
    absent = [entry.op for entry in recovered.entries if entry.state is EntryState.ABSENT]
    check(not absent, f"ops {absent} were acknowledged and are called absent")
    faulty = {entry.op for entry in recovered.entries if entry.state is EntryState.FAULTY}
    faulty |= _read_all(specimen, store, faulty)
    faulty = {op for op in faulty if op <= head}  # of more, the primary says that it never was
    named = {op for op in named if op <= head}
    check(store.faulty <= faulty, "an op is called damaged that is not")
    check(named == faulty, f"the audit names ops {sorted(named)}, the replica {sorted(faulty)}")
    healed = not _same(image.durable, before)
    for op in sorted(faulty):
        _write(store, entries[op - 1])
    check(not store.faulty, "what was repaired is still called damaged")
    if faulty:
        check(not _read_all(specimen, store, set()), "what was repaired can not be read")
    if is_doubtful:  # the others say that there was no more, and the next op takes its place
        store.truncate(head)
        _write(store, prepare(entries[-1].header, b"the next", view=specimen.state.log_view))
    if store.checkpoint_op != store.checkpoint.op:  # it was executed from the beginning of the log, and makes another
        mark = store.mark(head)
        check(mark is not None, "no other checkpoint can be made")
        if mark is not None:
            store.write_checkpoint(mark, 1, b"sessions", b"the state of the machine")
            settle(store)
        check(store.checkpoint_op == head, "no other checkpoint was made")
    if not _same(image.durable, specimen.files.durable):
        _restart_whole(specimen, image, store.head)
    return "repaired" if faulty else "healed" if healed else "harmless"


def _same(files: Mapping[str, bytearray], others: Mapping[str, bytearray]) -> bool:
    return files.keys() == others.keys() and all(
        content is others[name] or content == others[name] for name, content in files.items()
    )


def _write(store: Store, message: Message) -> None:
    """An entry of a peer, in its place or behind the last one."""
    op = message.header.op
    if op <= store.head:
        store.repair(op, [message])
    else:
        store.append(op, [message])
    check(store.completions() == [op], "the repair is durable")


def settle(store: Store) -> None:
    """Let everything that is to be written be written: a checkpoint is, chunk by chunk."""
    for _ in range(8):
        store.completions()


def _read_all(specimen: Specimen, store: Store, known: set[int]) -> set[int]:
    """The ops that can not be read. Everything that is served is what was acknowledged."""
    lost = set()
    for message in specimen.served:
        header = message.header
        op = header.op
        for served in (store.read(op, header.checksum), store.read(op)):
            if served is None:
                lost.add(op)
                check(op in known or op in store.faulty, f"op {op} is not served and not known to be damaged")
            else:
                check(served.header == header and served.body == message.body, f"op {op}: wrong bytes served")
        found = store.header(op)
        check(found is None or found == header, f"op {op}: a wrong header served")
        check(store.find(header.position) in (op, None), f"position {header.position}: a wrong op found")
    head, first = specimen.entries[-1].header, specimen.served[0].header
    headers = store.headers(first.op, head.op)
    check(all(header == specimen.entries[header.op - 1].header for header in headers), "wrong headers served")
    for op in (0, first.op - 1, head.op + 1, head.op + 9):
        check(store.read(op) is None, f"op {op} served, which there is not")
    for position in (first.position - 1, head.position + head.count):
        check(store.find(position) is None, f"position {position} found, which there is not")
    return lost


def _restart_whole(specimen: Specimen, image: Files, head: int) -> None:
    """After a repair, the next start finds everything, and nothing to do."""
    store = Store(ImageDisk(image), make_header)
    recovered = store.recover()
    check((recovered.settled, recovered.head, recovered.view_state) == (head, head, specimen.state), "not repaired")
    check(not store.faulty, "damaged again")
    left = {
        finding.cause
        for finding in Audit(ImageDisk(image)).findings()
        if finding.op is None or finding.op >= specimen.first_op  # what was trimmed is not repaired
    } - LEFT_OVER
    check(not left, f"after the repair the audit finds {sorted(left)}")


# All of it


@dataclass(slots=True)
class Report:
    """How many images of each kind ended how, and the first of those that went wrong."""

    images: int = 0
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)  # kind -> outcome -> images
    wrong: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, kind: str, outcome: str) -> None:
        self.images += 1
        counts = self.outcomes.setdefault(kind, {})
        counts[outcome] = counts.get(outcome, 0) + 1

    def merge(self, other: Report) -> None:
        """Add what another part has found."""
        self.images += other.images
        self.wrong += other.wrong
        self.failures = (self.failures + other.failures)[:FAILURES_SHOWN]
        for kind, counts in other.outcomes.items():
            self.outcomes[kind] = dict(Counter(self.outcomes.get(kind, {})) + Counter(counts))

    @property
    def totals(self) -> dict[str, int]:
        return dict(sum((Counter(counts) for counts in self.outcomes.values()), Counter[str]()))


WHOLE_UP_TO = 100  # kinds of so few images are never sampled


def numbers(kind: Kind, every: int) -> range:
    return range(0, kind.count, 1 if kind.count <= WHOLE_UP_TO else every)


def plan(every: int) -> Iterator[tuple[Specimen, Kind, int]]:
    """Every image, or every so many of each kind. Of the long log only what is done to whole sectors and files."""
    for specimen in (small(), checkpointed(), trimmed(), long()):
        for kind in kinds(specimen):
            one_by_one = kind.name.startswith("bits") or kind.name.endswith("cut short")
            is_whole = specimen.name != "four segments" and any(part in kind.name for part in specimen.whole)
            step = every * 509 if one_by_one and not is_whole else every
            for number in numbers(kind, step):
                yield specimen, kind, number


def total(every: int) -> int:
    return sum(1 for _ in plan(every))


def enumerate_part(first: int, step: int, every: int) -> Generator[Report, None, None]:
    """The images first, first + step, ... of the plan: a report on each PART of them."""
    report = Report()
    for specimen, kind, number in itertools.islice(plan(every), first, None, step):
        damage = kind.make(number)
        try:
            outcome = judge(specimen, damage)
            check(damage.must in ("", outcome), f"{outcome}, not {damage.must}")
            report.add(kind.name, outcome)
        except Exception as error:  # whatever a damaged disk makes happen is what is looked for
            report.add(kind.name, "wrong")
            report.wrong += 1
            failure = f"{specimen.name}, {damage.text}: {failure_text(error)}"
            report.failures = [*report.failures, failure][:FAILURES_SHOWN]
        if report.images == PART:
            yield report
            report = Report()
    yield report


def enumerate_all(every: int, jobs: int = 1) -> Generator[Report, None, None]:
    """All images, or every so many of each kind, on that many processes: reports to be merged, as they come."""
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
