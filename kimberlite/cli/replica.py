"""`format` and `start`: one replica's data directory and its process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import click

from kimberlite import config as configuration
from kimberlite import process
from kimberlite.cli.common import json_option, note, print_json
from kimberlite.config import CONFIG_NAME
from kimberlite.errors import DataMissingError


def settings_option(function: click.decorators.FC) -> click.decorators.FC:
    return click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="A configuration value that wins over the file's; may be repeated.",
    )(function)


def replica_options(function: click.decorators.FC) -> click.decorators.FC:
    """--cluster, --replica and --addresses: who a new replica is."""
    for option in (
        click.option(
            "--addresses",
            required=True,
            type=configuration.parse_addresses,
            metavar="HOST:PORT,...",
            help="Client addresses of all replicas, in the same order on each.",
        ),
        click.option(
            "--replica", required=True, type=int, metavar="I", help="Index of this replica in --addresses, from 0."
        ),
        click.option(
            "--cluster", required=True, metavar="ID", help="32 hexadecimal digits or a UUID, the same for all replicas."
        ),
    ):
        function = option(function)
    return function


@click.command("format", short_help="Create the data of one replica.")
@replica_options
@settings_option
@json_option
@click.argument("data", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
def format_command(
    cluster: str, replica: int, addresses: tuple[str, ...], settings: Sequence[str], as_json: bool, data: Path
) -> None:
    """Create the data of one replica.

    Makes DIR with an empty journal and DIR/node.toml. Refuses, and changes nothing, when
    DIR holds a replica already: there is no option to overwrite; remove the directory.
    """
    config = configuration.new_replica(cluster, replica, addresses, settings, "format")

    from kimberlite.node.format import format_replica

    format_replica(config, data)
    if as_json:
        print_json({"data": str(data.absolute()), "cluster": config.cluster.id, "replica": replica})
    else:
        note(f"replica {replica} of {config.replica_count} created in {data}; run it with: kimberlite start {data}")


@click.command(short_help="Run one replica in the foreground.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Configuration; DIR/node.toml when not given.",
)
@settings_option
@click.option("--exit-with-parent", is_flag=True, hidden=True)
@click.argument("data", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
def start(config_path: Path | None, settings: tuple[str, ...], exit_with_parent: bool, data: Path) -> None:
    """Run one replica in the foreground.

    SIGTERM and Ctrl-C stop it in order; SIGHUP, SIGUSR1, SIGUSR2 and SIGALRM are ignored. Under
    systemd (Type=notify) it reports when it is ready. Exit codes say why it ended: kimberlite --help.
    """
    process.ignore_stray_signals()
    if exit_with_parent:
        end_with_parent()
    try:
        data.stat()
    except FileNotFoundError:
        message = f"{data} does not exist; create a replica with `kimberlite format`"
        raise DataMissingError(message, path=str(data)) from None
    config = configuration.load(config_path or data / CONFIG_NAME, settings)

    from kimberlite.node.node import run_node

    run_node(config, data)


def end_with_parent() -> None:
    """Have this process get SIGTERM when its standard input ends.

    The one that started it holds the other end of the pipe, and the kernel closes that however it
    ends. (A parent-death signal would come as soon as the *thread* that started us has ended.)
    """

    def wait_for_end() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait_for_end, name="parent", daemon=True).start()
