"""`vopr run`, `replay`, `minimize`, `canaries`: output, files and exit codes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kimberlite.cli import main
from kimberlite.errors import CanaryMissedError, ViolationError
from kimberlite.vopr import corruption, crashes
from kimberlite.vopr import run as runs
from kimberlite.vopr.campaign import Progress
from kimberlite.vopr.canaries import CANARIES, Hunt, planted
from kimberlite.vopr.run import Outcome, Script


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds 1 and 2 break something."""
    original = runs.run

    def run(script: Script, *, full_trace: bool = False) -> Outcome:
        if script.seed in (1, 2):
            return Outcome(
                script.seed, "abc", 5, "I1 agreement", "I1 agreement: two", "the tail", {}, ((1, "crash", 0),)
            )
        return original(script, full_trace=full_trace)

    monkeypatch.setattr(runs, "run", run)


def test_run_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vopr", "run", "--seeds", "0:2", "--requests", "5"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "", "no progress where nobody looks"
    (line,) = captured.out.splitlines()
    assert line.startswith("2 seeds, 0 violations, trace hash ")


def test_run_json_is_one_line_with_the_fixed_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vopr", "run", "--seeds", "0:2", "--requests", "5", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    row = json.loads(line)
    assert list(row) == [
        "seeds",
        "violations",
        "trace_hash",
        "messages",
        "messages_per_s",
        "wall_s",
        "labels",
        "complete",
    ]
    assert (row["seeds"], row["violations"]) == (2, 0)
    assert row["messages"] > 0 and row["labels"]["PREPARED"] > 0


@pytest.mark.usefixtures("failing")
def test_run_reports_each_violation_with_its_replay(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vopr", "run", "--seeds", "0:3", "--requests", "5"]) == ViolationError.exit_code == 51
    captured = capsys.readouterr()
    for seed in (1, 2):
        assert f"seed {seed}: I1 agreement: two\n  replay: kimberlite vopr replay {seed} --requests 5\n" in captured.out
    assert "    the tail" in captured.out
    assert "3 seeds, 2 violations" in captured.out
    assert "2 violations in 3 seeds (1, 2)" in captured.err


@pytest.mark.usefixtures("failing")
def test_run_json_keeps_violations_out_of_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vopr", "run", "--seeds", "0:3", "--requests", "5", "--json"]) == 51
    captured = capsys.readouterr()
    assert json.loads(captured.out)["violations"] == 2
    assert "seed 1: I1 agreement" in captured.err


def test_run_fails_when_it_proves_too_little(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kimberlite.vopr.campaign.LABELS", {"PREPARED": 1, "never": 1})
    assert main(["vopr", "run", "--seeds", "0:1", "--requests", "3"]) == 51
    assert "E4 coverage: in 1 seeds nothing reached never:" in capsys.readouterr().err


def test_run_fails_when_a_seed_is_not_one_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = iter("abc")
    monkeypatch.setattr(runs, "run", lambda script: Outcome(0, next(hashes), 1, "", "", "", {}, ()))
    assert main(["vopr", "run", "--seeds", "0:1"]) == 51
    assert "E0 determinism: the trace of seed 0 is a, then b" in capsys.readouterr().out


@pytest.mark.parametrize("seeds", ["5", "5:5", "6:5", "a:b", "-1:4", ""])
def test_run_refuses_what_is_no_range(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vopr", "run", "--seeds", seeds]) == 2
    assert "is no range of seeds" in capsys.readouterr().err


def test_replay_is_exact_and_writes_the_whole_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = runs.run(Script(4, 10)).trace_hash
    path = tmp_path / "trace"
    assert main(["vopr", "replay", "4", "--requests", "10", "--trace", str(path)]) == 0
    assert f"seed 4, trace hash {expected}," in capsys.readouterr().out
    assert main(["vopr", "replay", "4", "--requests", "10", "--trace", "-"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert path.read_text().splitlines() == printed[:-1]
    assert len(printed) > 100
    assert main(["vopr", "replay", "4", "--requests", "10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trace_hash"] == expected


@pytest.mark.usefixtures("failing")
def test_replay_of_a_failing_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vopr", "replay", "1"]) == 51
    captured = capsys.readouterr()
    assert captured.out.startswith("the tail\n")
    assert captured.err == "kimberlite: I1 agreement: two\n"


@pytest.mark.slow
def test_minimize_writes_what_replay_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.json"
    with planted("quorum-off-by-one"):
        seed = next(str(seed) for seed in range(50) if runs.run(runs.Script(seed, 8)).check == "I8 quorum audit")
    command = ["vopr", "minimize", seed, "--requests", "8", "--canary", "quorum-off-by-one", "--output", str(path)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "I8 quorum audit" in out
    assert f"replay: kimberlite vopr replay {seed} --script {path} --canary quorum-off-by-one" in out
    with planted("quorum-off-by-one"):
        assert runs.run(Script.parse(path.read_text())).check == "I8 quorum audit"
    assert main(["vopr", "replay", seed, "--script", str(path), "--canary", "quorum-off-by-one"]) == 51
    assert main(["vopr", "replay", seed, "--script", str(path)]) == 0
    capsys.readouterr()
    assert main(["vopr", "replay", "99", "--script", str(path)]) == 2
    assert f"is a run of seed {seed}, not 99" in capsys.readouterr().err
    assert main([*command, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["check"], row["faults"], row["script"]) == ("I8 quorum audit", [], str(path))


@pytest.mark.parametrize(
    ("fault", "said"), [((2_000_000, "frobnicate", 7), "'frobnicate'"), ((2_000_000, "crash", -5), "is -5")]
)
def test_a_script_with_a_fault_that_can_not_be_is_refused(
    fault: tuple[int, str, int], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "script.json"
    path.write_text(json.dumps({"seed": 3, "requests": 5, "overrides": {}, "faults": [fault]}))
    assert main(["vopr", "replay", "3", "--script", str(path)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.out == ""


@pytest.mark.slow
def test_a_named_plan_is_run_and_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    expected = runs.run(Script(0, 3, name="crowded")).trace_hash
    assert main(["vopr", "replay", "0", "--plan", "crowded", "--requests", "3"]) == 0
    assert expected in capsys.readouterr().out
    assert main(["vopr", "run", "--seeds", "0:1", "--plan", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.usefixtures("failing")
def test_the_replay_of_a_violation_names_its_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vopr", "run", "--seeds", "1:2", "--plan", "crowded", "--requests", "5"]) == 51
    assert "replay: kimberlite vopr replay 1 --plan crowded --requests 5\n" in capsys.readouterr().out


def test_minimize_refuses_a_run_that_breaks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vopr", "minimize", "4", "--requests", "2"]) == 2
    assert "seed 4 breaks nothing" in capsys.readouterr().err


def test_canaries_say_how_they_were_found(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["vopr", "canaries", "--only", "quorum-off-by-one", "--only", "agreement-with-itself"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    seeds = int(lines[0].split()[1])  # which one it is changes with everything that is drawn
    assert lines[0].split() == ["quorum-off-by-one", str(seeds), "seeds", "I8", "quorum", "audit"]
    assert lines[1].split() == ["agreement-with-itself", "0", "seeds", "drill"]
    assert lines[2] == "2 of 2 planted bugs found"
    assert main([*command, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["name"], row["seeds"], row["check"]) for row in rows] == [
        ("quorum-off-by-one", seeds, "I8 quorum audit"),
        ("agreement-with-itself", 0, "drill"),
    ]


def test_canaries_fail_when_one_is_missed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def hunt(name: str, seeds_max: int, requests: int, first: int) -> Hunt:
        return Hunt(name, seeds_max, "" if name == "quorum-off-by-one" else "I1", "")

    monkeypatch.setattr("kimberlite.vopr.canaries.hunting.hunt", hunt)
    assert main(["vopr", "canaries", "--seeds-max", "3"]) == CanaryMissedError.exit_code == 52
    captured = capsys.readouterr()
    assert "planted bugs not found: quorum-off-by-one" in captured.err
    assert f"{len(CANARIES) - 1} of {len(CANARIES)} planted bugs found" in captured.out
    assert main(["vopr", "canaries", "--only", "nonsense"]) == 2


@pytest.mark.slow
def test_enumerate_corruption(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["vopr", "enumerate", "corruption", "--every", "50021"]
    assert main(command) == 0
    header, *rows, last, summary = capsys.readouterr().out.splitlines()
    assert header.split() == ["damage", "images", "repaired", "healed", "harmless", "refused", "wrong"]
    assert last.split()[0] == "all" and len(rows) > 10
    assert summary.startswith(f"{last.split()[1]} images, 0 failures, ")
    assert main([*command, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    totals = json.loads(line)
    assert totals["images"] == sum(totals[name] for name in ("repaired", "healed", "harmless", "refused"))
    assert (totals["wrong"], totals["failures"], totals["complete"]) == (0, [], True)

    def crashing(*arguments: object) -> str:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("kimberlite.vopr.corruption.judge", crashing)
    assert main(command) == 51
    captured = capsys.readouterr()
    assert "ZeroDivisionError: boom" in captured.out and "images went wrong" in captured.err


@pytest.mark.slow
def test_enumerate_crashes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["vopr", "enumerate", "crashes", "--every", "7001"]
    assert main(command) == 0
    header, *rows, last = capsys.readouterr().out.splitlines()
    assert header.split() == ["event", "images"] and rows
    events, images, failures, _ = last.split(", ")
    assert images.endswith(" images") and int(images.split()[0]) == sum(int(row.split()[-1]) for row in rows) >= 5
    assert events.endswith(" events") and failures == "0 failures"
    assert main([*command, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert report["images"] == int(images.split()[0]) and (report["wrong"], report["failures"]) == (0, [])
    assert report["complete"] is True

    def crashing(*arguments: object) -> str:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("kimberlite.vopr.crashes.judge", crashing)
    assert main(command) == 51
    captured = capsys.readouterr()
    assert "ZeroDivisionError: boom" in captured.out and "enumerate crashes --only 0:0`" in captured.err
    assert main(["vopr", "enumerate", "crashes", "--only", "0:0"]) == 51
    assert "0:0, replica 0, " in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["vopr", "enumerate", "crashes", "--only", "0:0"]) == 0
    assert main(["vopr", "enumerate", "crashes", "--only", "nonsense"]) == 2


# Cut short


def after(count: int, number: signal.Signals, original: Callable[..., object]) -> Callable[..., object]:
    """The same function; with call `count` there comes a signal."""
    calls = itertools.count(1)

    def called(*arguments: object, **keywords: object) -> object:
        if next(calls) == count:
            os.kill(os.getpid(), number)
        return original(*arguments, **keywords)

    return called


CUT_SHORT = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize(("number", "code"), CUT_SHORT)
def test_run_cut_short(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "run", after(3, number, runs.run))
    assert main(["vopr", "run", "--seeds", "0:90", "--requests", "5"]) == code
    captured = capsys.readouterr()
    assert "seed 1: I1 agreement: two" in captured.out
    assert captured.out.splitlines()[-1].startswith("2 seeds, 1 violations")
    assert f"ended by {number.name} after 2 of 90 seeds: what was printed is not all" in captured.err
    monkeypatch.setattr(runs, "run", after(2, number, runs.run))
    assert main(["vopr", "run", "--seeds", "0:90", "--requests", "5", "--json"]) == code
    row = json.loads(capsys.readouterr().out)
    assert (row["seeds"], row["complete"]) == (1, False)


@pytest.mark.slow
@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize(("number", "code"), CUT_SHORT)
def test_run_goes_on_where_it_was_cut_short(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["vopr", "run", "--seeds", "0:6", "--requests", "5", "--json"]
    assert main(command) == 51
    whole = json.loads(capsys.readouterr().out)
    command += ["--state", str(tmp_path / "state")]
    with monkeypatch.context() as patched:
        patched.setattr(runs, "run", after(3, number, runs.run))
        assert main(command) == code
    row = json.loads(capsys.readouterr().out)
    assert (row["seeds"], row["complete"]) == (2, False)
    for said in ("2 of 6 seeds are done, 1 of them with a violation", "6 of 6 seeds are done"):
        assert main(command) == 51
        captured = capsys.readouterr()
        row = json.loads(captured.out)
        assert {**row, "wall_s": 0, "messages_per_s": 0} == {**whole, "wall_s": 0, "messages_per_s": 0}
        assert said in captured.err
        assert "2 violations in 6 seeds (1, 2)" in captured.err
    assert main([*command[:3], "0:7", *command[4:]]) == 2
    assert "is the state of another campaign: its seeds is [0, 6], here it is [0, 7]" in capsys.readouterr().err


def test_a_campaign_that_another_process_goes_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["vopr", "run", "--seeds", "0:1", "--requests", "3", "--state", str(tmp_path / "state")]
    with Progress(tmp_path / "state", {}):
        assert main(command) == 2
    captured = capsys.readouterr()
    assert f"in use by process {os.getpid()}, which goes on with that campaign" in captured.err
    assert captured.out == ""
    assert not (tmp_path / "state").exists()
    assert main(command) == 0


@pytest.mark.slow
def test_run_that_is_killed_goes_on(tmp_path: Path) -> None:
    """A process that can not say good-bye."""
    path = tmp_path / "state"
    program = (
        "import os, sys; from kimberlite.cli import main; from kimberlite.vopr import campaign, run as runs\n"
        "campaign.SAVE_S, original = 0.0, runs.run\n"
        "def run(script):\n"
        "    if script.seed == 2: os.kill(os.getpid(), 9)\n"
        "    return original(script)\n"
        "if sys.argv[1] == 'dies': runs.run = run\n"
        "sys.exit(main(['vopr', 'run', '--seeds', '0:4', '--requests', '3', '--json', *sys.argv[2:]]))"
    )

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    whole = json.loads(start("lives").stdout)
    assert start("dies", "--state", str(path)).returncode == -signal.SIGKILL
    done = start("lives", "--state", str(path))
    assert "2 of 4 seeds are done" in done.stderr
    row = json.loads(done.stdout)
    assert (row["trace_hash"], row["messages"], row["seeds"]) == (whole["trace_hash"], whole["messages"], 4)


@pytest.mark.parametrize(("number", "code"), CUT_SHORT)
def test_canaries_cut_short(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hunt(name: str, seeds_max: int, requests: int, first: int) -> Hunt:
        return Hunt(name, 1, "I1", "")

    monkeypatch.setattr("kimberlite.vopr.canaries.hunting.hunt", after(3, number, hunt))
    assert main(["vopr", "canaries"]) == code
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "2 of 2 planted bugs found"
    assert f"ended by {number.name} after 2 of {len(CANARIES)} planted bugs" in captured.err


@pytest.mark.parametrize(("number", "code"), CUT_SHORT)
@pytest.mark.parametrize(("what", "part"), [("corruption", corruption.PART), ("crashes", crashes.PART)])
def test_enumerate_cut_short(
    what: str,
    part: int,
    number: signal.Signals,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(*arguments: object) -> str:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(f"kimberlite.vopr.{what}.judge", after(part + 7, number, wrong))
    assert main(["vopr", "enumerate", what]) == code
    captured = capsys.readouterr()
    assert f"{part} images, {part} failures" in captured.out and "ZeroDivisionError: boom" in captured.out
    assert f"ended by {number.name} after {part} of " in captured.err
    monkeypatch.setattr(f"kimberlite.vopr.{what}.judge", after(1, number, wrong))
    assert main(["vopr", "enumerate", what, "--json"]) == code
    row = json.loads(capsys.readouterr().out)
    assert (row["images"], row["complete"]) == (0, False)


@pytest.mark.parametrize(("number", "code"), CUT_SHORT)
def test_what_is_cut_short_leaves_no_process_behind(number: signal.Signals, code: int) -> None:
    """The signal goes to all of the group, as from a terminal, or from `timeout`."""
    command = [sys.executable, "-P", "-m", "kimberlite", "vopr", "enumerate", "corruption", "--jobs", "2", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(workers := children.read_text().split()) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert json.loads(out)["complete"] is False
    assert f"ended by {number.name} after " in err.decode()
    for worker in workers:
        assert not Path(f"/proc/{worker}").exists()


def test_enumerate_conversions(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["vopr", "enumerate", "conversions", "--every", "5003"]
    assert main(command) == 0
    header, *rows, last = capsys.readouterr().out.splitlines()
    assert header.split() == ["before", "cases"] and rows
    cases, failures, _ = last.split(", ")
    assert int(cases.split()[0]) == sum(int(row.split()[-1]) for row in rows) >= 2
    assert failures == "0 failures"

    def crashing(*arguments: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("kimberlite.vopr.conversion_crashes.judge", crashing)
    assert main([*command, "--json"]) == 51
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["wrong"] == report["cases"] and "ZeroDivisionError: boom" in report["failures"][0]
    assert "cases went wrong: all are whole; replica 0 loses power at write 1" in captured.err
