"""What the README and the guides show is run here, on a real cluster."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kimberlite.cli import COMMANDS

CHECKOUT = Path(__file__).parents[2]
README = CHECKOUT / "README.md"
DEFAULT_ADDRESSES = '["127.0.0.1:7100", "127.0.0.1:7101", "127.0.0.1:7102"]'


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_shell_blocks(start_cluster: Any, kimberlite_command: Any, tmp_path: Path) -> None:
    """`make dev` is `kimberlite dev` in the Makefile; everything after it runs as it is written."""
    first, second = blocks("sh")
    assert first.split() == ["make", "dev"]
    assert "$(BIN)/kimberlite dev $(ARGS)" in (CHECKOUT / "Makefile").read_text()
    cluster = start_cluster(3)
    (tmp_path / "README.md").write_bytes(README.read_bytes())
    activate, *commands = second.splitlines()
    assert activate == ". .venv/bin/activate"
    outputs = []
    for command in commands:
        program, *arguments = command.split()
        assert program == "kimberlite"
        outputs.append(kimberlite_command(*arguments, addresses=cluster.addresses).stdout)
    lines = README.read_bytes().splitlines(keepends=True)
    appended, read, status = outputs
    assert appended == b"0 %d\n" % (len(lines) - 1)
    assert read == b"".join(lines[:3])
    assert status.count(b"127.0.0.1:") == 3


def test_python_block(start_cluster: Any, environment: dict[str, str], tmp_path: Path) -> None:
    cluster = start_cluster(3)
    (source,) = blocks("python")
    assert DEFAULT_ADDRESSES in source
    source = source.replace(DEFAULT_ADDRESSES, repr(list(cluster.addresses)))
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", source],
        env=environment,
        capture_output=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b"order 17 placed\norder 17 paid\n"


@pytest.mark.parametrize("seeds", ["0:3"])
def test_simulator_as_named(kimberlite_command: Any, seeds: str) -> None:
    assert "vopr" in COMMANDS
    kimberlite_command("vopr", "run", "--seeds", seeds)
