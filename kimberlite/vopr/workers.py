"""Processes that share a piece of work.

Each is a module of this package that prints what it finds, a JSON value a line, each in addition to those before: what
has been read is good whatever becomes of the rest.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from types import TracebackType
from typing import Any

CHUNK = 64 << 10


class Workers:
    """One process for each list of arguments, within a block: leaving it ends those that have not.

    A signal for the process group of whoever started them (Ctrl-C, `timeout`) does not reach them.
    """

    def __init__(self, module: str, arguments: Sequence[Sequence[int | str]]) -> None:
        """module: run with `python -m`."""
        self._module = module
        self._arguments = arguments
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Workers:
        # A signal handler that raises runs in the main thread: it can not come between the start of a process and
        # its entry in the list, which would leave that one behind.
        try:
            with ThreadPoolExecutor(1) as starter:
                starter.submit(self._start).result()
        except BaseException:
            self._end()
            raise
        return self

    def _start(self) -> None:
        for arguments in self._arguments:
            command = [sys.executable, "-P", "-m", self._module, *map(str, arguments)]
            self._processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()
            self._output(process).close()

    def next_of(self, index: int) -> Any:
        """The next value that one of them prints. Raises RuntimeError when there is none."""
        process = self._processes[index]
        line = self._output(process).readline()
        if not line.endswith(b"\n"):
            raise self._died(process)
        return json.loads(line)

    def values(self) -> Iterator[Any]:
        """What all of them print, as it comes, until all have ended. Raises RuntimeError when one dies."""
        with selectors.DefaultSelector() as selector:
            rest = {}
            for process in self._processes:
                selector.register(self._output(process), selectors.EVENT_READ, process)
                rest[process.pid] = b""
            while selector.get_map():
                for key, _ in selector.select():
                    process = key.data
                    data = self._output(process).read1(CHUNK)
                    *lines, rest[process.pid] = (rest[process.pid] + data).split(b"\n")
                    for line in lines:
                        yield json.loads(line)
                    if not data:
                        selector.unregister(key.fileobj)
                        if process.wait() or rest[process.pid]:
                            raise self._died(process)

    @staticmethod
    def _output(process: subprocess.Popen[bytes]) -> BufferedReader:
        output = process.stdout
        if not isinstance(output, BufferedReader):
            raise TypeError("the output of a worker is not read")
        return output

    def _died(self, process: subprocess.Popen[bytes]) -> RuntimeError:
        return RuntimeError(
            f"a process of {self._module} has died with exit code {process.wait()} in the middle of its work; "
            "what it printed says why"
        )


def show(value: object) -> None:
    """What a worker has found, on its standard output."""
    print(json.dumps(value), flush=True)
