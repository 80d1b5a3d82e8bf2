"""A campaign: what the runs of a range of seeds come to, and how far it has got, in a file.

What was cut short goes on later, and ends as it would have in one go: the trace hash of a campaign is a chain over its
runs in order of their seeds, so that what is kept of those that are done is a few numbers.

The file names the campaign (seeds, plan, requests) and the code that runs it, by a fingerprint of the package: runs of
other code are another campaign. It is replaced whole, now and then and at the end: whoever ends the process, with
whatever signal, takes away the runs since the last time and nothing else.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import xxhash

from kimberlite.errors import CampaignInUseError, CampaignStateError
from kimberlite.vopr import persistent
from kimberlite.vopr.run import Outcome, decode

FORMAT = 1
SAVE_S = 5.0  # at most so much work is lost
PID_BYTES = 16  # of the file that is locked: who holds it

# E4: what a campaign must have reached, or it proves less than it seems to; and from how many seeds on, by how many of
# them reach it. A label is there for each mechanism that acts only when something is wrong.
LABELS: dict[str, int] = {
    **dict.fromkeys(
        (
            "ABANDONED",
            "ABDICATED",
            "CAME_BACK_FROM_FAR",
            "CANDIDATE_SETTLED",
            "BORN_LATE",
            "CHECKPOINTED",
            "CONVERTED",
            "DISK_REFUSED",
            "DISK_REPLACED",
            "DROPPED_BOUND",
            "DROPPED_DUPLICATE",
            "DROPPED_MALFORMED",
            "DROPPED_NOT_MEMBER",
            "DROPPED_OLD_LIFE",
            "DROPPED_OLD_VIEW",
            "DROPPED_OUT_OF_BOUNDS",
            "DROPPED_UNBORN",
            "DROPPED_UNWANTED",
            "DROPPED_WRONG_CLUSTER",
            "DROPPED_WRONG_ROLE",
            "DROPPED_WRONG_STATUS",
            "DUPLICATE",
            "FAULTY",
            "FORFEITED",
            "GONE",
            "LONG_WAY",
            "REJECTED_DISK_FULL",
            "REPAIRED",
            "REPAIR_EXPIRED",
            "SCRUB_FOUND",
            "SESSION_EVICTED",
            "SUFFIX_DROPPED",
            "TRIMMED",
            "agreements",
            "corrupted",
            "quorum_audits",
            "torn",
        ),
        100,
    ),
    **dict.fromkeys(("END_ROT", "HOLE_ROT", "TRIM_ROT"), 100),
    "OLD_WITNESS": 300,
    "DROPPED_BROKEN_CHAIN": 300,
    "DROPPED_REPLACED": 300,
    "DROPPED_ROLLED_BACK": 300,
    "FILLED_UP": 300,
    "GAVE_UP_ABOVE": 300,
    "IDENTITY_CONFLICT": 300,
    "WRITTEN_IN_A_LATER_VIEW": 300,
    "STUCK": 500,
    "DISK_LOST": 1000,
    "LATE_third_dies": 3000,
    "LATE_third_hangs": 3000,
    "LATE_third_flaps": 3000,
    "LATE_primary_dies": 3000,
    **{
        f"PERSISTENT {name}": persistent.SEEDS_RARE_MIN if persistent.is_rare(name) else persistent.SEEDS_MIN
        for name in persistent.FAULTS
    },
}

# Of these, runs in which a disk lies reach none: what tells of lies is spared.
HONEST = ("END_ROT", "HOLE_ROT", "OLD_WITNESS", "TRIM_ROT")
LYING = "DISK_LIES"  # such a run


@dataclass(slots=True)
class Campaign:
    """Totals of the runs added so far; every field is a function of the runs, wall_s apart."""

    seeds: int = 0
    messages: int = 0
    violations: list[Outcome] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    trace_hash: str = ""
    first: tuple[int, str] | None = None  # seed and trace hash of the first run
    wall_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.messages += outcome.messages
        self.labels.update({name: count for name, count in outcome.labels.items() if count})
        line = f"{self.trace_hash} {outcome.seed} {outcome.trace_hash} {outcome.check}\n"
        self.trace_hash = xxhash.xxh3_64_hexdigest(line.encode())
        if self.first is None:
            self.first = outcome.seed, outcome.trace_hash
        if outcome.check:
            self.violations.append(outcome)
        self.wall_s = time.monotonic() - self.started

    def unreached(self) -> list[str]:
        """Labels that a campaign of this size must have reached and has not."""
        honest = self.seeds - self.labels[LYING]
        return [
            label
            for label, seeds in LABELS.items()
            if (honest if label in HONEST else self.seeds) >= seeds and not self.labels[label]
        ]

    def summary(self) -> dict[str, object]:
        return {
            "seeds": self.seeds,
            "violations": len(self.violations),
            "trace_hash": self.trace_hash,
            "messages": self.messages,
            "messages_per_s": round(self.messages / self.wall_s) if self.wall_s else 0,
            "wall_s": round(self.wall_s, 3),
            "labels": dict(sorted(self.labels.items())),
        }

    def state(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "seeds": self.seeds,
            "messages": self.messages,
            "violations": [asdict(outcome) for outcome in self.violations],
            "labels": dict(self.labels),
            "trace_hash": self.trace_hash,
            "first": self.first,
            "wall_s": self.wall_s,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Campaign:
        """The inverse; its time goes on from where it was. Raises ValueError, KeyError or TypeError."""
        seed, trace_hash = state["first"] or (None, "")
        return cls(
            seeds=int(state["seeds"]),
            messages=int(state["messages"]),
            violations=[decode(value) for value in state["violations"]],
            labels=Counter(state["labels"]),
            trace_hash=str(state["trace_hash"]),
            first=None if seed is None else (int(seed), str(trace_hash)),
            wall_s=float(state["wall_s"]),
            started=time.monotonic() - float(state["wall_s"]),
        )


def fingerprint() -> str:
    """Of everything that decides how a run goes: the modules of this package, compiled ones too."""
    root = Path(__file__).parents[1]
    found = xxhash.xxh3_128()
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".so")):
        found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


class Progress:
    """The file of one campaign. Within a `with` block no other process goes on with it."""

    def __init__(self, path: Path, key: Mapping[str, object]) -> None:
        """key: what names the campaign: its seeds, plan and requests."""
        self._path = path
        self._key = {**key, "code": fingerprint()}
        self._saved_at = time.monotonic()
        self._lock = -1

    def __enter__(self) -> Self:
        """Raises CampaignInUseError."""
        path = self._lock_path
        while self._lock < 0:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock, PID_BYTES, 0).decode("ascii", "replace").strip()
                os.close(lock)
                raise CampaignInUseError(
                    f"{self._path} is in use by process {holder or 'unknown'}, which goes on with that campaign: wait "
                    "for its end, or name another file",
                    path=str(self._path),
                    pid=int(holder) if holder.isdigit() else None,
                ) from None
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                self._lock = lock
            else:  # whoever held it has just removed it
                os.close(lock)
        os.pwrite(self._lock, f"{os.getpid()}\n".ljust(PID_BYTES).encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1

    def __str__(self) -> str:
        return str(self._path)

    @property
    def _lock_path(self) -> Path:
        """A file of its own: that of the campaign is another one after every `save`."""
        return self._path.with_name(self._path.name + ".lock")

    def load(self) -> Campaign:
        """What there is of it; a new one when there is no file. Raises CampaignStateError, having changed nothing."""
        try:
            value = json.loads(self._path.read_text(encoding="utf-8"))
            if value["format"] != FORMAT:
                raise CampaignStateError(
                    f"{self._path} is of format {value['format']}, this release writes {FORMAT}: name another file",
                    path=str(self._path),
                )
            self._check(value["key"])
            return Campaign.of(value["state"])
        except FileNotFoundError:
            return Campaign()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CampaignStateError(
                f"{self._path} is no state of a campaign ({error!r}): nothing was changed; name another file",
                path=str(self._path),
            ) from error

    def _check(self, key: Mapping[str, object]) -> None:
        for name, mine in self._key.items():
            if key[name] != mine:
                raise CampaignStateError(
                    f"{self._path} is the state of another campaign: its {name} is {key[name]}, here it is {mine}; go "
                    "on with the same arguments and the same code, or name another file",
                    path=str(self._path),
                )

    def save(self, campaign: Campaign) -> None:
        """Now."""
        partial = self._path.with_name(self._path.name + ".new")
        with open(partial, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, "key": self._key, "state": campaign.state()}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)
        self._saved_at = time.monotonic()

    def save_when_due(self, campaign: Campaign) -> None:
        """Once in SAVE_S seconds."""
        if time.monotonic() - self._saved_at >= SAVE_S:
            self.save(campaign)
