"""What a crash may leave of every event of a recorded run.

A crash within an event leaves, of the writes that may then be under way together:

    prefix    one write up to every 512 bytes, the others absent, or all of them there
    garbage   the same, with garbage in the unit at the tear
    hole      all of one write but one unit
    all       all writes at once up to the same unit, and with garbage there

and of a file that is made or removed: nothing, or all. Submissions that wait may be carried out together with the one
before them, as the production disk does (storage.interface.Disk): then their writes are among the others. Of images of
an event that are the same there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

import xxhash

from kimberlite.vopr.disk import UNIT
from kimberlite.vopr.recording import Event, Part, Recording

GARBAGE = Random(11).randbytes(UNIT)


@dataclass(frozen=True, slots=True)
class Image:
    """A disk after a crash. `make` gives its files: contents must not be changed in place."""

    event: int  # over all replicas
    variant: int
    source: Event
    text: str
    make: Callable[[], dict[str, bytearray]]
    is_garbage: bool = False

    @property
    def label(self) -> str:
        return f"{self.event}:{self.variant}"


Disk: TypeAlias = dict[str, bytearray]


def put(disk: Disk, parts: Sequence[Part]) -> Disk:
    """A disk with these writes; untouched files are shared."""
    result = dict(disk)
    for name in {part[0] for part in parts}:
        result[name] = bytearray(result[name])
    for name, offset, data in parts:
        result[name][offset : offset + len(data)] = data
    return result


def after(disk: Disk, event: Event) -> Disk:
    if event.kind == "create":
        return disk | {event.name: bytearray(event.size)}
    if event.kind == "remove":
        return {name: content for name, content in disk.items() if name != event.name}
    return put(disk, event.writes)


Variant: TypeAlias = tuple[str, bool, Callable[[], Disk]]  # text, garbage, files


def _torn(base: Disk, writes: Sequence[Part], at: int, others: Sequence[Part], what: str) -> Iterator[Variant]:
    """All that is left of one write, with `others` whole."""
    name, offset, data = writes[at]
    around = put(base, others)
    old = bytes(around[name][offset : offset + len(data)])
    changed = [old[unit : unit + UNIT] != data[unit : unit + UNIT] for unit in range(0, len(data), UNIT)]
    for number, unit in enumerate(range(0, len(data), UNIT)):
        place = f"{name}+{offset}, {len(data)} bytes{what}:"
        if number and changed[number - 1]:
            prefix = (name, offset, data[:unit])
            yield f"{place} the first {unit}", False, lambda prefix=prefix: put(around, [prefix])  # type: ignore[misc]
        garbage = [(name, offset, data[:unit] + GARBAGE)]
        yield f"{place} garbage at {unit}", True, lambda garbage=garbage: put(around, garbage)  # type: ignore[misc]
        if changed[number] and any(changed[number + 1 :]):
            hole = [(name, offset, data[:unit]), (name, offset + unit + UNIT, data[unit + UNIT :])]
            yield f"{place} not those at {unit}", False, lambda hole=hole: put(around, hole)  # type: ignore[misc]


def _of_phase(base: Disk, writes: Sequence[Part], what: str, only_with_others: int = 0) -> Iterator[Variant]:
    """Writes that may reach the disk in any order; for the first so many only what the others change."""
    for at, part in enumerate(writes):
        others = [*writes[:at], *writes[at + 1 :]]
        if at >= only_with_others:
            yield from _torn(base, writes, at, [], what + " (alone)" if others else what)
            if others:
                yield f"{part[0]}+{part[1]}{what} alone", False, lambda part=part: put(base, [part])  # type: ignore[misc]
        if others:
            yield from _torn(base, writes, at, others, what + " (others written)")
            if len(others) > 1:
                rest = others
                yield f"all but {part[0]}+{part[1]}{what}", False, lambda rest=rest: put(base, rest)  # type: ignore[misc]
    if len(writes) > 1:
        yield from _all_torn(base, writes, what)


def _all_torn(base: Disk, writes: Sequence[Part], what: str) -> Iterator[Variant]:
    """All writes of a phase torn at once, at the same unit."""
    for unit in range(0, max(len(data) for _, _, data in writes), UNIT):
        torn = [(name, offset, data[:unit] + GARBAGE) for name, offset, data in writes if unit < len(data)]
        whole = [part for part in writes if unit >= len(part[2])]
        if len(torn) == 1:
            return  # the others are there: that is in `_torn`
        parts = [*whole, *torn]
        yield f"all{what}: garbage at {unit}", True, lambda parts=parts: put(base, parts)  # type: ignore[misc]
        if unit:
            cut = [*whole, *((name, offset, data[:-UNIT]) for name, offset, data in torn)]
            yield f"all{what}: the first {unit}", False, lambda cut=cut: put(base, cut)  # type: ignore[misc]


def variants(base: Disk, event: Event) -> Iterator[Variant]:
    yield "nothing", False, lambda: base
    if event.kind != "write":
        return
    yield from _of_phase(base, event.writes, "")
    for count in range(1, len(event.company) + 1):
        company = event.company[:count]
        before = [part for earlier, _ in company for part in earlier]
        writes = [*event.writes, *(part for _, now in company for part in now)]
        known = len(writes) - len(company[-1][1]) if not before else 0
        yield from _of_phase(put(base, before), writes, f" with {count} more", known)


Changes: TypeAlias = frozenset[tuple[str, bytes]]


def _changes(base: Disk, image: Disk) -> Changes:
    """What differs: equal for equal images."""
    return frozenset(
        (name, xxhash.xxh3_128_digest(content))
        for name, content in image.items()
        if content is not base[name] and content != base[name]
    )


def images(world: Recording) -> Iterator[Image]:
    """Every crash of every replica, in order."""
    number = 0
    for recorded in world.records:
        disk: Disk = recorded.base
        for event in recorded.events:
            seen: set[Changes] = set()
            for text, is_garbage, make in variants(disk, event):
                changes = _changes(disk, make())
                if changes not in seen:
                    yield Image(number, len(seen), event, text, make, is_garbage)
                    seen.add(changes)
            disk = after(disk, event)
            number += 1
        last = Event(recorded.replica, "end", recorded.promised)
        yield Image(number, 0, last, "everything", lambda disk=disk: disk)  # type: ignore[misc]
        number += 1


def find(world: Recording, label: str) -> Image | None:
    """The image with that label, EVENT:VARIANT; None when there is none."""
    return next((image for image in images(world) if image.label == label), None)
