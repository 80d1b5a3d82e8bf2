"""The end of a process is the end, whatever its standard error is; descriptors 0 to 2; stray signals.

Each test runs a small program, because it is about a whole process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kimberlite import process
from kimberlite.errors import InvariantError, StateMachineError, WriteFailedError

CODE = InvariantError.exit_code
END_S = 1.0  # what is promised
SLACK_S = 4.0  # of a busy machine

FATAL = "from kimberlite import process, errors; print('now', flush=True); process.end(errors.InvariantError('gone'))"
# name -> a program that meets something nobody handles
SURPRISES = {
    "callback": "loop.call_soon(lambda: 1 / 0); loop.run_forever()",
    "task": """
async def dies():
    1 / 0
async def main():
    asyncio.ensure_future(dies())
    while True:
        await asyncio.sleep(0.01)
        gc.collect()
loop.run_until_complete(main())""",
    "thread": "threading.Thread(target=lambda: 1 / 0).start(); loop.run_forever()",
    "main": "1 / 0",
    "error that can not be shown": """
class Bad(Exception):
    def __str__(self):
        raise ValueError
def dies():
    raise Bad
loop.call_soon(dies); loop.run_forever()""",
}
HEAD = """
import asyncio, gc, threading, uvloop
from kimberlite import process
loop = uvloop.new_event_loop()
process.end_on_surprise(loop)
print('now', flush=True)
"""


def run(program: str, stderr: int | None = subprocess.PIPE, closing: str = "") -> tuple[int, str, float]:
    """Exit code, what is said (when it is a pipe), and seconds from "now" to the end. closing: of the shell."""
    running = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=stderr,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == b"now\n"
    began = time.monotonic()
    try:
        code = running.wait(END_S + SLACK_S)
    finally:
        running.kill()
    took = time.monotonic() - began
    said = running.stderr.read().decode() if running.stderr is not None else ""
    running.stdout.close()
    if running.stderr is not None:
        running.stderr.close()
    return code, said, took


def full_pipe() -> tuple[int, int]:
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, bytes(4096))
    except BlockingIOError:
        os.set_blocking(write, True)
    return read, write


@pytest.fixture(params=["full pipe", "broken pipe", "full file", "read only"])
def bad(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """A descriptor that takes no text."""
    held = []
    if request.param == "full pipe":
        read, found = full_pipe()
        held.append(read)
    elif request.param == "broken pipe":
        read, found = os.pipe()
        os.close(read)
    elif request.param == "full file":
        found = os.open("/dev/full", os.O_WRONLY)
    else:
        (tmp_path / "text").write_text("kept")
        found = os.open(tmp_path / "text", os.O_RDONLY)
    held.append(found)
    yield found
    for one in held:
        os.close(one)


def test_the_end_does_not_wait_for_standard_error(bad: int) -> None:
    code, _, took = run(FATAL, bad)
    assert code == CODE
    assert took < END_S + SLACK_S


@pytest.mark.parametrize("closing", ["2>&-", "<&- 2>&-"])
def test_the_end_with_closed_descriptors(closing: str) -> None:
    assert run(FATAL, None, closing)[0] == CODE


def test_the_end_says_why() -> None:
    code, said, _ = run(FATAL)
    assert code == CODE
    assert said.splitlines()[-1] == "kimberlite: InvariantError: gone"


@pytest.mark.parametrize("name", SURPRISES)
def test_a_surprise_ends_the_process(name: str) -> None:
    code, said, _ = run(HEAD + SURPRISES[name])
    assert code == CODE, said
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("kimberlite: InvariantError: unexpected ")
    assert "please report" in said.splitlines()[-1]


def test_a_surprise_ends_the_process_though_nobody_reads(bad: int) -> None:
    assert run(HEAD + SURPRISES["callback"], bad)[0] == CODE


def test_a_connection_that_breaks_is_no_surprise() -> None:
    report = "loop.call_exception_handler({'message': 'broken', 'exception': OSError(5, 'x'), 'transport': 1})"
    code, said, _ = run(HEAD + report + "\nloop.run_until_complete(asyncio.sleep(0.1))")
    assert code == 0
    assert "broken" in said


def test_only_what_a_program_must_mend_has_a_traceback() -> None:
    cause = OSError(5, "Input/output error")
    failed, wrong = WriteFailedError("the write failed"), StateMachineError("apply raised")
    failed.__cause__ = wrong.__cause__ = cause
    assert process.report(failed) == "kimberlite: WriteFailedError: the write failed\n"
    assert "Input/output error" in process.report(wrong)
    assert len(process.report(InvariantError("x" * (1 << 20)))) <= 2 * process.TEXT_MAX


def test_what_is_said_is_dropped_when_nobody_takes_it() -> None:
    read, write = full_pipe()
    program = "from kimberlite import process; print('now', flush=True); [process.say('x' * 100) for _ in range(1000)]"
    code, _, took = run(program, write)
    assert code == 0
    assert took < END_S + SLACK_S
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("module", ["kimberlite", "kimberlite.telemetry"])
def test_closed_descriptors_are_opened_on_the_null_device(closing: str, module: str, tmp_path: Path) -> None:
    """All three numbers are taken before a command can open a file of its own."""
    program = f"""
import importlib, os, sys
from kimberlite import process
os.chdir({str(tmp_path)!r})
def look(*_):
    open('own', 'w')
    with open('found', 'w') as file:
        print([os.readlink(f'/proc/self/fd/{{n}}') for n in range(3)], os.get_inheritable(2), file=file)
    print('kept out of files', file=sys.stderr)
    os._exit(0)
sys.argv = [{module!r}, '--help']
before = process.open_standard_descriptors
def after():
    before()
    look()
process.open_standard_descriptors = after
importlib.import_module({module!r} + '.__main__').main()
"""
    shell = ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-c", program]
    assert subprocess.run(shell, timeout=60).returncode == 0
    found = (tmp_path / "found").read_text()
    assert found.count("/dev/null") >= closing.count("&-"), found
    assert str(tmp_path) not in found
    assert found.endswith("True\n")


def test_stray_signals_are_ignored_also_by_children() -> None:
    program = """
import os, subprocess, sys
from kimberlite import process
process.ignore_stray_signals()
child = "import os, signal; [os.kill(os.getpid(), n) for n in (1, 10, 12, 14)]"
print('now', flush=True)
exec(child)
sys.exit(subprocess.run([sys.executable, '-c', child]).returncode)
"""
    assert run(program)[0] == 0
    assert [number.value for number in process.STRAY_SIGNALS] == [1, 10, 12, 14]
    assert all(signal.getsignal(number) is not signal.SIG_IGN for number in process.STRAY_SIGNALS)  # here: untouched
