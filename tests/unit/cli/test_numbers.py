"""Numbers of the command line that are none, or are out of bounds: exit code 2 and a word that names the option."""

from __future__ import annotations

import click
import pytest

from kimberlite.cli import COMMANDS, main, root

DURATIONS = ("nan", "inf", "-inf", "-1", "1e300", "18446744073709551616", "", "x")
COUNTS = ("nan", "inf", "-1", "1.5", "18446744073709551616", "1" * 5000, "", "x")


def commands() -> list[tuple[tuple[str, ...], click.Command]]:
    """All commands, with the words that name them."""
    found: list[tuple[tuple[str, ...], click.Command]] = []

    def look(words: tuple[str, ...], command: click.Command) -> None:
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                child = command.get_command(click.Context(command), name)
                assert child is not None
                look((*words, name), child)
        else:
            found.append((words, command))

    for name in COMMANDS:
        command = root.get_command(click.Context(root), name)
        assert command is not None
        look((name,), command)
    return found


def numbers() -> list[tuple[tuple[str, ...], str, tuple[str, ...]]]:
    """Every option with a number: (command, option, values that are wrong)."""
    found = []
    for words, command in commands():
        for parameter in command.params:
            if not isinstance(parameter, click.Option):
                continue
            if parameter.metavar == "SECONDS":
                # 0 is a duration of no warm-up.
                found.append((words, parameter.opts[0], DURATIONS))
            elif isinstance(parameter.type, click.types.IntParamType) or parameter.opts[0] == "--from":
                found.append((words, parameter.opts[0], COUNTS))
    return found


NUMBERS = numbers()


def test_they_are_found() -> None:
    options = {option for _, option, _ in NUMBERS}
    assert {
        "--timeout",
        "--from",
        "--limit",
        "--port",
        "--replicas",
        "--replica",
        "--seconds",
        "--warmup",
        "--jobs",
    } <= options


@pytest.mark.parametrize(("words", "option", "wrong"), NUMBERS, ids=lambda value: "-".join(value)[:40])
def test_a_wrong_number_is_refused(
    words: tuple[str, ...], option: str, wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    needed = {
        "format": ["--cluster", "ab" * 16, "--replica", "0", "--addresses", "h:1", "d"],
        "restore": ["--cluster", "ab" * 16, "--replica", "0", "--addresses", "h:1", "s", "d"],
        "inspect": ["d"],
        "birth": ["d"],
        "run": ["--seeds", "0:1"],
        "replay": ["0"],
        "minimize": ["0"],
    }
    others = needed.get(words[-1]) or needed.get(words[0], [])
    for value in wrong:
        assert main([*words, *others, f"{option}={value}"]) == 2, (option, value)
        assert option.strip("-") in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "18446744073709551616", "1e400", "99999999999999999999999999"])
@pytest.mark.parametrize("key", ["limits.pipeline_max", "storage.segment_bytes", "cluster.peer_port_offset"])
def test_a_wrong_number_in_a_setting_is_refused(key: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    who = ["--cluster", "ab" * 16, "--replica", "0", "--addresses", "h:1"]
    assert main(["format", *who, "--set", f"{key}={value}", "/nonexistent/d"]) == 2
    assert key in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "-1", "65536", "18446744073709551616", "1" * 5000, "x", "", "nan"])
def test_a_wrong_port_in_an_address_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--addresses", f"127.0.0.1:{port}"]) == 2
    assert "port" in capsys.readouterr().err
