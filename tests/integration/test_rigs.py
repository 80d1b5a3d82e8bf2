"""The fault rigs of tests/rigs, sized for every run. `make faults` runs them whole."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RIGS = Path(__file__).parents[1] / "rigs"


def run(environment: dict[str, str], name: str, *arguments: str) -> str:
    """Run a rig to its end; what it printed. Its numbers go to our output as well."""
    command = [sys.executable, str(RIGS / name), *arguments]
    own = {key: value for key, value in environment.items() if key != "PYTHONSAFEPATH"}  # its helpers are beside it
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=1200)  # of a hang
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("scenario", ["write_error", "no_ack", "page_cache", "cache_pages", "read_error"])
def test_a_disk_whose_blocks_fail(environment: dict[str, str], tmp_path: Path, scenario: str) -> None:
    """Needs root, /dev/fuse and a free loop device."""
    shown = run(environment, "block_errors.py", "--only", scenario, "--dir", str(tmp_path))
    for mode in ("direct", "buffered"):
        assert re.search(rf"^{scenario} \({mode}\): ", shown, re.MULTILINE), shown
    assert shown.endswith("all passed\n")


def test_kill_before_system_calls(environment: dict[str, str], tmp_path: Path) -> None:
    assert shutil.which("strace"), "needs strace: apt-get install strace"
    shown = run(environment, "kill_points.py", "--seconds", "40", "--dir", str(tmp_path))
    match = re.search(r"^(\d+) kills of (\d+) points", shown, re.MULTILINE)
    assert match is not None, shown
    assert int(match[1]) >= 2 and int(match[2]) >= 100, shown
