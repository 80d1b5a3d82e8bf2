"""One seed is one run: again, in another process, under another hash seed, with its faults given, shared out."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from kimberlite.errors import UsageError
from kimberlite.vopr import run as runs
from kimberlite.vopr.campaign import Campaign
from kimberlite.vopr.checkers import Violation
from kimberlite.vopr.faults import ARGUMENT_END, START_NS
from kimberlite.vopr.plan import DEFAULT
from kimberlite.vopr.run import Script, run

REQUESTS = 20


@pytest.mark.parametrize("seed", [3, 8])
def test_the_trace_is_the_same_in_every_process_and_under_every_hash_seed(seed: int) -> None:
    hashes = {run(Script(seed, REQUESTS)).trace_hash}
    for hash_seed in ("0", "12345"):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "kimberlite.vopr.run", str(seed), str(seed + 1), "1", str(REQUESTS), DEFAULT],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        hashes.add(runs.decode(json.loads(done.stdout)).trace_hash)
    assert len(hashes) == 1
    assert run(Script(seed + 1, REQUESTS)).trace_hash not in hashes


@pytest.mark.parametrize("seed", range(6))
def test_a_run_with_its_faults_given_is_the_run_that_drew_them(seed: int) -> None:
    drawn = run(Script(seed, REQUESTS))
    given = run(Script(seed, REQUESTS, faults=drawn.faults))
    assert given.trace_hash == drawn.trace_hash
    assert given.faults == drawn.faults
    if drawn.faults:
        assert run(Script(seed, REQUESTS, faults=())).trace_hash != drawn.trace_hash


def test_processes_share_a_campaign_without_changing_it() -> None:
    alone, shared = Campaign(), Campaign()
    for campaign, jobs in ((alone, 1), (shared, 3)):
        for each in runs.outcomes(0, 4, 5, jobs):
            campaign.add(each)
    assert alone.trace_hash == shared.trace_hash
    assert alone.labels == shared.labels
    assert (alone.seeds, alone.messages) == (shared.seeds, shared.messages) == (4, alone.messages)


def test_a_violation_keeps_its_name_and_its_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> None:
        raise Violation("I1 agreement", "two of them")

    monkeypatch.setattr(runs.World, "run", broken)
    found = run(Script(0, REQUESTS))
    assert (found.check, found.violation) == ("I1 agreement", "I1 agreement: two of them")


def test_whatever_stops_the_code_under_test_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> None:
        raise KeyError(17)

    monkeypatch.setattr(runs.World, "run", broken)
    found = run(Script(0, REQUESTS))
    assert found.check == "exception"
    assert "KeyError: 17 (broken, line" in found.violation


def test_a_run_that_differs_the_second_time_is_found() -> None:
    first = run(Script(0, 3))
    assert runs.check_determinism(0, first.trace_hash, 3) is None
    differs = runs.check_determinism(0, "other", 3)
    assert differs is not None and differs.check == "E0 determinism"


def test_a_script_survives_its_file() -> None:
    script = Script(
        7, 9, {"loss": 0.0, "clock_skew_ns": 0}, ((START_NS, "crash", 2), (3 * START_NS, "heal", 4)), "crowded"
    )
    assert Script.parse(script.to_json()) == script
    assert Script.parse(Script(7, 9, {}, ()).to_json()) == Script(7, 9, {}, ())
    assert Script.parse(Script(7).to_json()) == Script(7)
    assert (script.plan().loss, script.plan().requests) == (0.0, 27)


def test_a_script_that_names_no_plan_is_of_the_default_one() -> None:
    assert Script.parse('{"seed": 1, "requests": 2, "overrides": {}, "faults": null}') == Script(1, 2)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((START_NS, "frobnicate", 7), "no fault is called 'frobnicate'; there are crash, "),
        ((START_NS - 1, "crash", 7), "the fault 'crash' is to happen at 999999 ns, but a run begins at 1000000 ns"),
        ((START_NS, "crash", -1), "the argument of the fault 'crash' is -1: it is a number from 0 to"),
        ((START_NS, "crash", ARGUMENT_END), "the argument of the fault 'crash' is 4294967296"),
    ],
)
def test_a_fault_that_no_run_can_carry_out_is_refused_before_the_run(fault: tuple[int, str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Script(1, 2, {}, (fault,))
    text = json.dumps({"seed": 1, "requests": 2, "overrides": {}, "faults": [fault]})
    with pytest.raises(UsageError, match=message):
        Script.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"seed": 1, "requests": 1, "overrides": {"nonsense": 1}, "faults": null}',
        '{"seed": "x"}',
        '{"seed": 1, "requests": 1, "overrides": {}, "faults": [[2000000, "crash", "3"]]}',
        '{"seed": 1, "requests": 1, "overrides": {}, "faults": [[2000000, "crash", 1.5]]}',
        '{"seed": 1, "requests": 1, "overrides": {}, "faults": [[2000000, "crash"]]}',
    ],
)
def test_a_file_that_is_no_script_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no script of a run"):
        Script.parse(text)


@pytest.mark.parametrize("seed", [0, 2, 8, 10])
def test_a_replica_that_comes_back_far_behind_when_another_fails_is_caught_up_with(seed: int) -> None:
    """One each of the ways in which another one fails, without any other faults."""
    outcome = run(Script(seed, REQUESTS, {"late_ops": 400, "garbage": 0.0, "replica_count": 3}, ()))
    assert (outcome.check, outcome.violation) == ("", "")
    assert any(label.startswith("LATE_") for label in outcome.labels)
