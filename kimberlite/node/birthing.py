"""Offline changes to what a replica is bound to, before its cluster is born.

`again` forgets what it is bound to; `without` goes on without a machine that does not come. Either makes it somebody
new: what it said under its old incarnation counts for nobody any more, so that nothing that was said has to be taken
back. The log is not touched. A replica that is formed is refused: others may count on what it has acknowledged.

May import: errors, types, config, storage, vsr, node.identity. The caller holds the lock of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from kimberlite.config import Config
from kimberlite.errors import BirthError, SuperblockError
from kimberlite.node.identity import draft_of, unborn
from kimberlite.storage import birth
from kimberlite.storage.interface import Disk
from kimberlite.storage.superblock import Superblock, SuperblockFile
from kimberlite.types import ZERO16, Birth, Identity
from kimberlite.vsr import record as records
from kimberlite.vsr.quorum import quorums
from kimberlite.vsr.record import Record, Role


class Changed(NamedTuple):
    """before, after: who the replica was, and is now."""

    before: Identity
    after: Identity


def again(disk: Disk, config: Config, incarnation: bytes) -> Changed:
    """Forget what the replica is bound to, and whom it was told to do without. Raises BirthError: it is formed."""
    file = SuperblockFile(disk)
    try:
        before = birth.read(disk, file.current)
    except SuperblockError:  # the file that says it is lost: nothing of it is needed
        before = file.current.identity
        birth.discard(disk)
    _refuse_formed(file.current, before)
    draft = draft_of(config, _origin(before))
    after = replace(unborn(draft, config.cluster.replica, incarnation), life=before.life)
    birth.write(disk, file, after)
    return Changed(before, after)


def without(disk: Disk, config: Config, slots: Sequence[int], incarnation: bytes) -> Changed:
    """Go on without the replicas of these slots, besides those that were left out before. Raises BirthError: the
    replica is formed, is one of them, or those that are left are too few."""
    file = SuperblockFile(disk)
    before = birth.read(disk, file.current)
    _refuse_formed(file.current, before)
    draft = draft_of(config, _origin(before))
    if before.record:
        draft = records.carried_over(draft, records.decode(before.record))
    for slot in sorted(slots):
        if slot == config.cluster.replica or draft.member(slot) is None:
            raise BirthError(
                f"this is replica {config.cluster.replica} of {len(draft.members)}: it can not go on without replica "
                f"{slot}; nothing was changed",
                replica=config.cluster.replica,
            )
        draft = records.leave_out(draft, slot)
    _refuse_too_few(draft)
    after = replace(unborn(draft, config.cluster.replica, incarnation), life=before.life)
    birth.write(disk, file, after)
    return Changed(before, after)


def _origin(known: Identity) -> bytes:
    return records.decode(known.record).origin if known.record else ZERO16


def _refuse_formed(block: Superblock, known: Identity) -> None:
    if known.birth in (Birth.FORMED, Birth.JOINING):
        raise BirthError(
            f"replica {block.replica} of cluster {block.cluster.hex()} is a member already: the others may count on "
            "what it has acknowledged, so that it can not become another one. Nothing was changed",
            replica=block.replica,
        )


def _refuse_too_few(draft: Record) -> None:
    count = len(draft.voters)
    needed = max(quorums(count).replication, quorums(count).view_change)
    left = [member.slot for member in draft.members if member.role is not Role.LOST]
    if len(left) < needed:
        raise BirthError(
            f"without them {len(left)} of {count} replicas are left ({', '.join(map(str, left))}), and {needed} are "
            "needed: what was acknowledged may be on none of these. Nothing was changed; bring one of the others back, "
            "or see `kimberlite recover assess`"
        )
