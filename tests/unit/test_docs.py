"""The documentation agrees with the code: generated pages, links, and every command it names."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import click
import pytest

from kimberlite import cli

CHECKOUT = Path(__file__).parents[2]
PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md")])


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", CHECKOUT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCES = [
    "configuration.md",
    "exit-codes.md",
    "command-line.md",
    "metrics.md",
    "disk-layout.md",
    "wire.md",
    "status.md",
    "events.md",
    "logs.md",
]


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_pages_are_current(name: str) -> None:
    pages = generator().PAGES
    assert set(pages) == set(REFERENCES)
    assert (CHECKOUT / "docs" / name).read_text(encoding="utf-8") == pages[name](), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def help_pages() -> dict[tuple[str, ...], str]:
    """docs/command-line.md, taken apart: what stands there as the help of each command."""
    text = (CHECKOUT / "docs" / "command-line.md").read_text(encoding="utf-8")
    pages = re.findall(r"(?:^#+ (kimberlite[^\n]*)\n\n)?```text\n(.*?)```\n", text, re.DOTALL | re.MULTILINE)
    return {tuple(title.split()[1:]): page for title, page in pages}


def test_the_command_line_page_is_what_real_processes_print() -> None:
    """Every command and every group of commands, asked with --help in a wide terminal."""
    pages = help_pages()
    assert {words[0] for words in pages if words} == set(cli.COMMANDS)

    def printed(words: tuple[str, ...]) -> str:
        command = [sys.executable, "-P", "-m", "kimberlite", *words, "--help"]
        wide = {**os.environ, "COLUMNS": "200"}
        done = subprocess.run(command, env=wide, capture_output=True, text=True, check=True, timeout=60)
        return "".join(line.rstrip() + "\n" for line in done.stdout.splitlines())

    with ThreadPoolExecutor(4) as pool:
        for (words, page), shown in zip(pages.items(), pool.map(printed, pages), strict=True):
            assert page == shown, f"kimberlite {' '.join(words)} --help; run `make docs`"


def invocations() -> Iterator[tuple[str, list[str]]]:
    """Every `kimberlite ...` in code of the pages: (page, words after kimberlite)."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        code = re.findall(r"```(?:sh|text)?\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
        for part in code:
            for line in part.splitlines():
                if match := re.match(r"\s*(?:\$ )?kimberlite ((?:[a-z-]+)(?: .*)?)$", line):
                    yield page.name, match[1].split()


@pytest.mark.parametrize(
    ("page", "words"), [*invocations()], ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_commands_in_the_documentation_exist(page: str, words: list[str]) -> None:
    command: click.Command = cli.root
    rest = list(words)
    while isinstance(command, click.Group) and rest:
        found = command.get_command(click.Context(command), rest[0])
        assert found is not None, f"{page}: kimberlite {' '.join(words)}"
        command, rest = found, rest[1:]
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in rest:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"{page}: {word} in kimberlite {' '.join(words)}"


def test_invocations_are_found() -> None:
    assert len(list(invocations())) > 10


def test_picture_is_well_formed_and_small() -> None:
    path = CHECKOUT / "docs" / "architecture.svg"
    root = ElementTree.parse(path).getroot()
    assert root.tag.endswith("svg")
    assert "prefers-color-scheme: dark" in path.read_text()
    assert path.stat().st_size < 8_000


# What would make a reader call again after an unknown outcome: the events may then stand twice in the log.
INVITATIONS = re.compile(
    r"safe to (retry|repeat|call|append|send)|(retry|repeat|call|append|send)\w*( \w+){0,8} (is|are) safe"
    r"|it is deduplicated|append again|nothing is written twice",
    re.IGNORECASE,
)


@pytest.mark.parametrize(
    "path",
    [
        page
        for page in (
            *PAGES,
            *sorted((CHECKOUT / "kimberlite").rglob("*.py")),
            *sorted((CHECKOUT / "examples").glob("*")),
        )
        if page.name not in ("BUGS.md", "CHANGELOG.md") and "vopr" not in page.parts
    ],
    ids=lambda path: str(path.relative_to(CHECKOUT)),
)
def test_nothing_invites_to_append_twice(path: Path) -> None:
    text = " ".join(re.sub(r"[\"#*`]", "", path.read_text(encoding="utf-8")).split())
    found = [text[max(match.start() - 60, 0) : match.end() + 40] for match in INVITATIONS.finditer(text)]
    assert not found


@pytest.mark.parametrize("name", ["README.md", "docs/python.md", "docs/exit-codes.md", "kimberlite/errors.py"])
def test_an_unknown_outcome_is_explained_with_its_danger(name: str) -> None:
    text = " ".join((CHECKOUT / name).read_text(encoding="utf-8").split())
    for match in re.finditer(r"`OutcomeUnknownError`|class OutcomeUnknownError", text):
        if "twice" in text[match.start() : match.start() + 700]:
            return
    pytest.fail(f"{name} does not say that calling again may append twice")


ARCHITECTURE = (CHECKOUT / "ARCHITECTURE.md").read_text(encoding="utf-8")
PACKAGE = CHECKOUT / "kimberlite"


@pytest.mark.parametrize("name, path", sorted(set(re.findall(r"`(\w+)`\s\(([\w/.]+)\)", ARCHITECTURE))))
def test_what_the_architecture_names_is_there(name: str, path: str) -> None:
    source = (PACKAGE / path).read_text(encoding="utf-8")
    assert re.search(rf"^\s*(?:(?:async )?def|class|cdef class|cdef) {name}\b|^{name}\b.* = ", source, re.MULTILINE)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"[\w/-]+\.(?:py|pyx|md|toml)\b|kimberlite/\w+", ARCHITECTURE))))
def test_the_architecture_names_files_that_are_there(path: str) -> None:
    places = [CHECKOUT / path, PACKAGE / path, PACKAGE / "vsr" / path, CHECKOUT / "tests/cases" / path]
    assert path == "node.toml" or any(place.exists() for place in places)


def test_the_architecture_names_every_room() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"_sys"}
    assert rooms == set(re.findall(r"^\| `kimberlite/(\w+)` \|", ARCHITECTURE, re.MULTILINE))
