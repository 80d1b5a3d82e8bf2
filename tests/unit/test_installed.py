"""The tests are about the package as it is installed, not about the checkout around them."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

import kimberlite
from kimberlite import cli

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.skipif("PYTHONPATH" in os.environ, reason="PYTHONPATH chooses another kimberlite on purpose")
def test_installed_package_is_tested() -> None:
    location = Path(kimberlite.__file__).resolve()
    assert "site-packages" in location.parts
    assert not location.is_relative_to(CHECKOUT / "kimberlite")
    assert str(CHECKOUT) not in sys.path
    assert cli.version() == metadata.version("kimberlite-vsr")
