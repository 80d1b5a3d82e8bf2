"""What `kimberlite dev` shows of the logs of its replicas."""

from __future__ import annotations

import json
from pathlib import Path

from kimberlite.cli.dev import Follower
from kimberlite.cli.local import Replica


def line(level: str, message: str) -> str:
    return json.dumps({"level": level, "id": "suspected", "message": message}) + "\n"


def test_warnings_and_errors_from_now_on(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    log.write_text(line("error", "replica 0 was sick"))
    follower = Follower([Replica(0, "127.0.0.1:1", tmp_path / "0", log)])
    assert list(follower.news()) == []
    half = line("warning", "replica 0 votes")
    with log.open("a") as file:
        file.write(line("info", "replica 0 rests") + "kimberlite: DiskFullError: no JSON\n[]\n" + half[:20])
    assert list(follower.news()) == []
    with log.open("a") as file:
        file.write(half[20:] + line("error", "replica 0 ends"))
    assert list(follower.news()) == [
        "warning: replica 0 votes [suspected]",
        "error: replica 0 ends [suspected]",
    ]
    assert list(follower.news()) == []
