"""What must be true: checked at every step (I), and at the end (E). See docs for the numbers.

The checkers trust nothing that the core says about itself where the disk or the messages can
be asked: durability is read from the simulated disk's durable image by a parser of its own
(`durable_view`, `has_durable_entry`), quorums are counted from the table below.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xxhash

from kimberlite.types import Checksum, Command, Header, Message
from kimberlite.vopr.disk import Files

if TYPE_CHECKING:
    from kimberlite.vopr.world import World

# Replicas that must hold an op before it is committed, by cluster size.
COMMIT_QUORUM = {1: 1, 2: 2, 3: 2, 4: 2, 5: 3, 6: 3}
COPY_BYTES = 16 * 1024
VIEW_FRAMES = frozenset(
    {Command.PREPARE_OK, Command.COMMIT, Command.START_VIEW_CHANGE, Command.DO_VIEW_CHANGE, Command.START_VIEW, Command.PING}
)


class Violation(Exception):
    """An invariant was broken: `name` says which, the text gives the values."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


def durable_view(files: Files) -> tuple[int, int]:
    """(view, log_view) that a restart would find: the highest sequence on two intact copies."""
    content = files.durable.get("superblock")
    found: dict[tuple[int, bytes], list[tuple[int, int]]] = {}
    if content is None:
        return 0, 0
    for copy in range(4):
        data = bytes(content[copy * COPY_BYTES : (copy + 1) * COPY_BYTES])
        if xxhash.xxh3_128_digest(data[32:]) != data[:16]:
            continue
        (sequence,) = struct.unpack_from("<Q", data, 48)
        view, log_view = struct.unpack_from("<QQ", data, 104)
        found.setdefault((sequence, data[:16]), []).append((view, log_view))
    agreed = {key: views for key, views in found.items() if len(views) >= 2}
    return agreed[max(agreed)][0] if agreed else (0, 0)


def has_durable_entry(files: Files, header: Header, hint: dict[Checksum, tuple[str, int]]) -> bool:
    """Whether the durable image of a journal holds that entry, whole.

    hint: where entries were seen before, by identity; it is checked, never believed.
    """
    where = hint.get(header.checksum)
    if where is not None and _entry_at(files, *where, header):
        return True
    raw = header.raw
    for name, content in files.durable.items():
        if not name.startswith("journal-"):
            continue
        at = content.find(raw)
        while at != -1:
            if at % 4096 == 0 and _entry_at(files, name, at, header):
                hint[header.checksum] = (name, at)
                return True
            at = content.find(raw, at + 1)
    return False


def _entry_at(files: Files, name: str, at: int, header: Header) -> bool:
    content = files.durable.get(name)
    if content is None or content[at : at + 256] != header.raw:
        return False
    body = bytes(content[at + 256 : at + header.size])
    return xxhash.xxh3_128_digest(body) == header.checksum_body


@dataclass(slots=True)
class Acknowledged:
    """An append as its client saw it."""

    client: int
    number: int
    events: tuple[bytes, ...]
    called_at: int
    returned_at: int | None = None  # None: never answered
    position: int | None = None  # None: outcome unknown or refused
    refused: bool = False  # certainly not executed


@dataclass(slots=True)
class Checkers:
    """Incremental state of all checks of one run."""

    replica_count: int
    committed: dict[int, Header] = field(default_factory=dict)  # I1
    parents: dict[tuple[int, Checksum], Checksum] = field(default_factory=dict)  # I2
    commit_floor: dict[int, int] = field(default_factory=dict)  # I3: replica -> highest commit in this life
    views: dict[int, tuple[int, int]] = field(default_factory=dict)  # I4: replica -> durable (view, log_view)
    primaries: dict[int, int] = field(default_factory=dict)  # I5: view -> replica that led it
    requests: dict[tuple[bytes, int, int], int] = field(default_factory=dict)  # I10: request -> op
    digests: dict[int, bytes] = field(default_factory=dict)  # I11
    hints: list[dict[Checksum, tuple[str, int]]] = field(default_factory=list)
    quorum_audits: int = 0

    def __post_init__(self) -> None:
        self.hints = [{} for _ in range(self.replica_count)]

    # I1, I2, I16: agreement and ancestry, at every op that a replica applies

    def on_applied(self, replica: int, header: Header, requests: Iterable[tuple[bytes, int, int]]) -> None:
        known = self.committed.setdefault(header.op, header)
        if known.checksum != header.checksum:
            raise Violation(
                "I1 agreement", f"op {header.op} is {header.checksum.hex()} on replica {replica}, was {known.checksum.hex()}"
            )
        before = self.committed.get(header.op - 1)
        if before is not None and (header.parent != before.checksum or header.timestamp <= before.timestamp):
            raise Violation("I2 ancestry", f"op {header.op} on replica {replica} does not continue op {header.op - 1}")
        if known is header:  # first replica to apply it
            for request in requests:
                earlier = self.requests.setdefault(request, header.op)
                if earlier != header.op:
                    raise Violation("I10 exactly once", f"request {request[2]} committed in ops {earlier} and {header.op}")

    def _holds(self, world: World, replica: int, header: Header) -> bool:
        """Whether a replica has made an entry durable; of silent damage since only it can tell."""
        if has_durable_entry(world.files[replica], header, self.hints[replica]):
            return True
        return world.rotten and replica == world.rot_victim and header.checksum in self.hints[replica]

    # I3, I4, I7: what one replica says of itself

    def on_step(self, world: World, replica: int) -> None:
        node = world.nodes[replica]
        core = node.driver.core
        if not core.log.durable <= core.log.linked <= core.log.op:
            raise Violation("I7 order", f"replica {replica}: durable {core.log.durable}, linked {core.log.linked}, op {core.log.op}")
        if core.applied > min(core.commit_max, core.log.durable):
            raise Violation("I7 order", f"replica {replica}: applied {core.applied} above commit {core.commit_max}")
        floor = self.commit_floor.get(replica, 0)
        if core.commit_max < floor:
            raise Violation("I3 monotone commit", f"replica {replica}: commit {core.commit_max} after {floor}")
        self.commit_floor[replica] = core.commit_max
        if core.log_view > core.view:
            raise Violation("I4 monotone views", f"replica {replica}: log_view {core.log_view} above view {core.view}")

    def on_commit(self, world: World, replica: int, op: int) -> None:
        """I8: a primary has just counted `op` as committed. Ask the disks, not the messages."""
        core = world.nodes[replica].driver.core
        header = core.log.headers.get(op)
        if header is None:
            return
        self.quorum_audits += 1
        holders = [
            other for other in range(self.replica_count) if self._holds(world, other, header)
        ]
        if len(holders) < COMMIT_QUORUM[self.replica_count]:
            raise Violation("I8 quorum audit", f"op {op} committed by replica {replica} but durable only on {holders}")
        leader = self.primaries.setdefault(core.view, replica)
        if leader != replica:
            raise Violation("I5 one primary", f"replicas {leader} and {replica} both commit in view {core.view}")

    def on_restart(self, world: World, replica: int) -> None:
        """I3 and I4 across restarts: nothing durable is forgotten."""
        views = durable_view(world.files[replica])
        before = self.views.get(replica, (0, 0))
        if views[0] < before[0] or views[1] < before[1]:
            raise Violation("I4 monotone views", f"replica {replica}: durable views {views} after {before}")
        self.views[replica] = views
        core = world.nodes[replica].driver.core
        if (core.view, core.log_view) < views or core.view < views[0]:
            raise Violation("I4 monotone views", f"replica {replica} starts in {core.view}, its disk says {views}")
        self.commit_floor[replica] = 0

    # I9: promises are durable before they are made

    def on_send(self, world: World, replica: int, message: Message) -> None:
        header = message.header
        if header.command not in VIEW_FRAMES:
            return
        view, log_view = world.durable_views(replica)
        if header.view > view:
            raise Violation(
                "I9 durable promises",
                f"replica {replica} sends {Command(header.command).name} of view {header.view}, its disk says {view}",
            )
        if header.command in (Command.START_VIEW, Command.PREPARE_OK, Command.COMMIT) and header.view > log_view:
            if header.op or header.command != Command.PREPARE_OK:
                raise Violation(
                    "I9 durable promises",
                    f"replica {replica} acts in view {header.view}, the log_view on its disk is {log_view}",
                )
        if header.command == Command.DO_VIEW_CHANGE and header.log_view > log_view:
            raise Violation("I9 durable promises", f"replica {replica} claims log_view {header.log_view}, has {log_view}")
        if header.command == Command.PREPARE_OK and header.op:
            core = world.nodes[replica].driver.core
            entry = core.log.headers.get(header.op)
            if entry is not None and not self._holds(world, replica, entry):
                if header.op not in core.log.faulty:
                    raise Violation("I9 durable promises", f"replica {replica} acknowledges op {header.op} before it is durable")

    # E1, E2

    def check_end(self, world: World, history: Sequence[Acknowledged]) -> None:
        check_history(history, world.read_log())
        for replica in range(self.replica_count):
            core = world.nodes[replica].driver.core
            if core.applied != max(self.committed, default=0):
                raise Violation(
                    "E1 convergence", f"replica {replica} has applied {core.applied} of {max(self.committed, default=0)} ops"
                )


def check_history(history: Sequence[Acknowledged], log: Sequence[bytes]) -> None:
    """E2: the history of all clients is linearizable with respect to the final log.

    Positions give the order, so a sort and one sweep decide: every acknowledged append
    stands at its position and nowhere else, one whose outcome is unknown at most once, a
    refused one nowhere, and an append that returned before another was called stands before it.
    """
    where: dict[bytes, list[int]] = {}
    for position, event in enumerate(log):
        where.setdefault(event, []).append(position)
    placed: list[tuple[int, Acknowledged]] = []
    owned = 0
    for append in history:
        positions = [where.get(event, []) for event in append.events]
        if any(len(found) > 1 for found in positions):
            raise Violation("E2 exactly once", f"an event of append {append.number} of client {append.client} is twice in the log")
        present = [found[0] for found in positions if found]
        if append.position is not None:
            wanted = list(range(append.position, append.position + len(append.events)))
            if present != wanted:
                raise Violation(
                    "E2 acknowledged is there",
                    f"append {append.number} of client {append.client} was acknowledged at {append.position}, found at {present}",
                )
        elif append.refused and present:
            raise Violation("E2 refused is not there", f"append {append.number} of client {append.client} was refused")
        elif present and present != list(range(present[0], present[0] + len(append.events))):
            raise Violation("E2 all or nothing", f"append {append.number} of client {append.client} is torn: {present}")
        if present:
            owned += len(present)
            placed.append((present[0], append))
    if owned != len(log):
        raise Violation("E2 nothing else", f"the log has {len(log)} events, clients appended {owned} of them")
    placed.sort(key=lambda item: item[0])
    # Sweep from the end: nothing later in the log may have returned before this one was called.
    earliest_return: int | None = None
    for _, append in reversed(placed):
        if earliest_return is not None and earliest_return < append.called_at:
            raise Violation(
                "E2 real-time order",
                f"append {append.number} of client {append.client} was called at {append.called_at}, after a later one in "
                f"the log had returned at {earliest_return}",
            )
        if append.returned_at is not None and append.position is not None:
            earliest_return = append.returned_at if earliest_return is None else min(earliest_return, append.returned_at)


