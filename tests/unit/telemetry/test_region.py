"""Where the shared memory is, and what is left of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kimberlite._fast.metrics import Region
from kimberlite.errors import DataMissingError
from kimberlite.telemetry import catalogue, region, snapshot

INFO = {"cluster": "c", "replica": 0, "replica_count": 1}


def test_one_file_for_each_data_directory(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
    written = [region.create(directory, 1, INFO) for directory in (first, second)]
    assert written[0].path != written[1].path
    moved = tmp_path / "moved"
    first.rename(moved)
    assert region.find(moved).path == written[0].path  # the directory is known by what it is, not by its name
    path = Path(str(written[1].path))
    assert path.stat().st_mode & 0o777 == 0o600
    for one in written:
        region.remove(one)
    assert not path.exists()


def test_a_crash_is_told_from_an_end_in_order(tmp_path: Path) -> None:
    assert not region.crashed(tmp_path)
    written = region.create(tmp_path, 1, INFO)
    assert region.crashed(tmp_path)
    written.end()
    assert not region.crashed(tmp_path)
    region.remove(written)


def test_only_the_current_file_is_removed(tmp_path: Path) -> None:
    old = region.create(tmp_path, 1, INFO)
    new = region.create(tmp_path, 1, INFO)
    region.remove(old)
    assert region.find(tmp_path).is_current()
    assert not old.is_current()
    region.remove(new)
    with pytest.raises(DataMissingError, match="no metrics"):
        region.find(tmp_path)


def test_nothing_to_read(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataMissingError):
            snapshot(directory)


def test_files_of_directories_that_are_gone_are_removed(tmp_path: Path) -> None:
    gone, kept = tmp_path / "gone", tmp_path / "kept"
    for directory in (gone, kept):
        directory.mkdir()
    left = region.create(gone, 1, INFO)
    stays = region.create(kept, 1, INFO)
    shutil.rmtree(gone)
    region.remove_orphans()
    assert not Path(str(left.path)).exists()
    assert stays.is_current()
    region.remove(stays)


def test_a_region_is_found_through_a_descriptor_when_its_name_is_gone(tmp_path: Path) -> None:
    written = region.create(tmp_path, 1, INFO)
    held = region.descriptor_of(written)
    Path(str(written.path)).unlink()
    assert region.find(tmp_path).started_unix_ns == written.started_unix_ns
    assert region.open_descriptor(held).series == written.series
    assert not region.is_replaced(Path(str(written.path)), held)
    assert region.crashed(tmp_path)  # who starts next must know that there may be somebody on the port
    os.close(held)
    with pytest.raises(DataMissingError):
        region.find(tmp_path)


def test_a_descriptor_stays_with_its_region_when_another_one_takes_the_name(tmp_path: Path) -> None:
    old = region.create(tmp_path, 1, INFO)
    held = region.descriptor_of(old)
    name = Path(str(old.path))
    assert not region.is_replaced(name, held)
    new = region.create(tmp_path, 1, INFO)
    assert region.is_replaced(name, held)
    assert region.open_descriptor(held).started_monotonic_ns == old.started_monotonic_ns
    with pytest.raises(FileNotFoundError):
        region.descriptor_of(old)
    os.close(held)
    region.remove(new)


def test_without_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region, "SHARED_MEMORY", tmp_path / "missing")
    written = region.create(tmp_path, 1, INFO)
    assert Path(str(written.path)) == tmp_path / region.NAME
    assert region.find(tmp_path).series == Region.create(None, catalogue.layout(1)).series
