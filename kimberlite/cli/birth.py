"""`birth`: change whom a replica that is no member yet is bound to. What is done is in node.birthing."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

import click

from kimberlite.cli.common import json_option, note, print_json
from kimberlite.cli.inspect import DIRECTORY
from kimberlite.cli.repair_view import opened
from kimberlite.config import CONFIG_NAME, load
from kimberlite.errors import UsageError
from kimberlite.types import REPLICAS_MAX


@click.command("birth", short_help="Change whom a replica that is no member yet is bound to, offline.")
@click.option("--again", is_flag=True, help="Forget all that it is bound to, and begin anew.")
@click.option(
    "--without",
    type=click.IntRange(0, REPLICAS_MAX - 1),
    multiple=True,
    metavar="I",
    help="Do without the replica of that index; may be repeated.",
)
@DIRECTORY
@json_option
def birth(again: bool, without: Sequence[int], data: Path, as_json: bool) -> None:
    """Change whom a replica that is no member yet is bound to, offline.

    A cluster is born when all its replicas have met, once: `kimberlite status` says for whom one waits. Its log is not
    touched here; the replica gets a new identity. Refuses, and changes nothing, when it is a member already (exit code
    37), and while a process holds DIR (13).

    --again: when one has bound itself to another whose disk is gone since, as when that was formatted twice. Run it on
    all replicas, for the others are bound to what this one was, and then start them.

    --without I: for a machine that does not come back at an upgrade. Run it on all others, each time with the same I,
    and then start them. As many must be left as a view change and a commit need. The data of replica I takes no part
    from then on: it must not be started with an older release either.
    """
    if again == bool(without):
        raise UsageError("give either --again or --without: nothing was changed")

    from kimberlite.node import birthing

    with opened(data) as disk:
        config = load(data / CONFIG_NAME)
        incarnation = secrets.token_bytes(16)
        if again:
            changed = birthing.again(disk, config, incarnation)
        else:
            changed = birthing.without(disk, config, without, incarnation)
    before, after = changed.before.incarnation, changed.after.incarnation
    if as_json:
        print_json(
            {"replica": config.cluster.replica, "before": before.hex(), "after": after.hex(), "without": list(without)}
        )
        return
    others = f" and goes on without {', '.join(map(str, without))}" if without else ""
    note(f"replica {config.cluster.replica} is {after.hex()} now{others}; run it with: kimberlite start {data}")
