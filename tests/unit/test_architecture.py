"""The dependency direction, enforced on the source tree, and the checker shown to fail.

A *unit* is what a row of the table speaks of: a module or package directly below
`kimberlite`, or a longer name where a rule is about one module (`node.driver`).
The longest matching row decides. Imports inside functions and under TYPE_CHECKING
count as well: what is only needed for typing is still known.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "kimberlite"

# unit -> what it may import of Kimberlite (units; itself always). "" is kimberlite/__init__.py.
MAY_IMPORT: dict[str, set[str]] = {
    "": {
        "errors",
        "client",
        "sync",
        "events",
        "config",
        "state_machine",
        "node.node",
        "node.format",
        "types",
        "testing",
    },
    "__main__": {"cli"},
    "errors": set(),
    "types": {"errors"},
    "told": {"errors", "types"},
    "process": {"errors"},
    "state_machine": {"types"},
    "events": {"errors", "types", "_fast"},
    "sync": {"errors", "client"},
    "config": {"errors", "types"},
    "_fast": {"errors", "types"},
    "_sys": {"errors", "types"},
    "frames": {"types"},
    "vsr": {"errors", "types", "frames"},
    "storage": {"errors", "types", "_fast", "_sys"},
    "net": {"errors", "types", "_fast", "_sys"},
    "client": {"errors", "types", "told", "config", "_fast", "net"},
    "client.session": {"errors", "types", "told", "_fast", "client.appends", "client.obstacles", "client.routing"},
    "client.appends": {"errors", "types"},
    "client.obstacles": {"errors", "types"},
    "client.routing": set(),
    # "" is for __version__. Events and vsr.work are the core's contract, not the core.
    "telemetry": {"", "errors", "types", "told", "process", "_fast", "_sys", "vsr.events", "vsr.members", "vsr.work"},
    "node": {
        "",
        "errors",
        "types",
        "told",
        "process",
        "config",
        "state_machine",
        "_fast",
        "_sys",
        "vsr",
        "storage",
        "net",
        "telemetry",
    },
    # The driver runs in the simulator as well: no sockets, no telemetry, no clock.
    "node.driver": {"errors", "types", "state_machine", "_fast", "vsr", "storage", "node.checkpoints"},
    "node.checkpoints": {"types"},
    "node.identity": {"types", "config", "vsr.record"},
    "node.reader": {"errors", "types", "_fast", "storage"},
    "backup": {"errors", "types", "config", "_fast", "storage", "node.format", "node.identity", "vsr.record"},
    "vopr": {
        "errors",
        "types",
        "state_machine",
        "_fast",
        "vsr",
        "storage",
        "telemetry",
        "told",
        "client.session",
        "client.appends",
        "client.routing",
        "node.driver",
        "node.checkpoints",
        "node.clock",
        "node.reader",
        "node.retention",
    },
    "cli": {
        "",
        "errors",
        "types",
        "process",
        "config",
        "state_machine",
        "events",
        "sync",
        "_fast",
        "_sys",
        "storage",
        "net",
        "client",
        "telemetry",
        "node",
        "backup",
        "vsr.record",
        "cli",
    },
    "cli.vopr": {"errors", "types", "vopr", "cli"},
    # For programs that embed; nothing here imports it.
    "testing": {"errors", "types", "config", "state_machine", "client", "node.node", "node.format", "cli.local"},
}

IMPURE = {
    "asyncio",
    "concurrent",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "secrets",
    "select",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
    "uuid",
    "uvloop",
}
# unit -> modules outside of Kimberlite that it must not import.
MUST_NOT_IMPORT: dict[str, set[str]] = {
    "": {"pickle", "shelve", "marshal"},  # everywhere
    "vsr": IMPURE,
    "node.driver": IMPURE,
    "node.checkpoints": IMPURE,
    "client.session": IMPURE - {"random"},  # a seeded generator is handed in
    "client.routing": IMPURE,
    "types": IMPURE,
    "errors": IMPURE,
    "state_machine": IMPURE,
}


@dataclass(frozen=True)
class Import:
    importer: str  # dotted, relative to kimberlite; "" for its __init__
    imported: str  # dotted, absolute
    where: str


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """(dotted name below the package, file) of every Python and Cython source."""
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.pyi"), *root.rglob("*.pyx")]):
        parts = list(path.relative_to(root).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        yield ".".join(parts), path


def imports(root: Path, package: str) -> Iterator[Import]:
    """Every import in the tree, relative ones resolved; `from a import b` gives a.b when that is a module."""
    known = {f"{package}.{name}".rstrip(".") for name, _ in modules(root)}
    for name, path in modules(root):
        if path.suffix == ".pyx":
            yield from cython_imports(name, path)
            continue
        is_package = path.name.startswith("__init__.")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            where = f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(name, alias.name, where)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    above = [package, *name.split(".")] if name else [package]
                    above = above[: len(above) - node.level + is_package]
                    base = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    full = f"{base}.{alias.name}"
                    yield Import(name, full if full in known else base, where)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                    yield Import(name, str(node.args[0].value), where)


def cython_imports(name: str, path: Path) -> Iterator[Import]:
    pattern = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w.]+))")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if found := pattern.match(line):
            yield Import(name, found[1] or found[2], f"{path.name}:{number}")


def row_of(name: str, table: dict[str, set[str]]) -> str | None:
    """The longest prefix of a dotted name that the table has; "" only for the package itself."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in table:
            return prefix
    return None


def within(name: str, unit: str) -> bool:
    return name == unit or (unit != "" and name.startswith(f"{unit}."))


def is_raise(statement: ast.stmt) -> bool:
    """Whether it passes the exception on, so that the handler only cleans up."""
    return isinstance(statement, ast.Raise) and statement.exc is None


def violations(root: Path, package: str = "kimberlite") -> list[str]:
    """Every broken rule in the tree, one sentence each."""
    found: list[str] = []
    for name, _ in modules(root):
        if row_of(name, MAY_IMPORT) is None:
            found.append(f"{name}: not in the table of dependencies; add it")
    for item in imports(root, package):
        unit = row_of(item.importer, MAY_IMPORT)
        if unit is None:
            continue
        top = item.imported.split(".")[0]
        if top == package:
            target = item.imported[len(package) + 1 :]
            # Inside of a package everything may be used, but a row of its own cuts a module off
            # from what its package may do, and its siblings from being a way round.
            siblings = unit.split(".")[0]
            allowed = {unit} | MAY_IMPORT[unit] | ({siblings} if unit == siblings and unit else set())
            if not any(within(target, one) for one in allowed):
                found.append(f"{item.where}: {item.importer or package} must not import {item.imported}")
        for owner, forbidden in MUST_NOT_IMPORT.items():
            if top in forbidden and (owner == "" or within(item.importer, owner)):
                found.append(f"{item.where}: {item.importer or package} must not import {top}")
    for name, path in modules(root):
        if path.suffix == ".pyx":
            found += [
                f"{name}:{number}: assert; use errors.invariant"
                for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
                if re.match(r"\s*assert\b", line)
            ]
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert):
                found.append(f"{name}:{node.lineno}: assert; use errors.invariant, which stays on in production")
            if (
                isinstance(node, ast.ExceptHandler)
                and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "BaseException"))
                and not is_raise(node.body[-1])
            ):
                found.append(f"{name}:{node.lineno}: catches everything")
    return found


def test_source_keeps_the_rules() -> None:
    assert violations(SOURCE) == []


def runtime_imports(path: Path, package: str) -> set[str]:
    """Modules of that package that a module of it imports when it runs, wherever the statement stands."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module == package:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            found.add((node.module or "").removeprefix(f"{package}."))
        waiting += ast.iter_child_nodes(node)
    return found


def test_the_core_has_no_cycle_of_imports(tmp_path: Path) -> None:
    def graph(directory: Path) -> dict[str, set[str]]:
        return {path.stem: runtime_imports(path, "kimberlite.vsr") for path in directory.glob("*.py")}

    order = list(TopologicalSorter(graph(SOURCE / "vsr")).static_order())
    assert order[-1] == "replica"
    (tmp_path / "a.py").write_text("from kimberlite.vsr import b")
    (tmp_path / "b.py").write_text("def f() -> None:\n    from kimberlite.vsr.a import g")
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph(tmp_path)).static_order())


ATTRIBUTES_MAX = 25  # of a class of the core: with more, something in it is a thing of its own


def attributes(root: Path) -> dict[str, set[str]]:
    """Attributes of each class of the tree, inherited ones as well: its fields, and what is set on `self`. Classes of
    one name count as one."""
    own: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    for _, path in modules(root):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                own.setdefault(node.name, set()).update(fields_of(node))
                named = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
                bases.setdefault(node.name, set()).update(named - {node.name})

    def whole(name: str) -> set[str]:
        return own[name].union(*(whole(base) for base in bases[name] if base in own))

    return {name: whole(name) for name in own}


def fields_of(cls: ast.ClassDef) -> Iterator[str]:
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
            yield ast.unparse(node.target)
    for part in ast.walk(cls):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) and ast.unparse(part.value) == "self":
            yield part.attr


def test_no_class_of_the_core_has_too_many_attributes(tmp_path: Path) -> None:
    found = attributes(SOURCE / "vsr")
    assert {"State", "Leading", "Snapshot", "CoreConfig"} <= found.keys()
    assert {name: len(names) for name, names in found.items() if len(names) > ATTRIBUTES_MAX} == {}
    (tmp_path / "a.py").write_text(
        "class A(NamedTuple):\n    x: int\n    y: int = 0\n    z: ClassVar[int] = 0\n"
        "class B(m.A, G[int]):\n    def f(self):\n        self.u, self.v = self.w, 1\n        self.x += 1\n"
    )
    assert attributes(tmp_path) == {"A": {"x", "y"}, "B": {"x", "y", "u", "v"}}


def test_every_row_is_about_something() -> None:
    """A renamed module must not leave its rule behind, pointing at nothing."""
    names = {name for name, _ in modules(SOURCE)}
    missing = {row for row in MAY_IMPORT if not any(within(name, row) for name in names)}
    assert missing == set()


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("vsr/leading.py", "import asyncio", "vsr.leading must not import asyncio"),
        ("vsr/leading.py", "from time import monotonic_ns", "vsr.leading must not import time"),
        ("vsr/leading.py", "import random", "vsr.leading must not import random"),
        ("vsr/leading.py", "import os.path", "vsr.leading must not import os"),
        ("vsr/leading.py", "import socket", "vsr.leading must not import socket"),
        ("vsr/leading.py", "import threading", "vsr.leading must not import threading"),
        ("vsr/leading.py", "import logging", "vsr.leading must not import logging"),
        ("vsr/leading.py", "import secrets", "vsr.leading must not import secrets"),
        ("vsr/leading.py", "import uuid", "vsr.leading must not import uuid"),
        ("vsr/leading.py", "from kimberlite._fast import framing", "must not import kimberlite._fast.framing"),
        ("vsr/leading.py", "from kimberlite import storage", "must not import kimberlite.storage"),
        ("vsr/leading.py", "from ..storage import interface", "must not import kimberlite.storage.interface"),
        ("vsr/leading.py", "def f():\n    import kimberlite.net", "must not import kimberlite.net"),
        (
            "vsr/leading.py",
            "import importlib\nimportlib.import_module('kimberlite.net')",
            "must not import kimberlite.net",
        ),
        ("errors.py", "from kimberlite import types", "errors must not import kimberlite.types"),
        ("types.py", "import kimberlite.config", "types must not import kimberlite.config"),
        ("config.py", "from kimberlite.vsr import config", "config must not import kimberlite.vsr.config"),
        ("storage/store.py", "from kimberlite.net import peers", "must not import kimberlite.net.peers"),
        ("storage/store.py", "from kimberlite.vsr import work", "must not import kimberlite.vsr.work"),
        ("net/peers.py", "from kimberlite.vopr import world", "must not import kimberlite.vopr.world"),
        ("net/peers.py", "import kimberlite.telemetry", "must not import kimberlite.telemetry"),
        ("client/aio.py", "from kimberlite.node import node", "must not import kimberlite.node.node"),
        ("client/session.py", "import asyncio", "client.session must not import asyncio"),
        ("client/session.py", "from kimberlite.client import aio", "must not import kimberlite.client.aio"),
        ("telemetry/recorder.py", "from kimberlite.vsr import replica", "must not import kimberlite.vsr.replica"),
        ("node/node.py", "from kimberlite.vopr import disk", "must not import kimberlite.vopr.disk"),
        ("node/driver.py", "from kimberlite.telemetry import recorder", "must not import kimberlite.telemetry"),
        ("node/driver.py", "from kimberlite.node import server", "must not import kimberlite.node.server"),
        ("node/driver.py", "import time", "node.driver must not import time"),
        ("vopr/world.py", "from kimberlite.client import aio", "must not import kimberlite.client.aio"),
        ("vopr/world.py", "from kimberlite.node import node", "must not import kimberlite.node.node"),
        ("vopr/world.py", "from kimberlite.net import peers", "must not import kimberlite.net.peers"),
        ("cli/data.py", "from kimberlite.vopr import world", "must not import kimberlite.vopr.world"),
        ("cli/data.py", "from kimberlite.vsr import replica", "must not import kimberlite.vsr.replica"),
        ("_fast/checksum.pyx", "from kimberlite.vsr import work", "must not import kimberlite.vsr"),
        ("_fast/checksum.pyx", "def f():\n    assert True", "assert"),
        ("net/peers.py", "import pickle", "must not import pickle"),
        ("net/peers.py", "assert True", "assert"),
        ("net/peers.py", "try:\n    pass\nexcept:\n    pass", "catches everything"),
        ("net/peers.py", "try:\n    pass\nexcept BaseException as e:\n    raise KeyError from e", "catches everything"),
        ("rogue/thing.py", "", "not in the table"),
    ],
)
def test_checker_sees_a_violation(tmp_path: Path, module: str, text: str, expected: str) -> None:
    root = tmp_path / "kimberlite"
    for name, _ in modules(SOURCE):
        if "." not in name or name in MAY_IMPORT or name in ("vsr.work", "vsr.replica", "vsr.config"):
            make(root, name, "")
    path = root / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    for needed in ("vopr/world", "net/peers", "client/aio", "node/node", "node/server", "_fast/framing", "vsr/replica"):
        make(root, needed.replace("/", "."), "")
    for needed in ("vopr/disk", "telemetry/recorder", "storage/interface", "config", "vsr/config", "vsr/work"):
        make(root, needed.replace("/", "."), "")
    assert any(expected in sentence for sentence in violations(root)), violations(root)


def make(root: Path, name: str, text: str) -> None:
    """A module file in a synthetic tree, unless there is one."""
    path = root.joinpath(*name.split(".")) if name else root
    is_package = (SOURCE / Path(*name.split("."))).is_dir() if name else True
    path = path / "__init__.py" if is_package else path.with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(text)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("vsr/leading.py", "from kimberlite.vsr import work\nfrom dataclasses import dataclass"),
        ("telemetry/recorder.py", "from kimberlite.vsr.events import EventKind\nimport os"),
        ("client/session.py", "import random\nfrom kimberlite._fast import framing"),
        ("vopr/world.py", "from kimberlite.client.session import Session\nfrom kimberlite.node import driver"),
        ("cli/vopr.py", "from kimberlite.vopr import world\nfrom kimberlite.cli import _common"),
        ("node/node.py", "from . import driver\nfrom ..vsr import replica"),
    ],
)
def test_checker_accepts_what_is_allowed(tmp_path: Path, module: str, text: str) -> None:
    root = tmp_path / "kimberlite"
    for needed in (
        "vsr.events",
        "vsr.work",
        "vsr.replica",
        "_fast.framing",
        "client.session",
        "node.driver",
        "vopr.world",
        "cli._common",
    ):
        make(root, needed, "")
    path = root / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    assert violations(root) == []
