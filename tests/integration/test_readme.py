"""What the README and the guides show is run here, on a real cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kimberlite.cli import COMMANDS
from kimberlite.cli.local import free_port

CHECKOUT = Path(__file__).parents[2]
README = CHECKOUT / "README.md"
FOLLOWED = b"1 b'two' True\n2 b'three' True\nb'one'\nb'two'\nb'three'\n[b'one']\n"
DEFAULT_ADDRESSES = '["127.0.0.1:7100", "127.0.0.1:7101", "127.0.0.1:7102"]'


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_shell_blocks(start_cluster: Any, kimberlite_command: Any, tmp_path: Path) -> None:
    """What is typed in the other terminal, as it is written."""
    _, second, _ = blocks("sh")
    cluster = start_cluster(3)
    (tmp_path / "README.md").write_bytes(README.read_bytes())
    activate, *commands = second.splitlines()
    assert activate == ". .venv/bin/activate"
    outputs = []
    for command in commands:
        program, *arguments = command.split()
        assert program == "kimberlite"
        # On a busy machine a backup may have been silent for a second: `status` says so in its exit code.
        code = None if arguments == ["status"] else 0
        outputs.append(kimberlite_command(*arguments, addresses=cluster.addresses, code=code).stdout)
    lines = README.read_bytes().splitlines(keepends=True)
    appended, read, status = outputs
    assert appended == b"0 %d\n" % (len(lines) - 1)
    assert read == b"".join(lines[:3])
    assert status.count(b"127.0.0.1:") == 3


@pytest.fixture
def make(environment: dict[str, str]) -> Callable[[str, str], subprocess.Popen[bytes]]:
    """Run a command of the README that begins with `make`, with arguments for its verb, on what is installed."""
    stamp = Path(sys.prefix) / "stamp-package"
    environment = {key: value for key, value in environment.items() if not key.startswith(("MAKE", "MFLAGS"))}
    variables = [f"VENV={sys.prefix}"]

    def start(block: str, arguments: str) -> subprocess.Popen[bytes]:
        command = [*block.split(), "-C", str(CHECKOUT), *variables, f"ARGS={arguments}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True)

    asked = subprocess.run(["make", "-q", "-C", str(CHECKOUT), *variables, str(stamp)], env=environment, check=False)
    if not stamp.exists() or asked.returncode != 0:
        pytest.skip("what is installed here was not built by make, or has changed since")
    return start


def test_make_dev(make: Any, kimberlite_command: Any, settings: tuple[str, ...], tmp_path: Path) -> None:
    """The command itself, on other ports."""
    block, _, _ = blocks("sh")
    assert block.split() == ["make", "dev"]
    items = " ".join(f"--set {setting}" for setting in settings)
    running = make(block, f"--json --port 0 --dir {tmp_path / 'data'} {items}")
    try:
        ready = json.loads(next(line for line in running.stdout if line.startswith(b"{")))
        addresses = [replica["address"] for replica in ready["replicas"]]
        assert kimberlite_command("append", addresses=addresses, input=b"one\n").stdout == b"0 0\n"
    finally:
        os.killpg(running.pid, signal.SIGINT)  # as Ctrl-C in its terminal
        running.communicate(timeout=60)


def test_make_test(make: Any) -> None:
    """The command itself, with few tests."""
    *_, block = blocks("sh")
    assert block.split() == ["make", "test"]
    running = make(block, "tests/unit/test_installed.py")
    output, _ = running.communicate(timeout=120)
    assert (running.returncode, b"1 passed" in output) == (0, True), output


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (README, [b"0 order 17 placed\n1 order 17 paid\n"]),
        (CHECKOUT / "docs" / "python.md", [b"3 primary\n", b"order 17 shipped\n", FOLLOWED, b"", b"1\n", b""]),
    ],
    ids=["README", "python"],
)
def test_python_blocks(
    page: Path,
    expected: list[bytes],
    start_cluster: Any,
    settings: tuple[str, ...],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    cluster = start_cluster(3)
    sources = blocks("python", page)
    assert len(sources) == len(expected)
    for source, output in zip(sources, expected, strict=True):
        assert DEFAULT_ADDRESSES in source or "kimberlite.connect" not in source
        source = source.replace(DEFAULT_ADDRESSES, repr([*cluster.addresses]))
        source = source.replace("127.0.0.1:7300", f"127.0.0.1:{free_port(1)}")
        if "storage.unsafe=true" in settings:
            source = source.replace('"telemetry": {', '"storage": {"unsafe": True}, "telemetry": {')
        done = subprocess.run(
            [sys.executable, "-P", "-W", "error", "-c", source],
            env=environment,
            capture_output=True,
            cwd=tmp_path,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout == output


def test_the_guide_to_three_machines(
    kimberlite_command: Any,
    settings: tuple[str, ...],
    environment: dict[str, str],
    wait_until: Callable[..., None],
    tmp_path: Path,
) -> None:
    """Its commands as they are written, with addresses and directories of this machine."""
    port = free_port(3)
    local = [f"127.0.0.1:{port + index}" for index in range(3)]
    items = [item for setting in settings for item in ("--set", setting)]
    make, use, look, *_ = blocks("sh", CHECKOUT / "docs" / "cluster.md")
    formatting, starting = make.splitlines()
    exporting, asking = use.splitlines()

    def here(command: str, index: int) -> list[str]:
        for name, address in zip("abc", local, strict=True):
            command = command.replace(f"{name}.example:7100", address)
        command = command.replace("--replica 0", f"--replica {index}")
        program, *arguments = command.replace("/var/lib/kimberlite", str(tmp_path / str(index))).split()
        assert program in ("kimberlite", "export")
        return arguments

    processes = []
    try:
        for index in range(3):
            kimberlite_command(*here(formatting, index), *items)
            own = ["--set", f'telemetry.listen="127.0.0.1:{free_port(1)}"', *items]
            command = [sys.executable, "-P", "-m", "kimberlite", *here(starting, index), *own]
            processes.append(subprocess.Popen(command, env=environment, cwd=tmp_path))
        (variable,) = here(exporting, 0)
        assert variable == f"KIMBERLITE_ADDRESSES={','.join(local)}"
        wait_until(
            lambda: b"primary" in kimberlite_command(*here(asking, 0), addresses=local, code=None).stdout,
            "one of them leads",
        )
        assert kimberlite_command("append", addresses=local, input=b"one\n").stdout == b"0 0\n"
        for command in look.splitlines():
            done = kimberlite_command(*here(command, 0))
            assert done.stdout or done.stderr  # `verify` lists what is wrong: here it only says how much it read
    finally:
        for process in processes:
            process.terminate()
        codes = [process.wait(timeout=30) for process in processes]
    assert codes == [0, 0, 0]


@pytest.mark.parametrize("seeds", ["0:3"])
def test_simulator_as_named(kimberlite_command: Any, seeds: str) -> None:
    assert "vopr" in COMMANDS
    kimberlite_command("vopr", "run", "--seeds", seeds)
