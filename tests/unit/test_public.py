"""What users are shown is public: examples and documentation name nothing else of Kimberlite."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import kimberlite

CHECKOUT = Path(__file__).parents[2]
MODULES = {"kimberlite", *(f"kimberlite.{name}" for name in ("config", "errors", "events", "sync", "testing"))}
PROGRAMS = sorted((CHECKOUT / "examples").glob("*.py"))
PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md")])


def public(module: str) -> set[str]:
    loaded = importlib.import_module(module)
    return set(getattr(loaded, "__all__", [name for name in vars(loaded) if not name.startswith("_")]))


def outside(source: str) -> list[str]:
    """Names of Kimberlite in a program that are not public."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] == "kimberlite"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kimberlite":
            module = node.module or ""
            names = [alias.name for alias in node.names]
            found += [f"{module}.{name}" for name in names] if module in MODULES else [module]
        elif isinstance(node, ast.Attribute):
            found.append(ast.unparse(node))
    return [name for name in found if name.split(".")[0] == "kimberlite" and not is_public(name)]


def is_public(name: str) -> bool:
    """Of `kimberlite`, a public module, or a name in one; what is behind a class is that class's affair."""
    _, *rest = name.split(".")
    if not rest:
        return True
    if rest[0] not in public("kimberlite"):
        return False
    module = f"kimberlite.{rest[0]}"
    return module not in MODULES or len(rest) == 1 or rest[1] in public(module)


def blocks() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)):
            yield f"{page.name}:{number}", block


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_programs_use_public_names(path: Path) -> None:
    assert outside(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(("where", "block"), [*blocks()], ids=[where for where, _ in blocks()])
def test_documentation_uses_public_names(where: str, block: str) -> None:
    assert outside(block) == []


def test_every_public_name_is_there() -> None:
    for name in kimberlite.__all__:
        assert getattr(kimberlite, name) is not None
    for module in MODULES:
        for name in public(module):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
    assert set(dir(kimberlite)) == set(kimberlite.__all__)


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("from kimberlite.node.format import format_replica", ["kimberlite.node.format"]),
        ("from kimberlite.config import knob", ["kimberlite.config.knob"]),
        ("import kimberlite.cli.local", ["kimberlite.cli.local"]),
        ("import kimberlite\nkimberlite.config.knob(1)", ["kimberlite.config.knob"]),
        ("import kimberlite\nkimberlite.config.load(1)\nkimberlite.Node.status", []),
        ("from kimberlite import Batch, errors\nfrom kimberlite.errors import UsageError\nimport os", []),
    ],
)
def test_the_checker_sees_what_is_not_public(program: str, found: list[str]) -> None:
    assert outside(program) == found
