"""What the metrics say under load, with a backup killed, and with the primary and another one killed, is what happened:
events, bytes and writes of the disk, and who can commit."""

from __future__ import annotations

from lab import Case, main
from truth import play

SECONDS = 120
SAMPLE = False

LOAD_S = 20.0


def run(case: Case) -> None:
    play(case, LOAD_S)


if __name__ == "__main__":
    main(run)
