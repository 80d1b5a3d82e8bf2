"""`append` that was ended by Ctrl-C or SIGTERM, or that could not write its result, said nothing of what it had put
into the log. Now it says which positions are known to be there, and how many more events may be."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time

from lab import Case, Cluster, main, until

SECONDS = 120
SAMPLE = True

EVENTS = 30


def run(case: Case) -> None:
    cluster = case.cluster(1)
    first = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        output, errors, code = interrupted(case, cluster, number, [])
        last = first + EVENTS - 1
        case.say(f"{number.name}: exit code {code}, printed {output!r}, said {errors!r}")
        case.check(output == f"{first} {last}\n", f"{number.name} prints {output!r}, not positions {first} to {last}")
        case.check(code == 128 + number, f"{number.name} gives exit code {code}")
        case.check(f"positions {first} to {last}" in errors, f"{number.name} says {errors!r}")
        first = last + 1
    output, _, _ = interrupted(case, cluster, signal.SIGTERM, ["--json"])
    told = json.loads(output)
    case.check((told["events"], told["first"]) == (EVENTS, first), f"--json gives {told}")
    first += EVENTS

    address = ["--addresses", cluster.addresses[0]]
    under_way(case, cluster, first)
    first = positions(cluster)

    with open("/dev/full", "wb") as full:
        done = case.command(
            "append", *address, input="a\nb\n", stdout=full, stderr=subprocess.PIPE, capture_output=False
        )
    case.say(f"full output: exit code {done.returncode}, said {done.stderr!r}")
    case.check(done.returncode == 10, f"a full output gives exit code {done.returncode}: {done.stderr!r}")
    case.check(f"positions {first} to {first + 1}" in done.stderr, f"a full output: {done.stderr!r}")
    case.check("Exception ignored" not in done.stderr, f"the interpreter complains: {done.stderr!r}")
    first += 2

    closed = case.popen("append", *address, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert closed.stdin and closed.stdout and closed.stderr
    closed.stdout.close()
    closed.stdin.write(b"c\n")
    closed.stdin.close()
    said = closed.stderr.read().decode()
    code = closed.wait(30)
    case.say(f"closed pipe: exit code {code}, said {said!r}")
    case.check(code == 141 and f"positions {first} to {first}" in said, f"a closed pipe: {code}, {said!r}")


def under_way(case: Case, cluster: Cluster, first: int) -> None:
    """A signal while the cluster does not answer."""
    running = case.popen("append", "--addresses", cluster.addresses[0], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdin and running.stderr
    running.stdin.write(b"known\n")
    running.stdin.flush()
    case.check(until(lambda: positions(cluster) == first + 1, 30), "the event is not appended")
    cluster.pause(0)
    running.stdin.write(b"not known\n" * 7)
    running.stdin.close()
    time.sleep(0.5)  # for it to read them: else they are not under way, and it says less
    running.send_signal(signal.SIGINT)
    said = running.stderr.read().decode()
    code = running.wait(30)
    cluster.resume(0)
    cluster.wait()
    case.say(f"under way: exit code {code}, said {said!r}")
    case.check(code == 130 and f"positions {first} to {first}" in said, f"while nobody answers: {code}, {said!r}")
    case.check("7 more were under way and may be in the log" in said, f"while nobody answers it says {said!r}")
    until(lambda: positions(cluster) == first + 8, 3)


def interrupted(case: Case, cluster: Cluster, number: signal.Signals, options: list[str]) -> tuple[str, str, int]:
    """Append through a pipe that stays open, and a signal when everything is in the log: what it printed and said."""
    before = positions(cluster)
    running = case.popen(
        *("append", "--addresses", cluster.addresses[0], *options),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdin
    running.stdin.write(b"an event\n" * EVENTS)
    running.stdin.flush()
    case.check(until(lambda: positions(cluster) == before + EVENTS, 30), "the events are not appended")
    running.send_signal(number)
    running.stdin = None  # kept open until it has ended
    output, errors = running.communicate(timeout=30)
    errors_text = re.sub(r"\s+", " ", errors.decode())
    return output.decode(), errors_text, running.returncode


def positions(cluster: Cluster) -> int:
    status = cluster.status(0)
    return int(status["positions"]) if status else -1


if __name__ == "__main__":
    main(run)
