"""The superblock: one copy on its own, the choice among four, and updates over a disk that crashes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum

import pytest
import xxhash
from lab import CLUSTER, ROOT, chain

from kimberlite.errors import FormatVersionError, SuperblockError, WriteFailedError
from kimberlite.storage import superblock
from kimberlite.storage.layout import SUPERBLOCK
from kimberlite.storage.superblock import (
    COPIES,
    COPY_BYTES,
    VERSION,
    VERSION_UNBORN,
    Superblock,
    SuperblockFile,
    choose,
    decode,
    encode,
)
from kimberlite.types import SUFFIX_MAX, Checkpoint, Header, ViewState
from kimberlite.vopr.disk import Files, SimDisk, TearPolicy, make_unreadable


def headers(count: int) -> tuple[Header, ...]:
    return tuple(chain(count - 1))


def block(**changes: object) -> Superblock:
    whole = Superblock(CLUSTER, 1, 3, 1 << 20, ViewState(suffix=(ROOT,)), Checkpoint(ROOT), version=VERSION)
    return replace(whole, **changes)  # type: ignore[arg-type]


def sealed(source: Superblock, copy: int = 0) -> Superblock:
    decoded = decode(encode(source, copy), copy)
    assert decoded is not None
    return decoded


def following(before: Superblock, **changes: object) -> Superblock:
    """A successor, by the rule: the next sequence, naming the checksum of the one before."""
    return sealed(replace(before, sequence=before.sequence + 1, parent=before.checksum, **changes))  # type: ignore[arg-type]


def reseal(data: bytearray) -> bytes:
    """A copy whose checksum fits its altered content."""
    data[:16] = xxhash.xxh3_128_digest(bytes(data[32:]))
    return bytes(data)


# One copy


@pytest.mark.parametrize("version", [VERSION_UNBORN, VERSION])
@pytest.mark.parametrize("count", [1, 2, SUFFIX_MAX])
def test_a_copy_comes_back_as_it_was(count: int, version: int) -> None:
    state = ViewState(view=7, log_view=6, commit=5, base=4, suffix_head=count - 1, suffix=headers(count))
    original = block(state=state, sequence=9, parent=b"p" * 16, replica=2, replica_count=5)
    original = replace(original, version=version)
    for copy in range(COPIES):
        data = encode(original, copy)
        assert len(data) == COPY_BYTES
        decoded = decode(data, copy)
        assert decoded == replace(original, checksum=data[:16])
        assert decoded is not None
        assert [header.raw for header in decoded.state.suffix] == [header.raw for header in state.suffix]


def test_copies_differ_in_nothing_but_their_index() -> None:
    first = encode(block(), 0)
    for copy in range(1, COPIES):
        other = encode(block(), copy)
        assert [at for at in range(COPY_BYTES) if first[at] != other[at]] == [16]


def test_a_copy_in_the_place_of_another_is_refused() -> None:
    for written, read in itertools.permutations(range(COPIES), 2):
        assert decode(encode(block(), written), read) is None


@pytest.mark.parametrize("version", [VERSION_UNBORN, VERSION])
def test_every_flipped_bit_is_detected(version: int) -> None:
    data = bytearray(encode(block(state=ViewState(suffix=headers(3), suffix_head=2), version=version), 2))
    for at in range(COPY_BYTES):
        # All bits where anything stands in version 2, one bit of every other byte.
        for bit in range(8) if at < 1024 else (at % 8,):
            data[at] ^= 1 << bit
            assert decode(bytes(data), 2) is None, (at, bit)
            data[at] ^= 1 << bit
    assert decode(bytes(data), 2) is not None


@pytest.mark.parametrize("length", [0, 1, 31, 32, 512, 4096, COPY_BYTES - 1, COPY_BYTES + 1])
def test_a_copy_of_the_wrong_length_is_damaged(length: int) -> None:
    data = encode(block(), 0)
    assert decode((data + b"\0")[:length], 0) is None


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (36, superblock.VERSION + 1),  # version
        (36, 0),
        (38, 1),  # reserved, for a wider version
        (40, 1),  # a feature bit
        (47, 0x80),  # the highest one
    ],
)
def test_r19_an_intact_copy_of_an_unknown_format_is_refused_and_not_taken_for_damage(offset: int, value: int) -> None:
    data = bytearray(encode(block(), 0))
    data[offset] = value
    assert decode(bytes(data), 0) is None  # damaged: the checksum does not cover this content
    with pytest.raises(FormatVersionError) as raised:
        decode(reseal(data), 0)
    assert raised.value.exit_code == 15


@pytest.mark.parametrize(
    ("offset", "content"),
    [
        (32, b"KMSX"),  # another file with a good checksum
        (SUPERBLOCK.offset("suffix_count"), (SUFFIX_MAX + 1).to_bytes(4, "little")),  # more headers than the limit
        (SUPERBLOCK.offset("suffix_count"), (2).to_bytes(4, "little")),  # more than there are
        (SUPERBLOCK.offset("suffix_count"), (0).to_bytes(4, "little")),  # fewer: content in what should be zeros
        (SUPERBLOCK.size, b"\xff"),  # a header that fails its own checksum
        (COPY_BYTES - 1, b"\x01"),  # the last byte of the padding
    ],
)
def test_content_that_contradicts_itself_is_damage_even_under_a_good_checksum(offset: int, content: bytes) -> None:
    data = bytearray(encode(block(), 0))
    data[offset : offset + len(content)] = content
    assert decode(reseal(data), 0) is None


# The choice


class Kind(Enum):
    DAMAGED = 0
    OLDER = 1  # sequence n - 1
    OLD = 2  # sequence n
    NEW = 3  # sequence n + 1
    FORK = 4  # sequence n + 1 with other content
    AHEAD = 5  # sequence n + 3: two updates between are nowhere


OLDER = sealed(block(sequence=4))
OLD = following(OLDER)
NEW = following(OLD, state=ViewState(view=1, suffix=(ROOT,)))
FORK = following(OLD, state=ViewState(view=2, suffix=(ROOT,)))
AHEAD = following(following(NEW))
CONTENT = {
    Kind.DAMAGED: None,
    Kind.OLDER: OLDER,
    Kind.OLD: OLD,
    Kind.NEW: NEW,
    Kind.FORK: FORK,
    Kind.AHEAD: AHEAD,
}


def expected(pattern: tuple[Kind, ...]) -> Superblock | str:
    """What must come out, by counting alone: the content in force, or the cause."""
    count = {kind: pattern.count(kind) for kind in Kind}
    if count[Kind.DAMAGED] == COPIES:
        return "not_found"
    if count[Kind.NEW] and count[Kind.FORK]:
        return "fork"
    newest_first = (Kind.AHEAD, Kind.FORK, Kind.NEW, Kind.OLD, Kind.OLDER)
    winner = next((kind for kind in newest_first if count[kind] >= 2), None)
    if winner is None:  # no two agree: one that continues another, which is there as well
        before = {Kind.FORK: Kind.OLD, Kind.NEW: Kind.OLD, Kind.OLD: Kind.OLDER}
        winner = next(
            (kind for kind in newest_first if count[kind] and count[before.get(kind, Kind.DAMAGED)] and kind in before),
            None,
        )
    if winner is None:
        return "quorum_lost"
    newer = newest_first[: newest_first.index(winner)]
    # Only an update that had begun may be newer than what is in force.
    tolerated = {Kind.OLD: {Kind.NEW, Kind.FORK}, Kind.OLDER: {Kind.OLD}}.get(winner, set())
    if any(count[kind] and kind not in tolerated for kind in newer):
        return "parent_skipped"
    return CONTENT[winner] or "unreachable"


@pytest.mark.parametrize("first", list(Kind))
def test_choice_for_every_pattern_of_four_copies(first: Kind) -> None:
    for others in itertools.product(Kind, repeat=COPIES - 1):
        pattern = (first, *others)
        copies = [CONTENT[kind] for kind in pattern]
        try:
            outcome: Superblock | str = choose(copies)
        except SuperblockError as error:
            outcome = str(error.details["cause"])
        assert outcome == expected(pattern), pattern


def test_an_update_that_does_not_continue_what_is_in_force_is_named() -> None:
    stranger = sealed(replace(OLD, sequence=OLD.sequence + 1, parent=b"x" * 16))
    with pytest.raises(SuperblockError) as raised:
        choose([stranger, OLD, OLD, OLD])
    assert raised.value.details["cause"] == "parent_skipped"
    with pytest.raises(SuperblockError) as raised:
        choose([stranger, stranger, stranger, OLD])
    assert raised.value.details["cause"] == "parent_skipped"


def test_a_copy_left_behind_long_ago_does_no_harm() -> None:
    stale = sealed(block(sequence=1))
    assert choose([NEW, NEW, NEW, stale]) == NEW


# Open, update, read back


class Clock:
    now = 0


def disk_of(files: Files, clock: Clock, latency: int = 0) -> SimDisk:
    return SimDisk(files, lambda: clock.now, lambda: latency)


def formatted(source: Superblock) -> Files:
    content = b"".join(encode(source, copy) for copy in range(COPIES))
    return Files(durable={superblock.NAME: bytearray(content)})


def write(disk: SimDisk, phases: list[list[superblock.Write]], token: int = 1) -> None:
    disk.submit(token, phases)
    disk.flush()
    assert disk.completions() == [token]


def test_opening_nothing_says_how_to_make_something() -> None:
    with pytest.raises(SuperblockError, match="kimberlite format") as raised:
        SuperblockFile(disk_of(Files(), Clock()))
    assert raised.value.details["cause"] == "not_found"


def test_r9_copies_are_written_one_after_another_to_sectors_of_their_own() -> None:
    phases = superblock.phases(disk_of(formatted(OLD), Clock()), 0, superblock.encode(OLD, 0))
    assert [[write.offset for write in phase] for phase in phases] == [[copy * COPY_BYTES] for copy in range(COPIES)]
    assert all(len(write.buffer) == COPY_BYTES for phase in phases for write in phase)


def test_an_update_is_in_force_once_it_is_confirmed() -> None:
    files, clock = formatted(OLD), Clock()
    disk = disk_of(files, clock)
    file = SuperblockFile(disk)
    state = ViewState(view=3, log_view=2, suffix=(ROOT,))
    block, phases = file.update(state)
    assert file.current.state != state
    write(disk, phases)
    file.confirm(block)
    assert file.current.state == state
    assert file.current.sequence == OLD.sequence + 1
    assert file.current.parent == OLD.checksum
    assert SuperblockFile(disk_of(files, clock)).current == file.current


def test_updates_may_queue_and_each_continues_the_one_before() -> None:
    files = formatted(OLD)
    disk = disk_of(files, Clock())
    file = SuperblockFile(disk)
    first, first_phases = file.update(ViewState(view=3, suffix=(ROOT,)))
    second, second_phases = file.update(ViewState(view=4, suffix=(ROOT,)))
    write(disk, first_phases)
    write(disk, second_phases, 2)
    file.confirm(first)  # overwritten on the disk by now: not an error
    file.confirm(second)
    assert second.parent == encode(first, 0)[:16]
    assert SuperblockFile(disk_of(files, Clock())).current.state.view == 4


@pytest.mark.parametrize(
    ("view", "log_view"),
    [(4, 2), (6, 1), (5, 6)],
    ids=["view goes back", "log_view goes back", "log_view above view"],
)
def test_promises_never_go_back(view: int, log_view: int) -> None:
    file = SuperblockFile(disk_of(formatted(block(state=ViewState(5, 2, suffix=(ROOT,)))), Clock()))
    with pytest.raises(SuperblockError) as raised:
        file.update(ViewState(view, log_view, suffix=(ROOT,)))
    assert raised.value.details["cause"] == "not_monotonic"
    # What was refused left no trace: the next one continues what is in force.
    assert file.update(ViewState(5, 5, suffix=(ROOT,)))[0].sequence == file.current.sequence + 1


def test_promises_never_go_back_behind_an_update_under_way() -> None:
    file = SuperblockFile(disk_of(formatted(OLD), Clock()))
    file.update(ViewState(view=9, suffix=(ROOT,)))
    with pytest.raises(SuperblockError):
        file.update(ViewState(view=8, suffix=(ROOT,)))


@pytest.mark.parametrize("lost", range(COPIES + 1))
def test_a_disk_that_loses_writes_is_found_out_when_they_are_read_back(lost: int) -> None:
    files = formatted(OLD)
    disk = disk_of(files, Clock())
    file = SuperblockFile(disk)
    block, phases = file.update(ViewState(view=3, suffix=(ROOT,)))
    if phases[lost:]:
        write(disk, phases[lost:])
    if lost <= COPIES - superblock.WRITE_QUORUM:
        file.confirm(block)
        assert SuperblockFile(disk_of(files, Clock())).current.state.view == 3
    else:
        with pytest.raises(WriteFailedError, match="read back"):
            file.confirm(block)
        assert file.current.state.view == 0


def test_damaged_copies_are_counted_and_repaired_at_open() -> None:
    for damaged in itertools.product([False, True], repeat=COPIES):
        files = formatted(OLD)
        for copy in range(COPIES):
            if damaged[copy]:
                files.durable[superblock.NAME][copy * COPY_BYTES + 100] ^= 1
        if sum(damaged) > COPIES - superblock.READ_QUORUM:
            with pytest.raises(SuperblockError):
                SuperblockFile(disk_of(files, Clock()))
            continue
        disk = disk_of(files, Clock())
        file = SuperblockFile(disk)
        assert file.damaged_copies == sum(damaged)
        repairs = file.repair()
        # Only what is damaged: an intact copy may be one of the last two.
        assert [write.offset for phase in repairs for write in phase] == [
            copy * COPY_BYTES for copy in range(COPIES) if damaged[copy]
        ]
        if repairs:
            write(disk, repairs)
        assert files.durable == formatted(OLD).durable


def test_a_copy_that_can_not_be_read_counts_as_damaged() -> None:
    files = formatted(OLD)
    make_unreadable(files, superblock.NAME, COPY_BYTES // 4096)
    file = SuperblockFile(disk_of(files, Clock()))
    assert file.current == OLD
    assert file.damaged_copies == 1


def test_an_unknown_format_is_refused_even_in_one_copy_of_four() -> None:
    files = formatted(OLD)
    strange = bytearray(encode(OLD, 3))
    strange[40] = 1
    files.durable[superblock.NAME][3 * COPY_BYTES :] = reseal(strange)
    before = bytes(files.durable[superblock.NAME])
    with pytest.raises(FormatVersionError):
        SuperblockFile(disk_of(files, Clock()))
    assert files.durable[superblock.NAME] == before


# Crashes


def torn(old: bytes, new: bytes) -> Iterator[bytes]:
    """What a crash leaves of a write: every prefix of whole 512-byte units, with and without garbage behind it."""
    garbage = random.Random(7).randbytes(512)
    for cut in range(0, len(new) + 1, 512):
        yield new[:cut] + old[cut:]
        if cut < len(new):
            yield new[:cut] + garbage + old[cut + 512 :]


def test_r9_a_crash_at_any_point_of_an_update_leaves_the_old_or_the_new_content() -> None:
    new = sealed(replace(OLD, sequence=OLD.sequence + 1, parent=OLD.checksum, state=ViewState(3, suffix=(ROOT,))))
    images = 0
    for copy in range(COPIES):
        done = [encode(new, other) for other in range(copy)]
        untouched = [encode(OLD, other) for other in range(copy + 1, COPIES)]
        for middle in torn(encode(OLD, copy), encode(new, copy)):
            content = b"".join([*done, middle, *untouched])
            copies = [decode(content[n * COPY_BYTES : (n + 1) * COPY_BYTES], n) for n in range(COPIES)]
            chosen = choose(copies)
            complete = sum(found == new for found in copies)
            assert chosen == (new if complete >= superblock.READ_QUORUM else OLD)
            images += 1
    assert images == COPIES * (2 * COPY_BYTES // 512 + 1)


def test_r9_a_completed_update_survives_any_one_damaged_copy_and_is_never_rolled_back() -> None:
    new = following(OLD, state=ViewState(3, suffix=(ROOT,)))
    for lost, damaged in itertools.product(range(COPIES), repeat=2):
        copies: list[Superblock | None] = [new] * COPIES
        copies[lost] = OLD  # a write quorum of three is complete
        copies[damaged] = None
        assert choose(copies) == new


@pytest.mark.parametrize("seed", range(200))
def test_a_chain_of_crashes_never_loses_a_confirmed_promise(seed: int) -> None:
    """Open, repair, update, crash anywhere, open again: what was confirmed is never taken back."""
    rng = random.Random(seed)
    clock = Clock()
    files = formatted(OLD)
    confirmed = 0
    view = 0
    for _ in range(8):
        disk = disk_of(files, clock, latency=10)
        file = SuperblockFile(disk)
        assert file.current.state.view >= confirmed
        view = file.current.state.view
        pending: dict[int, Superblock] = {}
        token = 1
        repairs = file.repair()
        if repairs:
            disk.submit(token, repairs)
        for _ in range(rng.randrange(3)):
            view += 1
            token += 1
            pending[token], phases = file.update(ViewState(view, suffix=(ROOT,)))
            disk.submit(token, phases)
        clock.now += rng.randrange(140)
        for token in disk.completions():
            if token in pending:
                file.confirm(pending[token])
                confirmed = pending[token].state.view
        disk.crash(rng, TearPolicy())
