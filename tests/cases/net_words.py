"""Whoever came above the limit of connections was cut off without a word, the status too; a second connection of a
replica cut off the first. Refusals have words, the status a place, work takes the place of idleness."""

from __future__ import annotations

import contextlib
import time

from lab import HOST, Case, Raw, main, make_header, until

from kimberlite.types import Command, Operation, Reason

SECONDS = 60
SAMPLE = True
LIMIT = 8
CONNECTIONS = 19  # Reason.CONNECTIONS, which an older version does not know


def run(case: Case) -> None:
    cluster = case.cluster(3, f"limits.connections_max={LIMIT}")
    lead, backup, other = cluster.roles()
    crowd = []
    for _ in range(2 * LIMIT):
        raw = Raw(HOST, cluster.ports[lead], 5)
        with contextlib.suppress(OSError, EOFError):
            raw.greet(cluster.cluster)
        crowd.append(raw)
    cluster.tells(lead)  # above the limit too
    time.sleep(1.5)  # longer than anybody waits to be told
    told = 0
    for raw in crowd:
        raw.socket.settimeout(0.1)
        with contextlib.suppress(OSError, EOFError):
            header, _ = raw.receive()
            told += header.command == Command.REJECT and header.reason == CONNECTIONS
    case.check(told >= LIMIT, f"{told} of {LIMIT} surplus clients were told that there are too many")

    def appends() -> bool:
        with contextlib.suppress(OSError, EOFError), Raw(HOST, cluster.ports[lead], 5) as raw:
            raw.greet(cluster.cluster)
            raw.send(
                make_header(
                    cluster=cluster.cluster,
                    command=Command.REQUEST,
                    client=raw.client,
                    operation=Operation.REGISTER,
                )
            )
            return raw.receive()[0].command == Command.REPLY
        return False

    case.check(until(appends, 10), "a client that works takes the place of an idle one")
    for raw in crowd:
        raw.close()
    with Raw(HOST, cluster.peer_ports[backup], 5) as second:
        second.greet_as_replica(cluster.cluster, other, 3, **cluster.identity(other))
        answer, _ = second.receive()
    case.check(answer.command == Command.REJECT, f"a second connection of a live replica: {Reason(answer.reason).name}")
    case.check(cluster.append([b"after"]) >= 0, "an append succeeds")


if __name__ == "__main__":
    main(run)
