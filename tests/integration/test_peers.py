"""benches/peers on real processes: the leader of a cluster is killed, and stopped, while a client appends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).parents[2] / "benches" / "peers" / "peers.py"


def test_failover_of_kimberlite(environment: dict[str, str], settings: tuple[str, ...], tmp_path: Path) -> None:
    """Once with each signal, both at the same time. Nothing that was acknowledged is lost, and nothing stays behind."""
    own = {key: value for key, value in environment.items() if key != "PYTHONSAFEPATH"}  # its parts are beside it
    command = [sys.executable, str(PEERS), "failover", "--targets", "kimberlite", "--trials", "1"]
    command += ["--dir", str(tmp_path), *(word for setting in settings for word in ("--set", setting))]
    running = {
        signal: subprocess.Popen(
            [*command, "--signal", signal], env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for signal in ("KILL", "STOP")
    }
    for signal, process in running.items():
        printed, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        row = json.loads(printed)
        assert (row["system"], row["workload"], row["signal"]) == ("kimberlite", "failover", signal)
        assert (row["n"], row["lost"]) == (1, 0)
        assert row["acked"] >= 70 and len(row["gaps_ms"]) == 1 and row["gaps_ms"][0] > 0
        assert f"SIG{signal}" in said
    assert not list(tmp_path.iterdir())
