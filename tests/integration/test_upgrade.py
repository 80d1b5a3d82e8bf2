"""Data of the first release, and clusters that have lost too much: docs/upgrade.md and docs/cluster.md, as written.

Data of the first release is made here as that release made it: a superblock of version 2, no identity, a log.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab.old_data import make_old_data

from kimberlite import config as configuration
from kimberlite.cli import probe
from kimberlite.cli.local import LocalCluster
from kimberlite.config import Config
from kimberlite.errors import UnavailableError

GUIDES = Path(__file__).parents[2] / "docs"
CLUSTER = "00112233445566778899aabbccddeeff"
NEW = "0a9c3d1e-77f2-4b8e-9c55-21d4f6a0b3e8"  # as in the guides
OPS = 7
EVENTS = [b"event %d" % op for op in range(1, OPS + 1)]


def commands(page: str) -> list[str]:
    """The lines of all shell blocks of a guide."""
    text = (GUIDES / page).read_text(encoding="utf-8")
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


def one(page: str, beginning: str) -> str:
    """The command of a guide that begins like this; there is one."""
    found = {command for command in commands(page) if command.startswith(beginning)}
    assert len(found) == 1, found
    return found.pop()


class Machines:
    """Replicas of one cluster, and the commands of the guides on them: /var/lib/kimberlite is the data of one."""

    def __init__(self, directory: Path, settings: tuple[str, ...], command: Any, count: int = 3) -> None:
        self.processes = LocalCluster(directory, count, settings=settings)
        self.processes.choose_addresses()
        self.directory = directory
        self.settings = settings
        self.command = command

    @property
    def replicas(self) -> list[Any]:
        return self.processes.replicas

    def config(self, index: int) -> Config:
        return configuration.new_replica(CLUSTER, index, self.processes.addresses, self.settings, "test")

    def here(self, line: str, index: int, **options: Any) -> Any:
        """A command of a guide, with the addresses and directories of this machine. `start` is left to the tests."""
        for name, address in zip("abc", self.processes.addresses, strict=False):
            line = line.replace(f"{name}.example:7100", address)
        for written, here in (
            ("/var/lib/kimberlite-new", self.directory / "new" / str(index)),
            ("/var/lib/kimberlite", self.replicas[index].data),
            ("/backup/orders", self.directory / "backup"),
            ("--replica 0", f"--replica {index}"),
        ):
            line = line.replace(written, str(here))
        program, verb, *rest = line.split()
        assert program == "kimberlite"
        assert verb != "start"
        items = [item for setting in self.settings for item in ("--set", setting)] if verb == "restore" else []
        return self.command(verb, *rest, *items, addresses=self.processes.addresses, **options)

    def status(self, index: int) -> dict[str, object] | None:
        answer = probe.fetch_all([self.processes.addresses[index]], 2.0)[0]
        return None if isinstance(answer, UnavailableError) else answer

    def inspect(self, index: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.command("inspect", "superblock", "--json", self.replicas[index].data).stdout
        )
        return found

    def exit_code(self, index: int) -> int:
        """Of a process that ends by itself."""
        code = int(self.replicas[index].process.wait(60))
        self.replicas[index].forget()
        return code

    def read(self) -> list[bytes]:
        done = self.command("read", addresses=self.processes.addresses)
        lines: bytes = done.stdout
        return lines.splitlines()

    def append(self, *lines: bytes) -> None:
        self.command("append", addresses=self.processes.addresses, input=b"".join(line + b"\n" for line in lines))

    def go_on_from(self, directory: Path) -> None:
        """The processes are run on other data from now on."""
        for replica in self.replicas:
            replica.data = directory / str(replica.index)


@pytest.fixture
def machines(tmp_path: Path, settings: tuple[str, ...], kimberlite_command: Any) -> Iterator[Callable[..., Machines]]:
    made: list[Machines] = []

    def make(count: int = 3, *, old: bool = True) -> Machines:
        found = Machines(tmp_path / f"machines-{len(made)}", settings, kimberlite_command, count)
        made.append(found)
        if old:
            for replica in found.replicas:
                make_old_data(found.config(replica.index), replica.data, EVENTS)
        else:
            found.processes.prepare()
        return found

    yield make
    for found in made:
        found.processes.stop()
        for replica in found.replicas:
            if replica.log.exists():
                print(f"--- {replica.log.name}\n{replica.log.read_text(errors='replace')[-3000:]}")


def test_data_of_the_first_release_goes_on_when_all_have_met(
    machines: Callable[..., Machines], wait_until: Callable[..., None]
) -> None:
    cluster = machines()
    assert cluster.inspect(1)["version"] == 2
    for index in (0, 1):
        cluster.processes.start(index)
    wait_until(lambda: "replica 2" in str((cluster.status(0) or {}).get("unhealthy")), "it says for whom it waits")
    assert cluster.inspect(0)["version"] == 2  # the first release could still be started
    cluster.processes.start(2)
    cluster.processes.wait_ready(60)
    assert cluster.read() == EVENTS
    cluster.append(b"more")
    assert cluster.read() == [*EVENTS, b"more"]
    said = [cluster.inspect(index) for index in range(3)]
    assert {(one["version"], one["birth"], one["bound_to"]) for one in said} == {(3, "formed", said[0]["bound_to"])}
    assert all(one["view"] >= 1 << 32 for one in said)
    cluster.here(one("upgrade.md", "kimberlite upgrade check"), 0)
    cluster.processes.stop()
    cluster.processes.start(0)
    cluster.processes.start(2)
    cluster.processes.wait_ready(60, need=2)  # once born, a majority suffices
    assert cluster.read() == [*EVENTS, b"more"]


def test_one_machine_does_not_come_to_the_upgrade(
    machines: Callable[..., Machines], wait_until: Callable[..., None]
) -> None:
    cluster = machines()
    line = one("upgrade.md", "kimberlite birth --without")
    cluster.processes.start(0)
    wait_until(lambda: cluster.status(0) is not None, "it runs")
    cluster.here(line, 0, code=13)
    cluster.processes.kill(0)
    for index in (0, 1):
        cluster.here(line, index)
        cluster.processes.start(index)
    cluster.processes.wait_ready(60, need=2)
    assert cluster.read() == EVENTS
    cluster.append(b"without it")
    before = (cluster.replicas[2].data / "superblock").read_bytes()
    cluster.processes.start(2)  # it comes after all
    assert cluster.exit_code(2) == 26
    assert (cluster.replicas[2].data / "superblock").read_bytes() == before
    cluster.processes.stop()
    cluster.here(line, 0, code=37)
    cluster.here(one("upgrade.md", "kimberlite birth --again"), 1, code=37)


def test_all_begin_anew_when_one_was_told_something_else(
    machines: Callable[..., Machines], wait_until: Callable[..., None]
) -> None:
    cluster = machines()
    for index in (0, 1):
        cluster.processes.start(index)
    wait_until(lambda: "replica 2" in str((cluster.status(0) or {}).get("unhealthy")), "both have met")
    cluster.processes.stop()
    before = [cluster.inspect(index)["incarnation"] for index in range(3)]
    for index in range(3):
        cluster.here(one("upgrade.md", "kimberlite birth --again"), index)
    assert not {cluster.inspect(index)["incarnation"] for index in range(3)} & set(before)
    cluster.processes.start_all()
    cluster.processes.wait_ready(60)
    assert cluster.read() == EVENTS


def test_a_disk_is_lost_and_the_safe_way_keeps_every_event_at_its_position(
    machines: Callable[..., Machines], wait_until: Callable[..., None]
) -> None:
    """docs/cluster.md, "A disk that is lost"."""
    cluster = machines(old=False)
    cluster.processes.start_all()
    cluster.processes.wait_ready(60)
    lines = [b"line %d" % number for number in range(50)]
    cluster.append(*lines)
    cluster.processes.kill(1)
    shutil.rmtree(cluster.replicas[1].data)
    own = cluster.command("inspect", "superblock", "--json", cluster.replicas[0].data)
    who = ("--cluster", json.loads(own.stdout)["cluster"], "--replica", 1, "--addresses")
    items = [item for setting in cluster.settings for item in ("--set", setting)]
    cluster.command("format", *who, ",".join(cluster.processes.addresses), *items, cluster.replicas[1].data)
    cluster.processes.start(1)
    assert cluster.exit_code(1) == 26
    assert "docs/cluster.md" in cluster.replicas[1].last_log_line()
    cluster.append(b"the others go on")
    lines.append(b"the others go on")

    status = json.loads(cluster.here(one("cluster.md", "kimberlite status") + " --json", 0, code=None).stdout)
    best = max((row for row in status["replicas"] if row["reachable"]), key=lambda row: int(row["commit"]))["replica"]
    cluster.here(one("cluster.md", "kimberlite backup"), best)
    cluster.processes.stop()
    for index in range(3):
        cluster.here(one("cluster.md", "kimberlite restore"), index)
    cluster.go_on_from(cluster.directory / "new")
    cluster.processes.start_all()
    cluster.processes.wait_ready(60)
    assert cluster.read() == lines
    cluster.append(b"and on")
    done = cluster.command("read", "--from", str(len(lines)), addresses=cluster.processes.addresses)
    assert done.stdout == b"and on\n"


def test_replicas_from_different_backups_refuse_each_other(
    machines: Callable[..., Machines], wait_until: Callable[..., None]
) -> None:
    cluster = machines(old=False)
    cluster.processes.start_all()
    cluster.processes.wait_ready(60)
    cluster.append(b"one")
    cluster.here(one("cluster.md", "kimberlite backup"), 0)
    line = one("cluster.md", "kimberlite restore")
    for index in (0, 1):
        cluster.here(line, index)
    cluster.append(b"two")
    cluster.here(one("cluster.md", "kimberlite backup"), 0)
    cluster.here(line, 2)
    cluster.processes.stop()
    cluster.go_on_from(cluster.directory / "new")
    cluster.processes.start_all()
    wait_until(
        lambda: all("bound to something else" in str((cluster.status(at) or {}).get("unhealthy")) for at in (0, 2)),
        "they refuse each other",
    )
    assert {(cluster.status(index) or {})["status"] for index in range(3)} == {"unborn"}


def test_too_many_are_lost_and_what_is_left_is_restored(machines: Callable[..., Machines]) -> None:
    """docs/cluster.md, "When too many are lost"."""
    cluster = machines(old=False)
    cluster.processes.start_all()
    cluster.processes.wait_ready(60)
    lines = [b"line %d" % number for number in range(20)]
    cluster.append(*lines)
    line = one("cluster.md", "kimberlite recover assess").replace(" /mnt/other/kimberlite", "")
    cluster.here(f"kimberlite backup --include-uncommitted {cluster.replicas[0].data} /backup/orders", 0, code=29)
    cluster.processes.stop()
    found = {index: json.loads(cluster.here(line + " --json", index).stdout) for index in range(3)}
    best = max(found, key=lambda index: (found[index]["known"][0]["log_view"], found[index]["known"][0]["op"]))
    for index in range(3):
        if index != best:
            shutil.rmtree(cluster.replicas[index].data)
    said = cluster.here(line, best).stdout.decode()
    assert "kimberlite backup --include-uncommitted" in said
    cluster.here(one("cluster.md", "kimberlite backup").replace("backup", "backup --include-uncommitted", 1), best)
    for index in range(3):
        cluster.here(one("cluster.md", "kimberlite restore"), index)
    cluster.go_on_from(cluster.directory / "new")
    cluster.processes.start_all()
    cluster.processes.wait_ready(60)
    assert cluster.read() == lines
