"""`upgrade`: look whether a cluster is ready for another release."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from kimberlite.cli import EXIT_DEGRADED, probe
from kimberlite.cli.common import json_option, print_json, timeout_option
from kimberlite.cli.inspect import DIRECTORY
from kimberlite.config import CONFIG_NAME, Config, load
from kimberlite.errors import RecordError, UnavailableError

ASK_TIMEOUT_S = 2.0
POLL_S = 0.2
EQUAL = ("op", "commit", "applied")  # one number in all of these, on all replicas


@click.group(short_help="Look whether a cluster is ready for another release.")
def upgrade() -> None:
    """Look whether a cluster is ready for another release. docs/upgrade.md says the rest."""


@upgrade.command(short_help="Before all replicas are stopped: is every one of them whole?")
@timeout_option(10.0, "How long to wait until all replicas have everything.")
@DIRECTORY
@json_option
def check(timeout: float, data: Path, as_json: bool) -> int:
    """Before all replicas are stopped: is every one of them whole?

    Stop appending, run this on every machine with its data directory, and stop the replicas only when it says yes on
    all of them (exit code 0; 35 for no). It asks the replicas at the addresses in DIR/node.toml, which may run this
    release or the one before: all must answer, have everything, have nothing damaged, and know the same addresses. The
    settings that all replicas must share are shown with a number that must be the same on every machine.
    """
    config = load(data / CONFIG_NAME)
    deadline = time.monotonic() + timeout
    while True:
        told = probe.ask_all(config.cluster.addresses, ASK_TIMEOUT_S, config.cluster_id)
        wrong = problems(config, told)
        if not wrong or time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    settings, number = shared(config, wrong)
    if as_json:
        print_json({"ready": not wrong, "problems": wrong, "settings": settings, "settings_number": number})
    else:
        for name, value in settings.items():
            click.echo(f"{name:<28}  {value}")
        click.echo(f"{'the same on every machine':<28}  {number}")
        for sentence in wrong or ["ready: stop all replicas, then start all with the new release"]:
            click.echo(sentence)
    return EXIT_DEGRADED if wrong else 0


def problems(config: Config, told: Sequence[probe.Told | UnavailableError]) -> list[str]:
    """What has to be mended before; empty when all is well."""
    found = []
    numbers = set()
    for index, (address, answer) in enumerate(zip(config.cluster.addresses, told, strict=True)):
        if isinstance(answer, UnavailableError):
            found.append(f"replica {index} does not answer: {answer}")
            continue
        status = answer.status
        numbers |= {status.get(name) for name in EQUAL}
        if status.get("replica") != index:
            found.append(f"{address} is replica {status.get('replica')}, not {index}")
        if answer.members and answer.members != config.cluster.addresses:
            found.append(f"replica {index} was started with other addresses: {', '.join(answer.members)}")
        if status.get("status") != "normal":
            found.append(
                f"replica {index} is not in normal operation: {status.get('unhealthy') or status.get('status')}"
            )
        if status.get("faulty"):
            found.append(f"replica {index} repairs {status['faulty']} damaged operations")
    if len(numbers) > 1:
        said = "; ".join(
            f"replica {index}: " + ", ".join(f"{name} {answer.status.get(name)}" for name in EQUAL)
            for index, answer in enumerate(told)
            if isinstance(answer, probe.Told)
        )
        found.append(f"not all have everything ({said}): stop appending, and wait")
    return found


def shared(config: Config, wrong: list[str]) -> tuple[dict[str, int], str]:
    """The settings that all must share, and a number that is equal where they and the addresses are. What can be no
    record of a cluster is one more problem."""
    from kimberlite.node.identity import draft_of, shared_values
    from kimberlite.types import ZERO16
    from kimberlite.vsr.record import digest

    try:
        return shared_values(config), digest(draft_of(config, ZERO16))[:8].hex()
    except RecordError as error:
        wrong.append(str(error))
        return {}, "none"
