"""Identity on disk: superblocks of both versions, the file `birth`, and the conversion of data of the first release.

The enumeration at the end: every write of a conversion and of the lives around it x everything a crash may leave of it
x one damaged copy. What comes back is what was, or what would have been, and it goes on from there.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import xxhash
from lab import CLUSTER, ROOT, chain

from kimberlite._fast.framing import make_header
from kimberlite.errors import InvariantError, SuperblockError
from kimberlite.storage import birth, superblock
from kimberlite.storage.layout import SUPERBLOCK
from kimberlite.storage.store import Store, format_store
from kimberlite.storage.superblock import COPIES, COPY_BYTES, VERSION, VERSION_UNBORN, Superblock, decode, encode
from kimberlite.types import (
    SLOTS,
    SUFFIX_MAX,
    VIEW_BORN,
    ZERO16,
    Birth,
    Checkpoint,
    Heard,
    Identity,
    RingMark,
    ViewState,
    life_of,
    life_sequence,
)
from kimberlite.vopr.disk import UNIT, Files, ImageDisk

OWN = b"i" * 16
FULL = Identity(
    Birth.FORMED, 1, OWN, b"d" * 16, life_of(7, 99), tuple(Heard(n, 2 * n, 3 * n) for n in range(SLOTS)), b"r" * 2560
)
UNBORN = Identity(Birth.UNBORN, 1, OWN, record=b"a draft")
BOUND = replace(UNBORN, birth=Birth.BOUND, digest=b"d" * 16, record=b"a bound draft")
FORMED = replace(BOUND, birth=Birth.FORMED, record=b"the first record")


def block(**changes: object) -> Superblock:
    whole = Superblock(CLUSTER, 1, 3, 1 << 20, ViewState(suffix=(ROOT,)), Checkpoint(ROOT), version=VERSION)
    return replace(whole, **changes)  # type: ignore[arg-type]


# The bytes of version 3


@pytest.mark.parametrize("count", [1, SUFFIX_MAX])
@pytest.mark.parametrize("identity", [Identity(), UNBORN, FULL])
def test_a_copy_with_an_identity_comes_back_as_it_was(count: int, identity: Identity) -> None:
    state = ViewState(view=7, log_view=6, suffix_head=count - 1, suffix=tuple(chain(count - 1)))
    original = block(state=state, identity=identity, ring=RingMark(17, b"n" * 16), sequence=9)
    for copy in range(COPIES):
        data = encode(original, copy)
        assert len(data) == COPY_BYTES
        assert decode(data, copy) == replace(original, checksum=data[:16])


def test_every_flipped_bit_of_the_identity_is_detected() -> None:
    data = bytearray(encode(block(identity=FULL), 2))
    for at in range(SUPERBLOCK.offset("birth"), SUPERBLOCK.size):
        data[at] ^= 1 << at % 8
        assert decode(bytes(data), 2) is None, at
        data[at] ^= 1 << at % 8
    assert decode(bytes(data), 2) is not None


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [("birth", 0, 4), ("record_size", 1, 0xFF), ("record", 3, 1), ("transfer", 0, 1), ("padding", 0, 1)],
)
def test_an_identity_that_contradicts_itself_is_damage(name: str, at: int, value: int) -> None:
    data = bytearray(encode(block(identity=replace(FULL, record=b"r" * 3)), 0))
    data[SUPERBLOCK.offset(name) + at] = value
    data[:16] = xxhash.xxh3_128_digest(bytes(data[32:]))
    assert decode(bytes(data), 0) is None


def test_version_2_has_no_place_for_an_identity() -> None:
    with pytest.raises(InvariantError, match="identity"):
        encode(block(version=VERSION_UNBORN, identity=UNBORN), 0)


# The store


def old_data(view: int = 3) -> Files:
    """Data as the first release leaves it."""
    files = Files()
    disk = ImageDisk(files)
    format_store(disk, make_header, cluster=CLUSTER, replica=1, replica_count=3, segment_bytes=64 << 10)
    store = opened(files)
    store.set_view_state(1, ViewState(view, view - 1, suffix=(ROOT,)))
    assert store.completions() == [1]
    store.close()
    return files


def opened(files: Files) -> Store:
    store = Store(ImageDisk(files), make_header)
    store.recover()
    return store


def versions(files: Files) -> set[int]:
    """Of the copies of the superblock, as they are written in them."""
    raw = files.durable[superblock.NAME]
    return {int.from_bytes(raw[at + 36 : at + 40], "little") for at in range(0, len(raw), COPY_BYTES)}


def test_the_first_release_can_read_its_data_until_the_replica_is_formed() -> None:
    files = old_data()
    before = bytes(files.durable[superblock.NAME])
    store = opened(files)
    assert store.identity == Identity()
    first = store.begin_life(UNBORN, 5)
    assert first == store.identity == replace(UNBORN, life=life_of(store.sequence, 5))
    store.set_view_state(1, store.view_state, replace(BOUND, life=first.life))
    assert store.completions() == [1]
    assert store.identity.birth is Birth.BOUND
    state, identity = store.view_state, store.identity
    assert state.view == 3
    assert versions(files) == {VERSION_UNBORN}
    again = opened(files)
    assert again.identity == identity
    second = again.begin_life(again.identity, 6)
    assert second.life != first.life
    assert decode(before[:COPY_BYTES], 0) is not None
    assert (second.incarnation, second.digest, second.record) == (OWN, BOUND.digest, BOUND.record)


def test_forming_is_the_conversion_and_enters_a_view_above_all_of_the_first_release() -> None:
    files = old_data(view=16)
    store = opened(files)
    before = store.sequence
    store.begin_life(BOUND, 5)
    store.set_view_state(1, store.view_state, FORMED)
    assert store.completions() == [1]
    for seen in (store, opened(files)):
        assert seen.identity == FORMED
        assert (seen.view_state.view, seen.view_state.log_view) == (VIEW_BORN, 15)
        assert seen.sequence == before + 1
    assert versions(files) == {VERSION}
    assert birth.NAME not in files.durable
    store = opened(files)
    life = store.begin_life(store.identity, 9).life
    assert life_sequence(life) == store.sequence == before + 2


def test_who_is_formed_stays_formed_as_who_it_is() -> None:
    files = old_data()
    store = opened(files)
    store.begin_life(BOUND, 5)
    store.set_view_state(1, store.view_state, FORMED)
    store.completions()
    for other in (BOUND, replace(FORMED, incarnation=b"j" * 16), replace(FORMED, slot=2), replace(FORMED, record=b"")):
        with pytest.raises(SuperblockError) as raised:
            store.set_view_state(2, store.view_state, other)
        assert raised.value.cause == "not_monotonic"


def test_data_that_is_born_formed_has_no_file_of_its_own_for_that() -> None:
    files = Files()
    format_store(
        ImageDisk(files),
        make_header,
        cluster=CLUSTER,
        replica=1,
        replica_count=3,
        segment_bytes=64 << 10,
        identity=FORMED,
        ring_nonce=b"n" * 16,
    )
    store = opened(files)
    assert store.identity == FORMED
    assert store.ring_mark == RingMark(0, b"n" * 16)
    assert store.view_state.view == 0
    store.begin_life(FORMED, 1)
    store.begin_life(store.identity, 2)
    store.set_view_state(1, ViewState(1, suffix=(ROOT,)))
    assert store.completions() == [1]
    assert opened(files).identity == replace(FORMED, life=life_of(3, 2))
    assert versions(files) == {VERSION}
    assert birth.NAME not in files.durable


def test_what_a_lost_file_says_is_not_guessed() -> None:
    files = old_data()
    opened(files).begin_life(BOUND, 5)
    files.durable[birth.NAME][:] = bytes(COPIES * COPY_BYTES)
    with pytest.raises(SuperblockError, match="birth --again"):
        Store(ImageDisk(files), make_header)
    assert birth.read(ImageDisk(old_data()), block(version=VERSION_UNBORN)) == Identity()


# Every write x every crash x one damaged copy


@dataclass
class Step:
    """A disk before something was done to it, what may be found after a crash in that, and the images it may leave."""

    what: str
    images: list[dict[str, bytes]] = field(default_factory=list)


class CutDisk(ImageDisk):
    """Keeps of every write, file made, renamed or removed all that a crash may leave in the middle of it."""

    def __init__(self, files: Files, step: Step) -> None:
        super().__init__(files)
        self.step = step

    def _keep(self, **changed: bytes | None) -> None:
        now = {name: bytes(content) for name, content in self.files.durable.items()}
        now.update({name: content for name, content in changed.items() if content is not None})
        self.step.images.append({name: content for name, content in now.items() if changed.get(name, b"") is not None})

    def create(self, name: str, size: int, zeroed: bool = True) -> int:
        self._keep()
        return super().create(name, size, zeroed)

    def rename(self, old: str, new: str) -> None:
        self._keep()
        super().rename(old, new)

    def remove(self, name: str) -> None:
        self._keep()
        super().remove(name)

    def _put(self, file: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        name = self._handles[file]
        old, garbage = bytes(self.files.durable[name]), random.Random(offset).randbytes(UNIT)
        for cut in range(0, len(data), UNIT):
            for torn in (data[:cut], bytes(data[:cut]) + garbage):
                self._keep(**{name: old[:offset] + bytes(torn) + old[offset + len(torn) :]})
        super()._put(file, offset, data)
        self._keep()


def lives(files: Files) -> Iterator[tuple[Step, set[Birth], int]]:
    """Data of the first release until long after its conversion: each step, once it was carried out, with how far the
    birth may be at a crash within it, and the view that was promised before."""

    def store_on(what: str) -> tuple[Store, Step]:
        step = Step(what)
        store = Store(CutDisk(files, step), make_header)
        store.recover()
        return store, step

    store, step = store_on("the first life")
    store.begin_life(UNBORN, 1)
    yield step, {Birth.UNBORN}, 3
    store, step = store_on("bound")
    store.set_view_state(1, store.view_state, replace(BOUND, life=store.identity.life))
    store.completions()
    yield step, {Birth.UNBORN, Birth.BOUND}, 3
    store, step = store_on("another life")
    store.begin_life(store.identity, 2)
    yield step, {Birth.BOUND}, 3
    store, step = store_on("formed")
    store.set_view_state(1, store.view_state, replace(FORMED, life=store.identity.life))
    store.completions()
    yield step, {Birth.BOUND, Birth.FORMED}, 3
    store, step = store_on("a view")
    store.set_view_state(1, replace(store.view_state, view=VIEW_BORN + 7))
    store.completions()
    yield step, {Birth.FORMED}, VIEW_BORN
    store, step = store_on("a third life")
    store.begin_life(store.identity, 3)
    yield step, {Birth.FORMED}, VIEW_BORN + 7


def damaged(image: dict[str, bytes]) -> Iterator[dict[str, bytes]]:
    """The image, and with each copy of the superblock and of the file `birth` damaged, one at a time."""
    yield image
    for name in (superblock.NAME, birth.NAME):
        for copy in range(COPIES) if name in image else ():
            at = copy * COPY_BYTES + 700 * copy
            yield image | {name: image[name][:at] + b"damage!!" + image[name][at + 8 :]}


def judge(image: dict[str, bytes], known: set[Birth], view: int) -> None:
    """Start on what is left, go on, and start again."""
    files = Files({name: bytearray(content) for name, content in image.items()})
    store = opened(files)
    found = store.identity
    assert found.birth in known
    state = store.view_state
    assert state.view >= view
    assert state.log_view == 2
    assert (found.birth is Birth.FORMED) == (state.view >= VIEW_BORN)
    expected = {Birth.UNBORN: UNBORN, Birth.BOUND: BOUND, Birth.FORMED: FORMED}[found.birth]
    nobody = found == Identity()  # the file was not whole yet
    assert nobody or found == replace(expected, life=found.life)
    begun = store.begin_life(UNBORN if nobody else found, 77)
    again = opened(files)
    assert again.identity == begun
    if begun.birth is not Birth.FORMED:
        assert versions(files) == {VERSION_UNBORN}
        again.set_view_state(1, again.view_state, replace(FORMED, life=begun.life))
        assert again.completions() == [1]
    last = opened(files)
    assert last.identity.birth is Birth.FORMED
    assert last.view_state.view >= max(view, VIEW_BORN)
    assert {superblock.NAME} == {name for name in files.durable if not name.startswith(("journal", "witness"))}


@pytest.mark.slow
def test_every_crash_of_a_conversion_with_one_damaged_copy() -> None:
    count = 0
    for step, known, view in lives(old_data()):
        seen = set()
        for image in step.images:
            for one in damaged(image):
                key = xxhash.xxh3_128_digest(b"".join(name.encode() + one[name] for name in sorted(one)))
                if key in seen:
                    continue
                seen.add(key)
                try:
                    judge(one, known, view)
                except Exception as error:
                    raise AssertionError(f"{step.what}, image {len(seen)}: {error!r}") from error
        count += len(seen)
    assert count > 1000
    print(f"{count} images, each opened three times")


def test_a_life_and_a_binding_are_not_forgotten_by_a_start_that_is_cut_short() -> None:
    files = old_data()
    opened(files).begin_life(BOUND, 5)
    step = Step("")
    store = Store(CutDisk(files, step), make_header)
    store.recover()
    store.begin_life(replace(store.identity), 6)
    for image in step.images:
        found = opened(Files({name: bytearray(content) for name, content in image.items()})).identity
        assert (found.birth, found.digest, found.incarnation) == (Birth.BOUND, BOUND.digest, OWN)
        assert found.life != ZERO16
