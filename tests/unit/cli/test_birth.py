"""birth, recover assess, upgrade check and backup --include-uncommitted, on real data directories."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lab import prepare

from kimberlite._fast.framing import make_header
from kimberlite.cli import main, probe
from kimberlite.cli import upgrade as upgrading
from kimberlite.config import CONFIG_NAME, Config, new_replica
from kimberlite.errors import UnavailableError
from kimberlite.node import identity as identities
from kimberlite.node.format import make_directory, write_config
from kimberlite.storage import birth, superblock
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.store import Store, format_store
from kimberlite.storage.superblock import SuperblockFile
from kimberlite.types import ZERO16, Birth, Identity, Operation, ViewState, root_header
from kimberlite.vsr import record as records
from kimberlite.vsr.record import Role

CLUSTER = "00112233445566778899aabbccddeeff"


def config_of(replica: int, count: int = 3) -> Config:
    addresses = tuple(f"127.0.0.1:{7100 + index}" for index in range(count))
    settings = ("storage.unsafe=true", "storage.segment_bytes=8388608")
    return new_replica(CLUSTER, replica, addresses, settings, "test")


def make(
    data: Path, replica: int, *, count: int = 3, ops: int = 0, known: int = 0, view: int = 3, old: bool = True
) -> Path:
    """Data with so many ops, the last `known` of which says what is committed: of the first release, or of this one,
    not a member of its cluster yet."""
    config = config_of(replica, count)
    make_directory(data)
    disk = FileDisk(data, unsafe=True)
    cluster = bytes.fromhex(CLUSTER)
    draft = identities.draft_of(config, b"o" * 16)
    format_store(
        disk,
        make_header,
        cluster=cluster,
        replica=replica,
        replica_count=count,
        segment_bytes=8 << 20,
        identity=None if old else identities.unborn(draft, replica, bytes([replica + 1]) * 16),
    )
    store = Store(disk, make_header)
    store.recover()
    last = root_header(make_header, cluster)
    store.set_view_state(1, ViewState(view, view, suffix=(last,)))
    for op in range(1, ops + 1):
        message = prepare(
            last, b"", view=view, replicas=count, cluster=cluster, commit=min(op - 1, known), operation=Operation.NOOP
        )
        store.append(2, [message])
        last = message.header
    disk.flush()
    store.completions()
    disk.close()
    write_config(config, data / CONFIG_NAME)
    return data


def identity_of(data: Path) -> Identity:
    disk = FileDisk(data, readonly=True)
    try:
        return birth.read(disk, SuperblockFile(disk).current)
    finally:
        disk.close()


def version_of(data: Path) -> int:
    return int.from_bytes((data / superblock.NAME).read_bytes()[36:40], "little")


def set_identity(data: Path, identity: Identity) -> None:
    disk = FileDisk(data, unsafe=True)
    birth.write(disk, SuperblockFile(disk), identity)
    disk.close()


def bound(data: Path, replica: int) -> Identity:
    """Bind the replica to two others, as it would on meeting them."""
    own = identities.at_start(config_of(replica), identity_of(data), bytes([replica + 1]) * 16)
    draft = records.decode(own.record)
    for slot in range(3):
        draft = records.bind(draft, slot, bytes([slot + 1]) * 16)
    who = identities.unborn(draft, replica, own.incarnation, own)
    set_identity(data, who)
    return who


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, json.loads(out) if "--json" in arguments and out else out, err


# birth


@pytest.mark.parametrize("old", [True, False])
def test_again_makes_somebody_new_of_who_is_no_member(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: bool
) -> None:
    data = make(tmp_path / "1", 1, ops=5, old=old)
    before = bound(data, 1)
    assert before.birth is Birth.BOUND
    code, said, _ = run(capsys, "birth", "--again", "--json", data)
    assert code == 0
    after = identity_of(data)
    assert (said["before"], said["after"]) == (before.incarnation.hex(), after.incarnation.hex())
    assert after.birth is Birth.UNBORN
    assert after.incarnation not in (before.incarnation, ZERO16)
    draft = records.decode(after.record)
    assert [member.slot for member in draft.members if member.incarnation != ZERO16] == [1]
    assert draft.origin == (ZERO16 if old else b"o" * 16)
    assert version_of(data) == (2 if old else 3)
    disk = FileDisk(data, unsafe=True)
    assert Store(disk, make_header).recover().settled == 5
    disk.close()


def test_again_does_not_need_what_it_forgets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(tmp_path / "1", 1)
    bound(data, 1)
    (data / birth.NAME).write_bytes(bytes((data / birth.NAME).stat().st_size))
    assert run(capsys, "birth", "--without", 2, data)[0] == 14
    assert run(capsys, "birth", "--again", data)[0] == 0
    assert identity_of(data).birth is Birth.UNBORN


def test_without_goes_on_without_and_counts_the_absent_in_quorums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafts = []
    for replica in (0, 1):
        data = make(tmp_path / str(replica), replica, ops=3)
        before = bound(data, replica)
        assert run(capsys, "birth", "--without", 2, data)[0] == 0
        after = identity_of(data)
        assert after.incarnation != before.incarnation
        assert after.birth is Birth.UNBORN
        assert version_of(data) == 2
        drafts.append((records.decode(after.record), after.incarnation))
    (first, own), (_, other) = drafts
    whole = records.bind(first, 1, other)
    assert whole.is_bound
    assert whole.members[2].role is Role.LOST
    assert whole.voters == (0, 1, 2)
    assert own != other


@pytest.mark.parametrize(("count", "without"), [(1, [0]), (2, [1]), (3, [1, 2]), (4, [1, 2]), (5, [0, 1, 2])])
def test_without_is_refused_when_too_few_are_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, without: list[int]
) -> None:
    data = make(tmp_path / "own", count - 1, count=count)
    before = identity_of(data)
    options = [item for slot in without for item in ("--without", slot)]
    code, _, err = run(capsys, "birth", *options, data)
    assert code == 37
    assert "nothing was changed" in err.lower()
    assert identity_of(data) == before


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_without_allows_as_many_as_a_view_change_and_a_commit_can_miss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    data = make(tmp_path / "own", count - 1, count=count)
    most = {3: 1, 4: 1, 5: 2, 6: 2}[count]
    for slot in range(most):  # one after another is as good as together
        assert run(capsys, "birth", "--without", slot, data)[0] == 0
    assert run(capsys, "birth", "--without", most, data)[0] == 37


def test_a_member_is_never_made_somebody_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(tmp_path / "1", 1, old=False)
    who = bound(data, 1)
    record = records.born(records.decode(who.record))
    set_identity(data, replace(who, birth=Birth.FORMED, record=records.encode(record)))
    before = (data / superblock.NAME).read_bytes()
    for options in (["--again"], ["--without", 2]):
        code, _, err = run(capsys, "birth", *options, data)
        assert code == 37
        assert "member already" in err
    assert (data / superblock.NAME).read_bytes() == before


def test_birth_wants_one_of_its_two_options_and_the_data_for_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make(tmp_path / "1", 1)
    assert run(capsys, "birth", data)[0] == 2
    assert run(capsys, "birth", "--again", "--without", 2, data)[0] == 2
    assert run(capsys, "birth", "--without", 1, data)[0] == 37
    assert run(capsys, "birth", "--without", 3, data)[0] == 37
    assert run(capsys, "birth", "--again", tmp_path)[0] == 12
    disk = FileDisk(data, unsafe=True)
    assert run(capsys, "birth", "--again", data)[0] == 13
    disk.close()


def test_verify_looks_at_what_says_who_the_replica_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(tmp_path / "1", 1, ops=5)
    bound(data, 1)
    assert run(capsys, "verify", data)[0] == 0
    raw = bytearray((data / birth.NAME).read_bytes())
    raw[superblock.COPY_BYTES + 100] ^= 1
    (data / birth.NAME).write_bytes(raw)
    code, text, _ = run(capsys, "verify", data)
    assert code == 0 and "harmless  copy-damaged" in text and "copy 1 of the birth fails its checksum" in text
    (data / birth.NAME).write_bytes(bytes(len(raw)))
    code, text, said = run(capsys, "verify", data)
    assert code == 14 and "DAMAGE    superblock-lost" in text and "kimberlite birth --again" in said


# recover assess


def test_the_best_is_the_newest_log_and_not_the_longest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longer = make(tmp_path / "0", 0, count=5, ops=9, known=4, view=3)
    newer = make(tmp_path / "1", 1, count=5, ops=6, known=5, view=8)
    code, said, _ = run(capsys, "recover", "assess", "--json", longer, newer)
    assert code == 0
    assert said["best"] == str(newer)
    assert (said["certain"], said["perhaps"]) == (5, 6)
    assert said["lost"] == [2, 3, 4]
    assert (said["is_complete"], said["is_quorum"]) == (False, False)
    code, text, _ = run(capsys, "recover", "assess", longer, newer)
    assert "perhaps acknowledged: ops 6 to 6" in text
    assert "on none of these" in text
    assert f"kimberlite backup --include-uncommitted {newer}" in text


def test_a_quorum_that_is_left_needs_no_recovery(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = [make(tmp_path / str(replica), replica, ops=3, known=2) for replica in (0, 2)]
    _, said, _ = run(capsys, "recover", "assess", "--json", *two)
    assert (said["lost"], said["is_complete"], said["is_quorum"]) == ([1], True, True)
    assert "start them" in run(capsys, "recover", "assess", *two)[1]


def test_damage_of_what_was_committed_is_said_with_who_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoiled = make(tmp_path / "0", 0, count=5, ops=8, known=6)
    other = make(tmp_path / "1", 1, count=5, ops=7, known=6)
    raw = bytearray((spoiled / "journal-00000000").read_bytes())
    raw[3 * 4096 + 30] ^= 1  # op 4
    (spoiled / "journal-00000000").write_bytes(raw)
    _, said, _ = run(capsys, "recover", "assess", "--json", spoiled, other)
    assert said["best"] == str(spoiled)
    assert [row["damaged"] for row in said["known"]] == [1, 0]
    text = run(capsys, "recover", "assess", spoiled, other)[1]
    assert f"op 4 is damaged in the best; {other} has it intact" in text


def test_data_that_a_process_runs_on_is_not_assessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = make(tmp_path / "0", 0), make(tmp_path / "1", 1)
    disk = FileDisk(other, unsafe=True)
    assert run(capsys, "recover", "assess", one, other)[0] == 13
    disk.close()
    assert run(capsys, "recover", "assess", one, other)[0] == 0


def test_what_can_not_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, same = make(tmp_path / "0", 0), make(tmp_path / "1", 0)
    assert run(capsys, "recover", "assess", one, same)[0] == 2
    assert run(capsys, "recover", "assess", one, make(tmp_path / "2", 1, count=5))[0] == 2
    assert run(capsys, "recover", "assess", tmp_path)[0] == 12


# backup --include-uncommitted


def test_what_is_not_known_to_be_committed_is_taken_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(tmp_path / "0", 0, ops=9, known=4)
    code, said, _ = run(capsys, "backup", "--json", data, tmp_path / "usual")
    assert (code, said["last_op"], said["uncertain"]) == (0, 4, 5)
    code, said, _ = run(capsys, "backup", "--include-uncommitted", "--json", data, tmp_path / "all")
    assert (code, said["last_op"], said["uncertain"]) == (0, 9, 0)
    raw = bytearray((data / "journal-00000000").read_bytes())
    raw[6 * 4096 + 30] ^= 1  # op 7: what is behind it can not be told from what never was
    (data / "journal-00000000").write_bytes(raw)
    code, said, _ = run(capsys, "backup", "--include-uncommitted", "--json", data, tmp_path / "rest")
    assert (code, said["last_op"]) == (0, 6)
    disk = FileDisk(data, unsafe=True)
    assert run(capsys, "backup", "--include-uncommitted", data, tmp_path / "more")[0] == 13
    disk.close()

    def answers(addresses: object, timeout: float) -> list[object]:
        return [UnavailableError("down"), {"cluster": CLUSTER}, UnavailableError("down")]

    monkeypatch.setattr("kimberlite.cli.backup.fetch_all", answers)
    code, _, err = run(capsys, "backup", "--include-uncommitted", data, tmp_path / "more")
    assert code == 29
    assert "127.0.0.1:7101 answers" in err


# upgrade check


def told(replica: int, **changes: object) -> probe.Told:
    status = {"replica": replica, "status": "normal", "op": 9, "commit": 9, "applied": 9, "faulty": 0, **changes}
    return probe.Told(status, config_of(0).cluster.addresses)


ALL = [told(0), told(1), told(2)]
NOT_READY: list[tuple[str, list[probe.Told | UnavailableError]]] = [
    ("does not answer", [told(0), UnavailableError("down"), told(2)]),
    ("not all have everything", [told(0, op=10), told(1), told(2)]),
    ("not all have everything", [told(0), told(1, commit=8), told(2)]),
    ("not all have everything", [told(0), told(1), told(2, applied=8)]),
    ("is replica 1, not 2", [told(0), told(1), told(1)]),
    ("not in normal operation", [told(0), told(1, status="view_change"), told(2)]),
    ("repairs 2 damaged", [told(0), told(1, faulty=2), told(2)]),
    ("other addresses", [told(0), replace(told(1), members=("a:1", "b:1", "c:1")), told(2)]),
]


def test_all_replicas_that_have_everything_are_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(tmp_path / "0", 0)
    monkeypatch.setattr(probe, "ask_all", lambda *_: ALL)
    code, said, _ = run(capsys, "upgrade", "check", "--json", data)
    assert (code, said["ready"], said["problems"]) == (0, True, [])
    assert said["settings"]["limits.sessions_max"] == 1024
    other = run(capsys, "upgrade", "check", "--json", make(tmp_path / "1", 1))[1]
    assert other["settings_number"] == said["settings_number"]
    code, text, _ = run(capsys, "upgrade", "check", data)
    assert code == 0
    assert "ready: stop all" in text


@pytest.mark.parametrize(("why", "answers"), NOT_READY)
def test_whoever_lacks_something_is_named(why: str, answers: list[probe.Told | UnavailableError]) -> None:
    assert any(why in sentence for sentence in upgrading.problems(config_of(0), answers)), why
    assert upgrading.problems(config_of(0), ALL) == []


def test_the_check_waits_until_all_have_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([[told(0, op=10), told(1), told(2)], ALL])
    monkeypatch.setattr(probe, "ask_all", lambda *_: next(answers))
    assert run(capsys, "upgrade", "check", make(tmp_path / "0", 0))[0] == 0
    monkeypatch.setattr(probe, "ask_all", lambda *_: [told(0), UnavailableError("down"), told(2)])
    code, text, _ = run(capsys, "upgrade", "check", "--timeout", "0.1", tmp_path / "0")
    assert code == 35
    assert "replica 1 does not answer" in text


# inspect


def test_inspect_shows_who_a_replica_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(tmp_path / "1", 1)
    _, said, _ = run(capsys, "inspect", "superblock", "--json", data)
    assert (said["version"], said["birth"], said["members"]) == (2, "unborn", [])
    bound(data, 1)
    _, said, _ = run(capsys, "inspect", "superblock", "--json", data)
    assert (said["version"], said["birth"], said["incarnation"], said["epoch"]) == (2, "bound", "02" * 16, 0)
    assert said["members"][2] == {
        "slot": 2,
        "role": "voter",
        "incarnation": "03" * 16,
        "peer": "127.0.0.1:8102",
        "client": "127.0.0.1:7102",
    }
    assert "127.0.0.1:8102" in run(capsys, "inspect", "superblock", data)[1]
