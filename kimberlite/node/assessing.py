"""What is left of a cluster that lost too many replicas to go on: which data has most, and what of it is certain.

Reads only. The best data is that of the highest (log_view, op), as a view change would choose. Committed for certain is
what the highest commit number says that any of the data knows. What the best has above that may have been acknowledged;
and when a replication quorum is lost, operations may have been acknowledged of which nothing is left.

May import: types, storage, vsr.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kimberlite.errors import UsageError
from kimberlite.storage import birth, ring
from kimberlite.storage.interface import Disk
from kimberlite.storage.scan import scan
from kimberlite.storage.superblock import SuperblockFile
from kimberlite.types import Birth
from kimberlite.vsr.quorum import Quorums, quorums


class Data(NamedTuple):
    """What is in one directory. op: head of its log. intact: the highest op up to which all of it is there and chained.
    commit: the highest op that it knows to be committed."""

    source: str
    cluster: str
    replica: int
    replica_count: int
    incarnation: str
    birth: str
    view: int
    log_view: int
    first_op: int
    commit: int
    op: int
    intact: int
    damaged: int


class Assessment(NamedTuple):
    """known: by replica. lost: replicas that are not among them. certain: everything up to this op was committed.
    perhaps: what the best has above, up to this op, may have been acknowledged. is_complete: nothing that was
    acknowledged is on lost replicas alone. is_quorum: those that are left can go on as they are."""

    known: tuple[Data, ...]
    best: Data
    lost: tuple[int, ...]
    certain: int
    perhaps: int
    is_complete: bool
    is_quorum: bool


def look(disk: Disk, source: str) -> Data:
    """Raises SuperblockError, FormatVersionError."""
    file = SuperblockFile(disk)
    block = file.current
    file.close()
    who = birth.read(disk, block)
    result = scan(ring.overlaid(disk, block.ring, block.sequence), block.state, block.segment_bytes, block.checkpoint)
    for segment in (*result.segments, *result.spare):
        segment.release()
    recovered = result.recovered
    return Data(
        source,
        block.cluster.hex(),
        block.replica,
        block.replica_count,
        who.incarnation.hex(),
        who.birth.name.lower(),
        block.state.view,
        block.state.log_view,
        block.checkpoint.first_op,
        max(recovered.commit, block.checkpoint.op),
        recovered.head,
        recovered.settled,
        recovered.faulty,
    )


def assess(known: Sequence[Data]) -> Assessment:
    """Raises UsageError: they are not different replicas of one cluster."""
    clusters = {(data.cluster, data.replica_count) for data in known}
    replicas = [data.replica for data in known]
    if len(clusters) != 1 or len(set(replicas)) != len(replicas):
        said = "; ".join(f"{data.source} is replica {data.replica} of {data.cluster}" for data in known)
        raise UsageError(f"these are not different replicas of one cluster: {said}")
    best = max(known, key=lambda data: (data.log_view, data.op, data.intact))
    count = best.replica_count
    lost = tuple(index for index in range(count) if index not in replicas)
    certain = max(data.commit for data in known)
    quorum: Quorums = quorums(count)
    is_quorum = len(known) >= max(quorum.replication, quorum.view_change)
    return Assessment(
        tuple(sorted(known, key=lambda data: data.replica)),
        best,
        lost,
        certain,
        max(best.intact, certain),
        len(lost) < quorum.replication,
        is_quorum,
    )


def sentences(found: Assessment) -> list[str]:
    """The assessment for a person: what is certain, what may be, what is missing, what to do."""
    best = found.best
    said = [
        f"best: {best.source} (replica {best.replica}, log of view {best.log_view}, op {best.op})",
        f"certain: everything up to op {found.certain} was committed",
    ]
    if found.perhaps > found.certain:
        said.append(f"perhaps acknowledged: ops {found.certain + 1} to {found.perhaps}, which the best has")
    if best.intact < found.certain:
        others = [data.source for data in found.known if data.intact >= found.certain]
        where = f"{', '.join(others)} has it intact" if others else "no other of these has it intact"
        said.append(f"missing: of what was committed, op {best.intact + 1} is damaged in the best; {where}")
    if not found.is_complete:
        names = ", ".join(map(str, found.lost))
        said.append(f"missing, perhaps: what was acknowledged by the lost replicas alone ({names}) is on none of these")
    if not all(Birth[data.birth.upper()] is Birth.FORMED for data in found.known) and found.lost:
        said.append("not all of these are members of a born cluster: `kimberlite birth` may be what is wanted")
    if found.is_quorum:
        said.append(
            f"these {len(found.known)} of {best.replica_count} are enough: start them, nothing has to be restored"
        )
    else:
        said.append(
            f"next: kimberlite backup --include-uncommitted {best.source} TARGET, then kimberlite restore on all "
            "machines with a new cluster id. The lost replicas must never run again"
        )
    return said
