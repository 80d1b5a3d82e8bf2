"""The rules of a changing membership, drawn at random: slots, joint records in the log, commits, views by evidence.

All is durable at once, and a message is a look at the present state of another replica. A record (who votes) is made
by an op of the log; it governs the ops behind it. It is joint while two sets of voters are in force; then a quorum of
each is asked for.

`Rules` has a method for each decision; the wrong rules (`WRONG`) replace one of them. A run raises Lost when a view
begins with a log that lacks a committed op, or when two ops are committed under one number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

SLOTS = 16
REPLICAS = 8  # of which up to 6 vote at a time
STEPS = 400
PIPELINE = 4
COMMIT, VIEW, NACK = 0, 1, 2  # kinds of quorum
QUORUMS = {1: (1, 1, 1), 2: (2, 2, 1), 3: (2, 2, 2), 4: (2, 3, 3), 5: (3, 3, 3), 6: (3, 4, 4)}
LAST = 1 << 60

Voters = frozenset[int]


class Lost(Exception):
    """A committed op is gone, or is another."""


@dataclass(frozen=True, slots=True)
class Record:
    """Who votes. old: empty when it is not joint. made_by: its op."""

    epoch: int
    old: Voters
    new: Voters
    made_by: int

    @property
    def sets(self) -> list[Voters]:
        return [voters for voters in (self.old, self.new) if voters]


@dataclass(frozen=True, slots=True)
class Entry:
    op: int
    key: int
    record: Record | None


@dataclass(slots=True)
class Replica:
    slot: int
    view: int = 0
    log_view: int = 0
    log: list[Entry] = field(default_factory=list)
    commit: int = 0
    is_leading: bool = False
    acks: dict[int, int] = field(default_factory=dict)
    ready_at: int = 0  # proposes changes once that op is committed


@dataclass(slots=True)
class Evidence:
    """What a candidate has before it: its own log, that of others, and what follows from them."""

    given: list[Replica]
    log: list[Entry]  # the newest
    commit: int
    newest: Record  # that any of them knows to be committed


class Rules:
    """As designed."""

    def __init__(self, first: Record) -> None:
        self.first = first

    def governing(self, log: list[Entry], op: int) -> Record:
        """The record in force for an op: made by the highest change below it."""
        record = self.first
        for entry in log:
            if entry.op >= op:
                break
            record = entry.record or record
        return record

    def reached(self, slots: Voters, record: Record, kind: int) -> bool:
        return all(len(slots & voters) >= QUORUMS[len(voters)][kind] for voters in record.sets)

    def commits_under(self, log: list[Entry], op: int) -> Record:
        return self.governing(log, op)

    def may_propose_change(self, leader: Replica) -> bool:
        is_pending = any(entry.record is not None and entry.op > leader.commit for entry in leader.log)
        return leader.commit >= leader.ready_at and not is_pending

    def catch_up(self, joining: Replica, leader: Replica) -> None:
        """Before it votes, a member has all that is committed."""
        if len(joining.log) <= leader.commit:
            joining.log, joining.commit = leader.log[: leader.commit], leader.commit

    def asked(self, candidate: Replica, evidence: Evidence) -> list[Record]:
        """Of each of these records a quorum must have given evidence: of the newest that is known to be committed, and
        of those behind it in the log that the view would begin with."""
        above = [entry.record for entry in evidence.log if entry.record and entry.op > evidence.newest.made_by]
        return [evidence.newest, *above]

    def is_nacked(self, nacks: Voters, log: list[Entry], op: int) -> bool:
        """That in any one set certainly too few had it: then it can not have been committed."""
        return any(len(nacks & voters) >= QUORUMS[len(voters)][NACK] for voters in self.governing(log, op).sets)


class OneCount(Rules):
    """One count against the larger quorum of two sets."""

    def reached(self, slots: Voters, record: Record, kind: int) -> bool:
        needed = max(QUORUMS[len(voters)][kind] for voters in record.sets)
        return len(slots & frozenset().union(*record.sets)) >= needed


class NewSetAlone(Rules):
    def reached(self, slots: Voters, record: Record, kind: int) -> bool:
        return len(slots & record.new) >= QUORUMS[len(record.new)][kind]


class OwnRecord(Rules):
    """A candidate asks the record that it knows to be committed itself."""

    def asked(self, candidate: Replica, evidence: Evidence) -> list[Record]:
        return [self.governing(candidate.log, candidate.commit + 1)]


class AdoptedAtPrepare(Rules):
    """A record is in force from the moment in which it is in the log."""

    def commits_under(self, log: list[Entry], op: int) -> Record:
        return self.governing(log, LAST)


WRONG: tuple[type[Rules], ...] = (OneCount, NewSetAlone, OwnRecord, AdoptedAtPrepare)


@dataclass(slots=True)
class Count:
    committed: int = 0
    changes: int = 0
    views: int = 0


class Run:
    """One random history."""

    def __init__(self, seed: int, rules: type[Rules]) -> None:
        self.random = Random(seed)
        voters = frozenset(range(self.random.choice((1, 2, 3, 3, 3, 4, 5))))
        self.rules = rules(Record(1, frozenset(), voters, 0))
        self.replicas = [Replica(slot) for slot in range(REPLICAS)]
        self.replicas[0].is_leading = True
        self.committed: dict[int, int] = {}  # op -> key
        self.keys = 0
        self.count = Count()

    def carry_out(self) -> Count:
        for _ in range(STEPS):
            leaders = [replica for replica in self.replicas if replica.is_leading]
            chance = self.random.random()
            if chance >= 0.8 or not leaders:
                self._change_views()
            elif chance < 0.25:
                self._propose(self.random.choice(leaders))
            elif chance < 0.6:
                self._replicate(self.random.choice(leaders), self.random.choice(self.replicas))
            else:
                self._commit(self.random.choice(leaders))
        self.count.committed = len(self.committed)
        return self.count

    def _propose(self, leader: Replica) -> None:
        if len(leader.log) - leader.commit >= PIPELINE:
            return
        op = len(leader.log) + 1
        record = None
        if self.rules.may_propose_change(leader) and self.random.random() < 0.5:
            record = self._change(leader, op)
        self.keys += 1
        leader.log.append(Entry(op, self.keys, record))
        leader.acks[leader.slot] = op

    def _change(self, leader: Replica, op: int) -> Record | None:
        """The end of a joint record, or one out, one in, or both."""
        random, present = self.random, self.rules.governing(leader.log, LAST)
        if present.old:
            if random.random() < 0.2:
                return None
            return Record(present.epoch + 1, frozenset(), present.new if random.random() < 0.9 else present.old, op)
        voters = set(present.new)
        leaving = random.choice(sorted(voters)) if random.random() < 0.6 and len(voters) > 1 else None
        if random.random() < 0.6 and len(voters) < 6:
            joining = random.choice([replica for replica in self.replicas if replica.slot not in voters])
            self.rules.catch_up(joining, leader)
            voters.add(joining.slot)
        voters.discard(leaving if leaving is not None else -1)
        if voters == present.new or not voters:
            return None
        self.count.changes += 1
        return Record(present.epoch + 1, present.new, frozenset(voters), op)

    def _replicate(self, leader: Replica, backup: Replica) -> None:
        """The leader sends to anybody; whose acknowledgement counts is decided where it commits."""
        if backup is leader or backup.view > leader.view:
            return
        if backup.log_view < leader.view:
            backup.view = backup.log_view = leader.view
            backup.is_leading, backup.log = False, list(leader.log)
        elif len(backup.log) < len(leader.log):
            backup.log = leader.log[: self.random.randint(len(backup.log) + 1, len(leader.log))]
        backup.commit = max(backup.commit, min(leader.commit, len(backup.log)))
        if self.random.random() < 0.8:
            leader.acks[backup.slot] = max(leader.acks.get(backup.slot, 0), len(backup.log))

    def _commit(self, leader: Replica) -> None:
        while leader.commit < len(leader.log):
            op = leader.commit + 1
            acked = frozenset(slot for slot, last in leader.acks.items() if last >= op)
            if not self.rules.reached(acked, self.rules.commits_under(leader.log, op), COMMIT):
                return
            entry = leader.log[op - 1]
            if self.committed.setdefault(op, entry.key) != entry.key:
                raise Lost(f"op {op} is committed twice")
            leader.commit = op
            if entry.record is not None and not entry.record.old and leader.slot not in entry.record.new:
                leader.is_leading = False
                return

    def _change_views(self) -> None:
        """A candidate gathers evidence, one replica after another, until it suffices or nobody is left."""
        candidate = self.random.choice(self.replicas)
        view = candidate.view + 1
        view += (candidate.slot - view) % SLOTS
        others = [r for r in self.replicas if r is not candidate and r.view <= view and self.random.random() < 0.6]
        self.random.shuffle(others)
        evidence, log = [candidate], self._choose(candidate, [candidate])
        while log is None and others:
            evidence.append(others.pop())
            log = self._choose(candidate, evidence)
        for replica in evidence:  # who gave evidence has left its view
            replica.view, replica.is_leading = view, False
        if log is None:
            return
        self.count.views += 1
        for op, key in self.committed.items():
            if len(log) < op or log[op - 1].key != key:
                raise Lost(f"view {view} of slot {candidate.slot} begins without op {op}, which is committed")
        candidate.log, candidate.log_view, candidate.is_leading = log, view, True
        candidate.acks, candidate.ready_at = {candidate.slot: len(log)}, len(log)
        candidate.commit = max(candidate.commit, *(replica.commit for replica in evidence))

    def _choose(self, candidate: Replica, given: list[Replica]) -> list[Entry] | None:
        """The log that this evidence allows to begin with."""
        rules = self.rules
        newest_view = max(replica.log_view for replica in given)
        log = max((replica.log for replica in given if replica.log_view == newest_view), key=len)
        commit = max(replica.commit for replica in given)
        records = [rules.governing(replica.log, replica.commit + 1) for replica in given]
        evidence = Evidence(given, log, commit, max(records, key=lambda record: record.epoch))
        asked = rules.asked(candidate, evidence)
        slots = _slots(given)
        if not any(candidate.slot in voters for record in asked for voters in record.sets):
            return None
        if len(log) < commit or not all(rules.reached(slots, record, VIEW) for record in asked):
            return None
        for op in range(commit + 1, len(log) + 1):
            nacks = _slots(r for r in given if len(r.log) < op or r.log[op - 1].key != log[op - 1].key)
            if rules.is_nacked(nacks, log, op):
                return log[: op - 1]
        return list(log)


def _slots(replicas: Iterable[Replica]) -> Voters:
    return frozenset(replica.slot for replica in replicas)


def first_lost(rules: type[Rules], seeds: range) -> tuple[int | None, str]:
    """The first seed in which something is lost, and what."""
    for seed in seeds:
        try:
            Run(seed, rules).carry_out()
        except Lost as lost:
            return seed, str(lost)
    return None, ""
