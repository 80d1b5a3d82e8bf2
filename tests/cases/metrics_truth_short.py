"""The same as metrics_truth, with less load: what the metrics say is what happened, with a backup killed, and with the
primary and another one killed."""

from __future__ import annotations

from lab import Case, main
from truth import play

SECONDS = 60
SAMPLE = True

LOAD_S = 3.0


def run(case: Case) -> None:
    play(case, LOAD_S)


if __name__ == "__main__":
    main(run)
