"""What a backup takes from a replica's disk, and that a restored replica has exactly that."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kimberlite._fast import events
from kimberlite._fast.framing import make_header
from kimberlite.backup.manifest import NAME, Manifest, decode
from kimberlite.backup.restore import Restored, restore
from kimberlite.backup.take import Taken, take
from kimberlite.backup.targets import Archive, Directory
from kimberlite.errors import (
    BackupError,
    DataExistsError,
    DataMissingError,
    DiskFullError,
    FormatVersionError,
    UsageError,
)
from kimberlite.storage import disk as disk_module
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.journal import journal_name, witness_name
from kimberlite.storage.store import Store
from kimberlite.types import Recovered, ViewState

Make = Callable[..., Any]
CHECKPOINT_AT = 40
NEW = "5f0c7b9a3f6e4d6ab2c1d0e9f8a7b6c5"  # as in the configuration that new_config makes
CLUSTER_HEX = b"the-old-cluster!".hex()


def back_up(data: Path, target: Path, applied: int = 0, check: bool = False) -> Taken:
    disk = FileDisk(data, readonly=True)
    try:
        with closing(Directory(target, write=True)) as to:
            return take(disk, to, applied=lambda: applied, check=check)
    finally:
        disk.close()


def bring_back(target: Path, config: Any, data: Path, **options: bool) -> Restored:
    with closing(Directory(target, write=False)) as source:
        return restore(source, config, data, **options)


def manifest_of(target: Path) -> Manifest:
    return decode((target / NAME).read_bytes(), str(target))


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def opened(data: Path) -> tuple[Store, Recovered]:
    store = Store(FileDisk(data, unsafe=True), make_header)
    return store, store.recover()


def check_log(data: Path, first: int, last: int) -> Recovered:
    """The restored journal has these ops, with the events that SmallReplica gave them."""
    store, recovered = opened(data)
    try:
        assert (store.first_op, store.first_position) == (first, 2 * (first - 1))
        assert (recovered.settled, recovered.commit, store.head) == (last, last, last)
        for op in range(first, last + 1):
            message = store.read(op)
            assert message is not None
            assert message.header.position == 2 * (op - 1)
            assert message.header.request == op
            found = events.slice(message.body, 0, 2)
            assert found[0] == b"%d" % (2 * op - 2)
            assert found[1].startswith(b"%d " % (2 * op - 1))
            assert store.find(2 * op - 1) == op
        assert store.read(first - 1) is None and store.read(last + 1) is None
        assert first == 1 or store.find(2 * first - 3) is None
    finally:
        store.close()
    return recovered


@pytest.mark.parametrize("first", [1, 7, 33, 36, CHECKPOINT_AT, CHECKPOINT_AT + 1])
def test_a_log_with_a_checkpoint_and_a_trim(first: int, small_replica: Make, new_config: Make, tmp_path: Path) -> None:
    """Trimmed within a segment, at its beginning, and up to the checkpoint's own op."""
    replica = small_replica()
    replica.append(CHECKPOINT_AT)
    replica.checkpoint()
    if first > 1:
        replica.trim(first)
    replica.append(20)
    taken = back_up(replica.path, tmp_path / "backup")
    assert (taken.manifest.first_op, taken.manifest.last_op, taken.uncertain) == (first, 59, 1)
    identities = set()
    logs = []
    for index in range(3):
        data = tmp_path / f"new-{index}"
        restored = bring_back(tmp_path / "backup", new_config(index), data)
        identities.add(restored.identity)
        logs.append({name: data for name, data in files(data).items() if "-" in name})
        recovered = check_log(data, first, 59)
        assert recovered.view_state.view == recovered.view_state.log_view == replica.view + 1
        assert recovered.restored is not None
        assert recovered.restored.op == CHECKPOINT_AT
        assert recovered.restored.positions == 2 * CHECKPOINT_AT
        assert recovered.restored.sessions == b"sessions of 40"
        assert recovered.restored.snapshot == b"snapshot of 40"
    assert len(identities) == 1
    assert logs[0] == logs[1] == logs[2]
    assert set(logs[0]) == {
        journal_name(0),
        witness_name(0),
        f"checkpoint-{CHECKPOINT_AT:016d}-a",
        f"checkpoint-{CHECKPOINT_AT:016d}-b",
    }


def test_a_backup_of_what_was_restored(small_replica: Make, new_config: Make, tmp_path: Path) -> None:
    """Another cluster, other segments, every header anew: the content is the same."""
    replica = small_replica()
    replica.append(16)
    first = back_up(replica.path, tmp_path / "first", applied=16).manifest
    bring_back(tmp_path / "first", new_config(), tmp_path / "new")
    second = back_up(tmp_path / "new", tmp_path / "second").manifest
    assert [file.content for file in first.entries] == [file.content for file in second.entries]
    assert first.identity != second.identity
    assert (second.cluster, second.view, second.last_op) == (NEW, first.view + 1, 16)


def test_a_log_without_a_checkpoint_and_an_empty_one(small_replica: Make, new_config: Make, tmp_path: Path) -> None:
    replica = small_replica()
    for count in (0, 30):
        replica.append(count)
        target, data = tmp_path / f"backup-{count}", tmp_path / f"new-{count}"
        assert back_up(replica.path, target, applied=count).manifest.last_op == count
        bring_back(target, new_config(), data)
        assert check_log(data, 1, count).restored is None


def test_other_numbers_of_replicas(small_replica: Make, new_config: Make, tmp_path: Path) -> None:
    """Every prepare is of a replica that the new cluster has: peers refuse others."""
    replica = small_replica(replica_count=5, view=4)
    replica.append(20)
    back_up(replica.path, tmp_path / "backup")
    for replicas in (1, 2, 6):
        data = tmp_path / f"new-{replicas}"
        bring_back(tmp_path / "backup", new_config(0, replicas), data)
        store, _ = opened(data)
        assert {store.header(op).replica for op in range(1, 20)} == {4 % replicas}
        store.close()


def test_only_what_is_new_is_copied(small_replica: Make, tmp_path: Path) -> None:
    replica, target = small_replica(), tmp_path / "backup"
    replica.append(40)
    first = back_up(replica.path, target)
    assert (first.copied, first.kept, first.removed) == (3, 0, 0)
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    again = back_up(replica.path, target)
    assert (again.copied, again.kept, again.removed) == (0, 3, 0)
    replica.append(10)
    replica.checkpoint()
    more = back_up(replica.path, target)
    # The segment that was not full, the one after it, and the checkpoint.
    assert (more.copied, more.kept, more.removed) == (3, 2, 1)
    after = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    kept = [file.name for file in more.manifest.entries[:2]]
    assert [after[name] for name in kept] == [before[name] for name in kept]
    assert set(after) == {NAME, *(file.name for file in more.manifest.files)}
    replica.trim(33)
    trimmed = back_up(replica.path, target)
    assert (trimmed.manifest.first_op, trimmed.removed) == (33, 2)


def test_files_are_what_the_manifest_says(small_replica: Make, tmp_path: Path) -> None:
    replica, target = small_replica(), tmp_path / "backup"
    replica.append(40)
    replica.checkpoint()
    back_up(replica.path, target)
    for file in json.loads((target / NAME).read_bytes())["files"]:
        data = (target / file["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])


def test_the_last_op_of_a_disk_alone(small_replica: Make, tmp_path: Path) -> None:
    """An entry says what was committed when it was made: of the last ones only the process knows, or a cluster of
    one."""
    replica = small_replica(behind=4)
    replica.append(20)
    taken = back_up(replica.path, tmp_path / "alone")
    assert (taken.manifest.last_op, taken.uncertain) == (16, 4)
    taken = back_up(replica.path, tmp_path / "asked", applied=19)
    assert (taken.manifest.last_op, taken.uncertain) == (19, 1)
    single = small_replica("single", behind=4, replica_count=1)
    single.append(20)
    taken = back_up(single.path, tmp_path / "one")
    assert (taken.manifest.last_op, taken.uncertain) == (20, 0)


# What stands in the way


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("place", ["header", "body", "padding"])
@pytest.mark.parametrize("op", [1, 5, 16, 17, 38])
def test_damage_of_what_is_committed(place: str, op: int, small_replica: Make, tmp_path: Path) -> None:
    replica, target = small_replica(), tmp_path / "backup"
    replica.append(4)
    old = back_up(replica.path, target).manifest
    replica.append(36)
    replica.store.close()
    within = {"header": 200, "body": 300, "padding": 4000}[place]
    flip(replica.path / journal_name((op - 1) // 16), (op - 1) % 16 * 4096 + within)
    with pytest.raises(BackupError, match="another replica") as caught:
        back_up(replica.path, target)
    assert caught.value.details["op"] == op
    assert manifest_of(target) == old


def test_a_damaged_witness_is_no_hindrance(small_replica: Make, new_config: Make, tmp_path: Path) -> None:
    replica = small_replica()
    replica.append(40)
    replica.checkpoint()
    replica.append(20)
    replica.store.close()
    for segment in range(4):
        for index in (0, 3, 10, 15):
            flip(replica.path / witness_name(segment), index * 512 + 100)
    back_up(replica.path, tmp_path / "backup")
    bring_back(tmp_path / "backup", new_config(), tmp_path / "new")
    check_log(tmp_path / "new", 1, 59)


def test_entries_of_a_log_that_lost_are_not_taken(small_replica: Make, tmp_path: Path) -> None:
    """The superblock knows of a newer log whose entries have not arrived: the old ones there are void, whatever
    their chain and their checksums say."""
    replica = small_replica()
    replica.append(20)
    common = replica.last
    replica.append(5, salt=b"lost")
    replica.last, replica.view = common, 4
    chosen = []
    for _ in range(5):
        message = replica.prepare(salt=b"won")
        chosen.append(message.header)
        replica.last = message.header
    replica.promise(ViewState(view=4, log_view=4, commit=24, base=20, suffix_head=25, suffix=(common, *chosen)))
    with pytest.raises(BackupError, match=r"op 21 is committed .* has not reached this replica") as caught:
        back_up(replica.path, tmp_path / "backup")
    assert caught.value.details["op"] == 21
    assert not (tmp_path / "backup" / NAME).exists()


class Meanwhile(Directory):
    """A target during whose first file the replica goes on."""

    def __init__(self, path: Path, what: Callable[[], None]) -> None:
        super().__init__(path, write=True)
        self._what: Callable[[], None] | None = what

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        super().put(name, chunks)
        if self._what is not None:
            what, self._what = self._what, None
            what()


def test_a_checkpoint_and_a_trim_while_it_is_copied(small_replica: Make, new_config: Make, tmp_path: Path) -> None:
    """Segments that were still to be copied are gone: it begins again, with what is there now."""
    replica = small_replica()
    replica.append(60)
    replica.checkpoint()

    def go_on() -> None:
        replica.append(20)
        replica.checkpoint()
        replica.trim(65)
        assert not (replica.path / journal_name(3)).exists()

    disk = FileDisk(replica.path, readonly=True)
    with closing(Meanwhile(tmp_path / "backup", go_on)) as target:
        taken = take(disk, target)
    disk.close()
    assert (taken.attempts, taken.manifest.first_op, taken.manifest.last_op) == (2, 65, 80)
    assert {path.name for path in (tmp_path / "backup").iterdir()} == {
        NAME,
        *(file.name for file in taken.manifest.files),
    }
    bring_back(tmp_path / "backup", new_config(), tmp_path / "new")
    check_log(tmp_path / "new", 65, 80)


def test_a_missing_segment_of_a_replica_that_stands_still(small_replica: Make, tmp_path: Path) -> None:
    replica = small_replica()
    replica.append(60)
    replica.checkpoint()
    replica.store.close()
    (replica.path / journal_name(1)).unlink()
    with pytest.raises(DataMissingError, match="journal-00000001 is missing"):
        back_up(replica.path, tmp_path / "backup")


def test_damaged_copies_of_the_checkpoint(small_replica: Make, new_config: Make, tmp_path: Path) -> None:
    """One is enough; without any the log alone would not tell who has a session."""
    replica = small_replica()
    replica.append(20)
    replica.checkpoint()
    replica.append(1)
    replica.store.close()
    flip(replica.path / f"checkpoint-{20:016d}-a", 4100)
    back_up(replica.path, tmp_path / "backup")
    bring_back(tmp_path / "backup", new_config(), tmp_path / "new")
    restored = check_log(tmp_path / "new", 1, 20).restored
    assert restored is not None and restored.snapshot == b"snapshot of 20"
    flip(replica.path / f"checkpoint-{20:016d}-b", 4100)
    with pytest.raises(BackupError, match=r"no copy of the checkpoint of op 20 .*: take the backup from another"):
        back_up(replica.path, tmp_path / "other")


class Interrupted(Directory):
    """A target that fails when some files are stored."""

    left = 2

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        self.left -= 1
        if self.left < 0:
            chunks = self._some(iter(chunks))
        super().put(name, chunks)

    def _some(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        yield next(chunks)[:100]
        raise KeyboardInterrupt


def test_an_interrupted_backup(small_replica: Make, new_config: Make, tmp_path: Path) -> None:
    replica, target = small_replica(), tmp_path / "backup"
    replica.append(20)
    old = back_up(replica.path, target).manifest
    replica.append(60)
    disk = FileDisk(replica.path, readonly=True)
    with closing(Interrupted(target, write=True)) as to, pytest.raises(KeyboardInterrupt):
        take(disk, to)
    disk.close()
    assert manifest_of(target) == old
    bring_back(target, new_config(), tmp_path / "new")
    check_log(tmp_path / "new", 1, 19)
    taken = back_up(replica.path, target)
    assert {path.name for path in target.iterdir()} == {NAME, *(file.name for file in taken.manifest.files)}


def test_what_is_kept_is_read_when_asked(small_replica: Make, tmp_path: Path) -> None:
    """A file of the right size is believed; with `check` it is read, and copied again when its bytes have changed."""
    replica, target = small_replica(), tmp_path / "backup"
    replica.append(40)
    replica.checkpoint()
    manifest = back_up(replica.path, target).manifest
    before = files(target)
    assert back_up(replica.path, target, check=True).copied == 0
    for file in (manifest.entries[1], manifest.files[0]):
        flip(target / file.name, 300)
        assert back_up(replica.path, target).copied == 0
        taken = back_up(replica.path, target, check=True)
        assert (taken.copied, taken.removed) == (1, 0)
        assert files(target) == before
    (target / manifest.entries[0].name).unlink()
    assert back_up(replica.path, target).copied == 1
    assert files(target) == before


def test_targets_that_hold_something_else(small_replica: Make, tmp_path: Path) -> None:
    replica, target = small_replica(), tmp_path / "backup"
    replica.append(40)
    back_up(replica.path, target)
    before = files(target)
    behind = small_replica("behind")
    behind.append(20)
    with pytest.raises(BackupError, match="up to op 39, and this replica knows of op 19"):
        back_up(behind.path, target)
    other = small_replica("other")
    other.append(50, salt=b"another history")
    with pytest.raises(BackupError, match="two histories"):
        back_up(other.path, target)
    with pytest.raises(BackupError, match="which is of no backup"):
        back_up(replica.path, replica.path)
    with closing(Directory(target, write=True)), pytest.raises(BackupError, match="under way"):
        Directory(target, write=True)
    document = json.loads((target / NAME).read_bytes())
    document["cluster"] = "ab" * 16
    del document["sha256"]
    digest = hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (target / NAME).write_text(json.dumps({**document, "sha256": digest}))
    with pytest.raises(BackupError, match="of cluster abab"):
        back_up(replica.path, target)
    assert {**files(target), NAME: b""} == {**before, NAME: b""}


# Restoring


def test_every_byte_of_a_manifest_counts(small_replica: Make, tmp_path: Path) -> None:
    replica = small_replica()
    replica.append(20)
    replica.checkpoint()
    back_up(replica.path, tmp_path / "backup")
    data = (tmp_path / "backup" / NAME).read_bytes()
    for offset in range(len(data)):
        damaged = bytearray(data)
        damaged[offset] ^= 1
        with pytest.raises(BackupError, match=r"manifest\.json is damaged"):
            decode(bytes(damaged), "backup")
    for size in range(len(data) - 2):
        with pytest.raises(BackupError):
            decode(data[:size], "backup")


def test_a_manifest_of_a_later_release(small_replica: Make, tmp_path: Path) -> None:
    document = {"version": 2, "new": True, "format": "kimberlite backup"}
    digest = hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    with pytest.raises(FormatVersionError, match="backup format 2"):
        decode(json.dumps({**document, "sha256": digest}).encode(), "backup")


@pytest.mark.parametrize("kind", ["entries", "checkpoint"])
@pytest.mark.parametrize("place", ["first", "middle", "last", "short", "long", "gone"])
def test_a_damaged_backup_leaves_nothing(
    kind: str, place: str, small_replica: Make, new_config: Make, tmp_path: Path
) -> None:
    replica, target = small_replica(), tmp_path / "backup"
    replica.append(40)
    replica.checkpoint()
    replica.append(10)
    manifest = back_up(replica.path, target).manifest
    file = manifest.checkpoint if kind == "checkpoint" else manifest.entries[1]
    assert file is not None
    path = target / file.name
    data = bytearray(path.read_bytes())
    if place in ("first", "middle", "last"):
        data[{"first": 0, "middle": len(data) // 2, "last": -1}[place]] ^= 1
    elif place != "gone":
        data = data[:-1] if place == "short" else data + b"\0"
    path.unlink() if place == "gone" else path.write_bytes(data)
    for data_directory in (tmp_path / "new", tmp_path / "made"):
        if data_directory.name == "made":
            data_directory.mkdir()
        with pytest.raises(BackupError, match=file.name):
            bring_back(target, new_config(), data_directory)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "made").iterdir()) == []


def test_refusals(small_replica: Make, new_config: Make, tmp_path: Path) -> None:
    replica, target = small_replica(), tmp_path / "backup"
    replica.append(20)
    back_up(replica.path, target)
    with pytest.raises(UsageError, match="same-cluster"):
        bring_back(target, new_config(cluster=CLUSTER_HEX), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    bring_back(target, new_config(cluster=CLUSTER_HEX), tmp_path / "same", same_cluster=True)
    check_log(tmp_path / "same", 1, 19)
    before = files(tmp_path / "same")
    with pytest.raises(DataExistsError):
        bring_back(target, new_config(), tmp_path / "same")
    assert files(tmp_path / "same") == before
    (tmp_path / "cut-short").mkdir()
    (tmp_path / "cut-short" / "journal-00000000").write_bytes(b"")
    with pytest.raises(DataExistsError, match="interrupted restore"):
        bring_back(target, new_config(), tmp_path / "cut-short")
    (tmp_path / "empty").mkdir()
    for source in ("empty", "none"):
        with pytest.raises(BackupError, match="holds no backup"):
            bring_back(tmp_path / source, new_config(), tmp_path / "new")


def test_what_is_cut_short_is_no_replica(
    small_replica: Make, new_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step of a restore, as a crash would find it."""
    replica, target = small_replica(), tmp_path / "backup"
    replica.append(40)
    replica.checkpoint()
    back_up(replica.path, target)
    seen: list[list[str]] = []
    for name in ("create", "submit", "rename", "remove", "read"):
        original = getattr(FileDisk, name)

        def watched(self: FileDisk, *arguments: Any, original: Any = original, **named: Any) -> Any:
            found = sorted(path.name for path in (tmp_path / "new").iterdir())
            seen.append(found)
            assert "superblock" not in found and "node.toml" not in found
            return original(self, *arguments, **named)

        monkeypatch.setattr(FileDisk, name, watched)
    bring_back(target, new_config(), tmp_path / "new")
    assert len(seen) > 20
    monkeypatch.undo()
    check_log(tmp_path / "new", 1, 40)


def test_an_entry_larger_than_the_new_segments(small_replica: Make, new_config: Make, tmp_path: Path) -> None:
    replica, target = small_replica(segment_bytes=256 << 10), tmp_path / "backup"
    replica.append(3, size=100_000)
    back_up(replica.path, target)
    config = new_config()
    object.__setattr__(config.storage, "segment_bytes", 64 << 10)
    with pytest.raises(UsageError, match=r"takes 102400 bytes.* --set storage.segment_bytes=131072"):
        bring_back(target, config, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    object.__setattr__(config.storage, "segment_bytes", 128 << 10)
    bring_back(target, config, tmp_path / "new")
    check_log(tmp_path / "new", 1, 2)


def test_an_archive(small_replica: Make, new_config: Make, tmp_path: Path) -> None:
    replica, path = small_replica(), tmp_path / "some" / "backup.tar"
    for count in (20, 60):
        replica.append(count)
        disk = FileDisk(replica.path, readonly=True)
        with closing(Archive(path, write=True)) as target:
            taken = take(disk, target)
        disk.close()
        assert taken.kept == 0
        assert [item.name for item in path.parent.iterdir()] == ["backup.tar"]
    with closing(Archive(path, write=False)) as source:
        restore(source, new_config(), tmp_path / "new")
    check_log(tmp_path / "new", 1, 79)
    flip(path, path.stat().st_size // 2)
    with closing(Archive(path, write=False)) as source, pytest.raises(BackupError, match=r"entries-\d+.* is damaged"):
        restore(source, new_config(), tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


@pytest.fixture
def with_checkpoint(small_replica: Make, tmp_path: Path) -> Callable[..., Path]:
    """A backup of a log with a checkpoint in its middle, or right before its beginning."""

    def make(*, trimmed: bool) -> Path:
        replica = small_replica()
        replica.append(CHECKPOINT_AT)
        replica.checkpoint()
        if trimmed:
            replica.trim(CHECKPOINT_AT + 1)
        replica.append(20)
        back_up(replica.path, tmp_path / "backup")
        return tmp_path / "backup"

    return make


@pytest.fixture
def before_second_copy(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Have something happen when the file of the second copy of a checkpoint is made."""
    make_file = disk_module._make_file

    def arrange(happens: Callable[[], None]) -> None:
        def make(directory: int, name: str, *rest: Any) -> None:
            if name.endswith("-b"):
                happens()
            make_file(directory, name, *rest)

        monkeypatch.setattr(disk_module, "_make_file", make)

    return arrange


def test_a_copy_of_the_checkpoint_that_takes_long_is_waited_for(
    with_checkpoint: Any, before_second_copy: Any, new_config: Make, tmp_path: Path
) -> None:
    """The log begins right behind the checkpoint: the superblock names it as soon as the first copy is there."""
    backup = with_checkpoint(trimmed=True)
    before_second_copy(lambda: time.sleep(0.3))  # a slow disk
    bring_back(backup, new_config(0), tmp_path / "new")
    copies = [name for name in files(tmp_path / "new") if name.startswith("checkpoint-")]
    assert len(copies) == 2, copies


def test_no_space_for_a_copy_of_the_checkpoint(
    with_checkpoint: Any, before_second_copy: Any, new_config: Make, tmp_path: Path
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    backup = with_checkpoint(trimmed=False)
    before_second_copy(full)
    with pytest.raises(DiskFullError, match="no space for the copies of the checkpoint"):
        bring_back(backup, new_config(0), tmp_path / "new")
