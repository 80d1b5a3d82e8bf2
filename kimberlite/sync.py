"""`kimberlite.sync.connect`: the client without asyncio. See kimberlite.client.blocking."""

from __future__ import annotations

from kimberlite.client.blocking import Log, connect

__all__ = ["Log", "connect"]
