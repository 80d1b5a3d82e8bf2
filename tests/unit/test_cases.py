"""The cases say what they are about, and their runner believes none of them without reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parents[1] / "cases"
PARTS = {"behind", "grey", "lab", "run", "truth"}  # scripts there that are no cases

OUTCOMES = {
    "passes": "return None",
    "fails": "case.check(False, 'two is not three')",
    "breaks": "raise OSError('no such thing')",
    "hangs": "import time; time.sleep(60)",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of cases with one of each outcome."""
    for script in ("lab.py", "run.py"):
        (tmp_path / script).write_text((CASES / script).read_text())
    for name, statement in OUTCOMES.items():
        (tmp_path / f"{name}.py").write_text(
            f'"""It {name}."""\nfrom lab import main\nSECONDS = {2 if name == "hangs" else 30}\n'
            f"SAMPLE = {name == 'passes'}\n\n\ndef run(case):\n    {statement}\n\n\n"
            'if __name__ == "__main__":\n    main(run)\n'
        )
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(folder / "run.py"), *arguments], capture_output=True, text=True)


def test_only_what_passes_passes(folder: Path) -> None:
    done = run(folder)
    assert done.returncode == 1
    assert "passes: PASS" in done.stdout
    assert "fails: FAIL: two is not three" in done.stdout
    assert "breaks: BROKEN: " in done.stdout and "no such thing" in done.stdout
    assert "hangs: FAIL: not done within 2 s" in done.stdout
    assert "1 of 4 cases passed in " in done.stdout
    assert done.stdout.endswith("\nfailed: breaks, fails, hangs\n")


def test_the_short_form(folder: Path) -> None:
    done = run(folder, "--sample")
    assert done.returncode == 0, done.stdout
    assert "1 of 1 cases passed" in done.stdout


def test_an_unknown_name_is_refused(folder: Path) -> None:
    done = run(folder, "passes", "misspelt")
    assert done.returncode == 2
    assert "unknown: misspelt" in done.stderr and not done.stdout


def test_every_case_says_what_it_is_about() -> None:
    done = run(CASES, "--list")
    assert done.returncode == 0, done.stderr
    listed = [line.partition(": ") for line in done.stdout.splitlines()]
    assert {name for name, _, _ in listed} == {path.stem for path in CASES.glob("*.py")} - PARTS
    assert all(sentence.endswith(".") for _, _, sentence in listed), done.stdout
