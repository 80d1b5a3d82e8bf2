"""What all tests share."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# No test depends on how fast the machine is: the suite also runs under sanitizers and
# beside other work. A failure prints the blob that reproduces it.
settings.register_profile("kimberlite", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kimberlite")

# A test's own interpreters see the installed package, as the tests do: not the checkout they are started in.
os.environ["PYTHONSAFEPATH"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-transcripts", action="store_true", help="write what the stories of tests/lab/transcripts.py say now"
    )
    parser.addoption("--whole", action="store_true", help="the tests marked `whole` too, of which others are samples")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--whole"):
        return
    wholes = [item for item in items if item.get_closest_marker("whole")]
    config.hook.pytest_deselected(items=wholes)
    items[:] = [item for item in items if item not in wholes]
