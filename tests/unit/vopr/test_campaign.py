"""Totals of a campaign, and a campaign that is cut short and goes on."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kimberlite.errors import CampaignInUseError, CampaignStateError
from kimberlite.vopr import campaign as campaigns
from kimberlite.vopr import run as runs
from kimberlite.vopr.campaign import LABELS, Campaign, Progress
from kimberlite.vopr.run import Outcome

KEY = {"seeds": [0, 6], "plan": "default", "requests": 3}


def outcome(seed: int = 0, **fields: object) -> Outcome:
    made = Outcome(seed, "hash", 10, "", "", "", {"torn": 1}, ())
    return dataclasses.replace(made, **fields)  # type: ignore[arg-type]


def test_the_hash_of_a_campaign_depends_on_each_run_and_on_their_order() -> None:
    hashes = set()
    for seeds in ([1, 2], [2, 1], [1], [1, 2, 3]):
        campaign = Campaign()
        for seed in seeds:
            campaign.add(outcome(seed))
        hashes.add(campaign.trace_hash)
    assert len(hashes) == 4


def test_a_campaign_counts() -> None:
    campaign = Campaign()
    campaign.add(outcome(0))
    campaign.add(outcome(1, check="I1 agreement", labels={"torn": 2, "FAULTY": 0}))
    summary = campaign.summary()
    assert list(summary) == ["seeds", "violations", "trace_hash", "messages", "messages_per_s", "wall_s", "labels"]
    assert (summary["seeds"], summary["violations"], summary["messages"]) == (2, 1, 20)
    assert summary["labels"] == {"torn": 3}
    assert [each.seed for each in campaign.violations] == [1]


def test_a_campaign_must_have_reached_what_so_many_seeds_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaigns, "LABELS", {"torn": 2, "rare": 3, "rarer": 4})
    campaign = Campaign()
    unreached = []
    for seed in range(4):
        campaign.add(outcome(seed))
        unreached.append(campaign.unreached())
    assert unreached == [[], [], ["rare"], ["rare", "rarer"]]
    campaign.add(outcome(4, labels={"rare": 1, "rarer": 1}))
    assert campaign.unreached() == []


def test_where_every_disk_lies_nothing_is_demanded_that_lies_spare() -> None:
    lying, honest = Campaign(), Campaign()
    for seed in range(100):
        lying.add(outcome(seed, labels={"DISK_LIES": 1}))
        honest.add(outcome(seed))
    assert set(honest.unreached()) - set(lying.unreached()) == {"END_ROT", "HOLE_ROT", "TRIM_ROT"}


def test_every_mechanism_is_demanded_of_a_campaign() -> None:
    from kimberlite.vopr.persistent import FAULTS

    assert {f"PERSISTENT {name}" for name in FAULTS} <= set(LABELS)
    assert {"FORFEITED", "ABDICATED", "STUCK", "CANDIDATE_SETTLED", "GAVE_UP_ABOVE"} <= set(LABELS)
    assert {"WRITTEN_IN_A_LATER_VIEW", "DROPPED_BROKEN_CHAIN"} <= set(LABELS)


def in_one_go() -> Campaign:
    campaign = Campaign()
    for each in runs.outcomes(0, 6, 3):
        campaign.add(each)
    return campaign


def go_on(progress: Progress, seeds: int, jobs: int = 1) -> Campaign:
    """So many more of the six, then it is killed: what was not saved is lost."""
    campaign = progress.load()
    for count, each in enumerate(runs.outcomes(campaign.seeds, 6, 3, jobs), 1):
        if count > seeds:
            break
        campaign.add(each)
        progress.save_when_due(campaign)
    return campaign


@pytest.mark.slow
def test_a_campaign_that_is_killed_again_and_again_ends_as_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    whole = in_one_go()
    monkeypatch.setattr(campaigns, "SAVE_S", 0.0)
    go_on(Progress(path, KEY), 2)
    monkeypatch.setattr(campaigns, "SAVE_S", 1000.0)
    assert go_on(Progress(path, KEY), 2).seeds == 4, "not saved"
    monkeypatch.setattr(campaigns, "SAVE_S", 0.0)
    assert go_on(Progress(path, KEY), 3, jobs=2).seeds == 5
    done = go_on(Progress(path, KEY), 6)
    assert (done.trace_hash, done.seeds, done.messages) == (whole.trace_hash, 6, whole.messages)
    assert (done.labels, done.first) == (whole.labels, whole.first)
    assert go_on(Progress(path, KEY), 6).trace_hash == whole.trace_hash, "there is nothing left to do"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_violations_and_time_are_kept(tmp_path: Path) -> None:
    campaign = Campaign(started=time.monotonic() - 100)
    campaign.add(outcome(3, check="I1 agreement", violation="two", faults=((1, "crash", 2),)))
    Progress(tmp_path / "state", KEY).save(campaign)
    again = Progress(tmp_path / "state", KEY).load()
    assert again.violations == campaign.violations
    assert again.wall_s == campaign.wall_s >= 100
    again.add(outcome(4))
    assert again.wall_s >= campaign.wall_s


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"seeds": [0, 7]}, r"its seeds is \[0, 6\], here it is \[0, 7\]"),
        ({"plan": "crowded"}, "its plan is default, here it is crowded"),
        ({"requests": 4}, "its requests is 3, here it is 4"),
    ],
)
def test_the_state_of_another_campaign_is_refused(tmp_path: Path, other: dict[str, object], what: str) -> None:
    path = tmp_path / "state"
    Progress(path, KEY).save(Campaign())
    before = path.read_bytes()
    with pytest.raises(CampaignStateError, match=what) as caught:
        Progress(path, {**KEY, **other}).load()
    assert caught.value.path == str(path)
    assert path.read_bytes() == before


def test_the_state_of_other_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    Progress(path, KEY).save(Campaign())
    monkeypatch.setattr(campaigns, "fingerprint", lambda: "another")
    with pytest.raises(CampaignStateError, match=r"its code is .*, here it is another; go on with the same arguments"):
        Progress(path, KEY).load()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "key": {}, "state": {}}', "\0"])
def test_a_file_that_is_no_state_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state"
    path.write_text(text)
    with pytest.raises(CampaignStateError, match="is no state of a campaign"):
        Progress(path, KEY).load()


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text(json.dumps({"format": 2}))
    with pytest.raises(CampaignStateError, match="is of format 2, this release writes 1"):
        Progress(path, KEY).load()


def test_a_state_with_a_hole_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    Progress(path, KEY).save(Campaign())
    value = json.loads(path.read_text())
    del value["state"]["labels"]
    path.write_text(json.dumps(value))
    with pytest.raises(CampaignStateError, match="is no state of a campaign"):
        Progress(path, KEY).load()


# One process at a time


@pytest.mark.slow
def test_a_second_process_is_told_who_goes_on_with_that_campaign(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with Progress(path, KEY) as first:
        first.save(in_one_go())
        with (
            pytest.raises(CampaignInUseError, match=f"in use by process {os.getpid()},") as caught,
            Progress(path, KEY),
        ):
            pytest.fail("two at a time")
        assert (caught.value.pid, caught.value.path) == (os.getpid(), str(path))
        with Progress(tmp_path / "other", KEY):
            pass
    with Progress(path, KEY) as again:
        assert again.load().seeds == in_one_go().seeds
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state"
    program = (
        "import sys, time; from pathlib import Path; from kimberlite.vopr.campaign import Progress\n"
        "with Progress(Path(sys.argv[1]), {}):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(CampaignInUseError, match=f"process {other.pid},"), Progress(path, KEY):
            pytest.fail("two at a time")
        other.kill()
    with Progress(path, KEY):
        pass


def test_a_lock_that_is_removed_while_it_is_taken_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it the one that held it has gone."""
    path, locked = tmp_path / "state", list[int]()
    flock = fcntl.flock

    def slow(descriptor: int, how: int) -> None:
        if not locked:
            (tmp_path / "state.lock").unlink()
        locked.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr(campaigns.fcntl, "flock", slow)
    with Progress(path, KEY):
        assert len(locked) == 2
        monkeypatch.undo()
        with pytest.raises(CampaignInUseError), Progress(path, KEY):
            pytest.fail("two at a time")
