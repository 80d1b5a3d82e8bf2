"""Kimberlite: a durable, replicated append-only log for Python.

    async with kimberlite.connect(["127.0.0.1:7100", "127.0.0.1:7101", "127.0.0.1:7102"]) as log:
        position = await log.append([b"hello"], timeout=2.0)
        async for event in log.read(start=position): ...

`kimberlite.sync.connect` is the same without asyncio; `kimberlite.Node` runs a replica in your
own process with your own state machine, `kimberlite.testing.Cluster` a whole cluster for your tests.

Public is what is in `__all__` here and in the modules that it names: config, errors, events, sync, testing. Anything
else may change with any release. Names are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kimberlite import config, errors, events, sync, testing
    from kimberlite.client.aio import Log, connect
    from kimberlite.client.answers import Event
    from kimberlite.config import Config
    from kimberlite.node.format import format_replica
    from kimberlite.node.node import Node
    from kimberlite.state_machine import Batch, EventLog, Frozen, StateMachine

__all__ = [
    "Batch",
    "Config",
    "Event",
    "EventLog",
    "Frozen",
    "Log",
    "Node",
    "StateMachine",
    "__version__",
    "config",
    "connect",
    "errors",
    "events",
    "format_replica",
    "sync",
    "testing",
]

_MODULES = ("config", "errors", "events", "sync", "testing")

_HOMES = {
    "Batch": "kimberlite.state_machine",
    "Config": "kimberlite.config",
    "Event": "kimberlite.client.answers",
    "EventLog": "kimberlite.state_machine",
    "Frozen": "kimberlite.state_machine",
    "Log": "kimberlite.client.aio",
    "Node": "kimberlite.node.node",
    "StateMachine": "kimberlite.state_machine",
    "connect": "kimberlite.client.aio",
    "format_replica": "kimberlite.node.format",
}


if not TYPE_CHECKING:  # a name that is not there is an error to them

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        if name in _MODULES:
            return import_module(f"kimberlite.{name}")
        raise AttributeError(f"module 'kimberlite' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
