"""When a round is made: at once where nothing else could share it, else at the end of the turn of the loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from kimberlite.config import from_mapping
from kimberlite.node.node import Node
from kimberlite.types import Status

CONFIG = {"cluster": {"id": "6c" * 16, "replica": 0, "addresses": ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]}}


class Turn:
    """A node without parts, and the end of the present turn of its loop."""

    def __init__(self, directory: Path) -> None:
        self.node = Node(from_mapping(CONFIG), directory)
        self.rounds: list[tuple[list[Any], list[Any]]] = []
        self._later: list[Callable[[], None]] = []
        self.node._loop = MagicMock(call_soon=self._later.append)
        state = SimpleNamespace(view=0, status=Status.NORMAL, own=SimpleNamespace(is_formed=True))
        core = SimpleNamespace(leading=None, applied=0, state=state)
        driver = MagicMock(core=core, behind=False)
        driver.on_input = lambda messages, requests: self.rounds.append((messages, requests))
        self.node.parts = MagicMock(driver=driver)

    def leads(self, under_way: int, queued: int = 0) -> None:
        requests = SimpleNamespace(queue=[None] * queued)
        leading = SimpleNamespace(pipeline=[None] * under_way, requests=requests)
        self.node.parts.driver.core.leading = leading  # type: ignore[misc]

    def frame(self, what: str) -> None:
        self.node._on_peer_messages([what])  # type: ignore[list-item]

    def request(self, what: str) -> None:
        self.node._on_client_requests([what])  # type: ignore[list-item]

    def end(self) -> None:
        later, self._later[:] = self._later[:], []
        for action in later:
            action()


@pytest.fixture
def turn(tmp_path: Path) -> Turn:
    return Turn(tmp_path)


def test_a_backup_acts_upon_what_comes_at_once(turn: Turn) -> None:
    turn.frame("a prepare")
    turn.frame("another")
    assert turn.rounds == [(["a prepare"], []), (["another"], [])]


def test_so_does_a_primary_with_nothing_else_under_way(turn: Turn) -> None:
    turn.leads(under_way=0)
    turn.request("one")
    turn.leads(under_way=1)
    turn.frame("its acknowledgement")
    assert turn.rounds == [([], ["one"]), (["its acknowledgement"], [])]


@pytest.mark.parametrize(("under_way", "queued"), [(2, 0), (1, 1), (8, 5)])
def test_under_load_what_comes_in_a_turn_shares_a_round(turn: Turn, under_way: int, queued: int) -> None:
    turn.leads(under_way, queued)
    turn.frame("a")
    turn.request("1")
    turn.frame("b")
    turn.request("2")
    assert turn.rounds == []
    turn.end()
    assert turn.rounds == [(["a", "b"], ["1", "2"])]


def test_requests_of_several_connections_share_rounds_until_they_come_alone(turn: Turn) -> None:
    turn.leads(under_way=1)
    turn.request("1")
    turn.request("2")
    turn.end()
    turn.leads(under_way=0)  # an op has been answered: its clients send their next requests
    turn.request("3")
    turn.request("4")
    assert len(turn.rounds) == 1, "the first does not begin without the others"
    turn.end()
    turn.request("5")
    turn.end()
    turn.request("6")
    assert turn.rounds == [([], ["1", "2"]), ([], ["3", "4"]), ([], ["5"]), ([], ["6"])]
