"""The command line's frame: help, exit codes, errors. No command does its work here."""

from __future__ import annotations

import ast
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from kimberlite import cli, errors
from kimberlite.cli import COMMANDS, EPILOG, main, root
from kimberlite.cli.common import bytes_text
from kimberlite.errors import BusyError, KimberliteError


def error_classes() -> list[type[KimberliteError]]:
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, KimberliteError)]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_the_one_in_the_table(name: str) -> None:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    assert command.get_short_help_str(limit=1000) == COMMANDS[name][2]
    assert command.name == name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"Usage: kimberlite {name}" in capsys.readouterr().out
    command = root.get_command(click.Context(root), name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, parameter.name


@pytest.mark.parametrize("name", ["dev", "format", "append", "read", "status", "bench"])
def test_commands_that_print_can_print_json(name: str) -> None:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    assert "--json" in {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("name", ["append", "read", "status"])
def test_client_commands_know_where_the_cluster_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    monkeypatch.delenv("KIMBERLITE_ADDRESSES", raising=False)
    context = (
        command.make_context(name, [], resilient_parsing=False)
        if name != "append"
        else command.make_context(name, ["-"])
    )
    assert context.params["addresses"] == ("127.0.0.1:7100", "127.0.0.1:7101", "127.0.0.1:7102")
    monkeypatch.setenv("KIMBERLITE_ADDRESSES", "h:1,2")
    context = command.make_context(name, ["-"] if name == "append" else [])
    assert context.params["addresses"] == ("h:1", "h:2")


def test_help_lists_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    codes = {int(code) for code in re.findall(r"(?:^|\s{2,})(\d+)  \w", shown, re.MULTILINE)}
    own = {0, cli.EXIT_DEGRADED, cli.EXIT_NO_QUORUM, cli.EXIT_INTERRUPTED, cli.EXIT_TERMINATED}
    assert codes == own | {error.exit_code for error in error_classes()}
    for name in COMMANDS:
        assert f"  {name}" in shown
    assert EPILOG.strip("\b\n").splitlines()[1].strip() in shown


def test_exit_codes_are_distinct_but_for_the_usage_ones() -> None:
    of_use = (errors.ConfigError, errors.CampaignStateError, errors.CampaignInUseError)
    own = [value for name, value in vars(cli).items() if name.startswith("EXIT_")]
    codes = own + [error.exit_code for error in error_classes() if error not in of_use]
    assert len(codes) == len(set(codes))


def test_unknown_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    assert "No such command" in capsys.readouterr().err
    assert main(["--nonsense"]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kimberlite {cli.version()}\n"


@pytest.fixture
def command_that(monkeypatch: pytest.MonkeyPatch) -> object:
    """Replace the commands of the root by one, `fail`, that raises what it is given."""

    def install(error: BaseException) -> None:
        @click.command("fail")
        def fail() -> None:
            raise error

        monkeypatch.setattr(type(root), "get_command", lambda self, context, name: fail)

    return install


@pytest.mark.parametrize("error_class", error_classes())
def test_an_error_is_one_line_and_its_exit_code(
    error_class: type[KimberliteError], command_that: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(command_that)
    command_that(error_class("what happened, and what to do", number=7))
    assert main(["fail"]) == error_class.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "kimberlite: what happened, and what to do\n"


def test_system_errors_and_interrupts(command_that: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(command_that)
    command_that(PermissionError(13, "Permission denied", "/data"))
    assert main(["fail"]) == errors.StorageError.exit_code
    assert capsys.readouterr().err.startswith("kimberlite: /data: permission denied: ")
    command_that(OSError(errno.EBADF, "Bad file descriptor"))
    assert main(["fail"]) == 1
    assert capsys.readouterr().err == "kimberlite: [Errno 9] Bad file descriptor\n"
    command_that(KeyboardInterrupt())
    assert main(["fail"]) == cli.EXIT_INTERRUPTED


def test_a_bug_keeps_its_traceback(command_that: object) -> None:
    assert callable(command_that)
    command_that(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["fail"])


def test_json_errors_do_not_reach_standard_output(command_that: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(command_that)
    command_that(BusyError("come back later"))
    assert main(["fail"]) == 31
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["status", "--addresses", "127.0.0.1:1"]])
def test_an_output_that_is_full(arguments: list[str], unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "kimberlite", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            text=True,
            timeout=60,
        )
    assert done.returncode == errors.StorageError.exit_code
    assert done.stderr.startswith("kimberlite: standard output: no space left on device")
    assert len(done.stderr.splitlines()) == 1


def options(command: click.Command) -> set[str]:
    """Of a command and of all below it."""
    found = {option for parameter in command.params for option in parameter.opts}
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            child = command.get_command(click.Context(command), name)
            assert child is not None
            found |= options(child)
    return found


def test_options_that_messages_name_exist() -> None:
    """In every sentence of the package but those at the head of a module. `--unsafe` was named, which never was one."""
    known = options(root) | {"--help", "--force-reinstall", "--inplace"}  # the last two are pip's and setup.py's
    for path in sorted(Path(cli.__file__).parents[1].rglob("*.py")):
        for node in ast.walk(ast.Module(ast.parse(path.read_text(encoding="utf-8")).body[1:], [])):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
                named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", node.value))
                assert named <= known, f"{path}:{node.lineno}: {named - known}"


def test_help_imports_nothing_it_does_not_need(tmp_path: Path) -> None:
    script = (
        "import sys; from kimberlite.cli import main; main(['--help']); "
        "heavy = {'asyncio', 'uvloop', 'rich', 'socket'}; "
        "heavy |= {'kimberlite.client', 'kimberlite.config', 'kimberlite._fast'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3.0 TiB")]
)
def test_bytes_text(count: int, text: str) -> None:
    assert bytes_text(count) == text
