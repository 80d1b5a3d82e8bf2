"""Typed surface of the compiled module: see witness.pyx."""

from __future__ import annotations

from kimberlite.types import Bytes

def index_records(image: Bytes, count: int, segment: int, base: int, origin: int) -> tuple[memoryview, list[int]]:
    """Check records of a witness image: (event positions by sector, less origin; indexes of damaged records)."""
