"""The command line. Each command is a module, imported only when it runs.

`kimberlite --help` therefore costs the interpreter and click. Every command ends in
one of the exit codes of kimberlite.errors; a KimberliteError is one line on standard
error and never a traceback. A traceback is always a bug, to be reported.

Standard output carries results only, so that it can be piped; progress, notes and
errors go to standard error.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence

import click

from kimberlite import process
from kimberlite.errors import KimberliteError, StorageError

# name -> (module below kimberlite.cli, object in it, what it does). The text is repeated
# here so that help needs no import; a test compares the two.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "dev": ("dev", "dev", "Run a real local cluster in the foreground."),
    "format": ("replica", "format_command", "Create the data of one replica."),
    "start": ("replica", "start", "Run one replica in the foreground."),
    "append": ("append", "append", "Append events from a file, one per line."),
    "read": ("data", "read", "Print events exactly as they were appended."),
    "status": ("status", "status", "Show what each replica is doing."),
    "bench": ("bench", "bench", "Measure a cluster under load."),
    "inspect": ("inspect", "inspect", "Look into a data directory, offline and read-only."),
    "backup": ("backup", "backup", "Copy the log of a replica, while it runs."),
    "restore": ("backup", "restore", "Make the data of a new cluster from a backup."),
    "repair-view": ("repair_view", "repair_view", "Take back a view that no replica can be in, offline."),
    "birth": ("birth", "birth", "Change whom a replica that is no member yet is bound to, offline."),
    "upgrade": ("upgrade", "upgrade", "Look whether a cluster is ready for another release."),
    "recover": ("recover", "recover", "What is left of a cluster that lost too much."),
    "verify": ("verify", "verify", "Read and check everything in a data directory."),
    "telemetry": ("telemetry", "telemetry", "What a replica measures."),
    "vopr": ("vopr", "vopr", "Run the simulator."),
}

EXIT_DEGRADED = 35  # of `status`
EXIT_NO_QUORUM = 36  # of `status`
EXIT_INTERRUPTED = 130  # as a shell reports SIGINT
EXIT_BROKEN_PIPE = 141  # as a shell reports SIGPIPE
EXIT_TERMINATED = 143  # as a shell reports SIGTERM

NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # of a file, or what else the output goes into

EPILOG = """\b
Exit codes
    0  done                             28  no space for a file
    1  other error                      29  backup not possible, or damaged
    2  usage or configuration           30  rejected by the cluster
    3  event or request too large       31  cluster busy
   10  file or directory unusable       32  session evicted
   11  data exists already              33  position not in the log
   12  no data                          34  disks full: nothing appended
   13  data in use by another process   35  status: the cluster is degraded
   14  superblock damaged               36  status: no quorum
   15  unknown format version           37  birth can not be changed
   16  unsafe file system               40  timed out, outcome unknown
   17  a write or sync failed           50  internal invariant broken
   18  a corrupt journal entry          51  vopr: a violation was found
   19  an operation is gone from        52  vopr: a planted bug missed
       every copy                       53  a state machine failed
   20  network error                    54  no record of a cluster
   21  address in use                   55  file of metrics unusable
   22  bytes that are no frame          60  compiled module unusable
   23  wrong cluster                    61  compiled module missing
   24  no replica reachable, or none    62  checksum self-test failed
       leads                            63  KIMBERLITE_KERNEL: no such kernel
   25  version of client or replica     64  KIMBERLITE_KERNEL: not built
   26  the cluster knows other data     65  KIMBERLITE_KERNEL: not supported
       under this number               130  interrupted
   27  checkpoint damaged              143  terminated
"""


class OutputClosedError(Exception):
    """The reader of standard output has gone. Not a BrokenPipeError: click would make exit code 1 of it."""


class LazyGroup(click.Group):
    """A group whose commands are named in COMMANDS and imported when they are run."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(f"kimberlite.cli.{module}"), attribute)
        return command

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except BrokenPipeError:
            raise OutputClosedError from None

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


def show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"kimberlite {version()}")
        context.exit()


def version() -> str:
    """Version of the installed distribution."""
    from importlib import metadata

    try:
        return metadata.version("kimberlite-vsr")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version, help="Print the version."
)
def root() -> None:
    """A durable, replicated append-only log.

    `kimberlite dev` starts a local cluster; in another terminal `kimberlite append FILE`,
    `kimberlite read` and `kimberlite status` talk to it.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. Entry point of the distribution."""
    process.open_standard_descriptors()
    try:
        result = root.main(
            args=list(arguments) if arguments is not None else None, prog_name="kimberlite", standalone_mode=False
        )
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except KimberliteError as error:
        return fail(str(error), error.exit_code)
    except (OutputClosedError, BrokenPipeError):
        discard_output()  # its reader has gone (`kimberlite read | head`): nothing is wrong
        return EXIT_BROKEN_PIPE
    except OSError as error:
        return fail_of_system(error)
    finally:
        if not is_output_written():
            discard_output()
    return result if isinstance(result, int) else 0


def fail_of_system(error: OSError) -> int:
    """An error of the operating system that nobody has made an error of ours: of a file, or of the output. Of
    descriptors only standard output's are: whoever writes another one says which file it is."""
    from kimberlite.storage.trouble import explain, storage_error

    if error.filename is not None:
        told = storage_error(error)
        return fail(str(told), told.exit_code)
    if error.errno in NOT_WRITTEN:
        return fail(f"standard output: {explain(error)}", StorageError.exit_code)
    return fail(str(error), KimberliteError.exit_code)


def is_output_written() -> bool:
    """Whether what was printed could be written."""
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def discard_output() -> None:
    """What is left of the output goes nowhere: the interpreter must not complain when it flushes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(message: str, code: int) -> int:
    """Print one line to standard error, unless nobody takes it; returns `code`."""
    process.say(f"kimberlite: {message}\n", process.END_S)
    return code
