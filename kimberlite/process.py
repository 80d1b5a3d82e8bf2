"""What a process does with what it was given: descriptors 0 to 2, stray signals, its log, its end.

Standard error is the log. It may be closed, full, broken, or a pipe that nobody reads: nothing here waits
for it longer than it says, and nothing raises because of it. What must end the process ends it within
END_S, whatever was asked of the log before.

All but `say` and `end` change the process and are for processes of Kimberlite's own, never for a host
program. Thread rules: any thread. May import: errors.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from kimberlite.errors import InvariantError, KimberliteError, StateMachineError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

END_S = 0.5  # the most that the log may take when the process ends
TEXT_MAX = 1 << 15  # characters of the line, and of the traceback
STANDARD = ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"))
# Their default ends a process. They come from a terminal that closes, from habits of other daemons, from timers.
STRAY_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
# In a report of the event loop: a connection broke, and the loop has closed it.
OF_CONNECTIONS = ("transport", "protocol", "socket")


def open_standard_descriptors() -> None:
    """Open those of 0 to 2 that are closed on the null device, before another file gets their number: what
    is written to standard error would be written into it. Children get them as well."""
    for number, name, mode in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))  # the interpreter made it None


def ignore_stray_signals() -> None:
    """Go on when one of STRAY_SIGNALS comes; children do as well."""
    for number in STRAY_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def say(text: str, patience_s: float = 0.0) -> bool:
    """Write to standard error what it takes within that time, which may be nothing. Whether it took all; never
    raises."""
    stream = sys.stderr
    if stream is None:
        return False
    with contextlib.suppress(Exception):  # of whatever a host program has put there
        try:
            descriptor = stream.fileno()
        except (AttributeError, OSError, ValueError):
            stream.write(text)
            stream.flush()
            return True
        return _write(descriptor, text.encode(errors="backslashreplace"), time.monotonic() + patience_s)
    return False


def _write(descriptor: int, data: bytes, deadline: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    while data:
        ready = poll.poll(max(deadline - time.monotonic(), 0) * 1000)
        if not ready or ready[0][1] != select.POLLOUT:  # nobody reads, or it is gone
            return False
        # So much a pipe takes at once when it is ready.
        data = data[os.write(descriptor, data[: select.PIPE_BUF]) :]
    return True


def end(error: KimberliteError) -> NoReturn:
    """Say what happened and leave at once: no finaliser runs, nothing more is sent or written."""
    try:
        # The log may be on the disk that has just failed: then writing to it does not return.
        threading.Thread(target=_end_later, args=(error.exit_code,), daemon=True).start()
        say(report(error), END_S)
    finally:
        os._exit(error.exit_code)


def _end_later(code: int) -> None:
    time.sleep(END_S)
    os._exit(code)


def report(error: KimberliteError) -> str:
    """An error as it is written to the log: one line, behind the traceback when somebody has to correct a program."""
    line = f"kimberlite: {type(error).__name__}: {error}"[: TEXT_MAX - 1] + "\n"
    if not isinstance(error, InvariantError | StateMachineError):
        return line
    return "".join(traceback.format_exception(error))[-TEXT_MAX:] + line


def unexpected(error: BaseException) -> InvariantError:
    """The end of a process that has met an exception which nothing accounts for. Whatever it is, a step was left
    half-way: the state in memory can not be trusted any more, the disk can."""
    found = InvariantError(f"unexpected {what(error)}; this is a bug, please report it")
    found.__cause__ = error
    return found


def what(error: BaseException) -> str:
    """Kind and text of an exception, though its text may raise another one."""
    try:
        text = str(error)
    except Exception:
        text = "its text can not be had"
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def end_on_surprise(loop: AbstractEventLoop) -> None:
    """Have an exception that nobody handles end this process: in a callback or a task of `loop`, in a thread, at the
    end of the main program. One that broke a connection has done its worst: it is only said."""

    def on_loop(_: AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None or any(part in context for part in OF_CONNECTIONS):
            say(f"kimberlite: {context.get('message')}: {error!r}\n")
        else:
            end(unexpected(error))

    def on_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None:
            end(unexpected(arguments.exc_value))

    loop.set_exception_handler(on_loop)
    threading.excepthook = on_thread
    sys.excepthook = lambda kind, error, trace: end(unexpected(error))
    # Of finalisers: nothing of a replica depends on them.
    sys.unraisablehook = lambda found: say(f"kimberlite: ignored: {found.exc_value!r} in {found.object!r}\n")
