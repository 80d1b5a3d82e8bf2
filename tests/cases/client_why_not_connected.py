"""A failed connection said "none of these answered" and no more. It says of each address what is wrong."""

from __future__ import annotations

import asyncio
import socket

from lab import HOST, Case, main

import kimberlite

SECONDS = 90
SAMPLE = False


def error_of(addresses: list[str], timeout: float = 0.5) -> str:
    async def attempt() -> str:
        try:
            async with kimberlite.connect(addresses, timeout=timeout):
                return "connected"
        except kimberlite.errors.KimberliteError as error:
            return f"{type(error).__name__}: {error}"

    return asyncio.run(attempt())


def run(case: Case) -> None:
    cluster = case.cluster(1)
    full = case.cluster(1, "limits.connections_max=4", "telemetry.enabled=false")
    pair = case.cluster(2)
    pair.pause(0)
    with socket.socket() as silent, socket.socket() as free:
        silent.bind((HOST, 0))
        silent.listen(0)
        free.bind((HOST, 0))
        # A full backlog: attempts to connect there time out.
        held = [socket.socket() for _ in range(3)]
        for one in held:
            one.setblocking(False)
            one.connect_ex(silent.getsockname())
        for address, words, timeout in (
            (f"{HOST}:{free.getsockname()[1]}", "refused", 0.5),
            ("no-such-host.invalid:7100", "resolve", 0.5),
            (f"{HOST}:{silent.getsockname()[1]}", "timed out", 2.3),
            (f"{HOST}:{pair.peer_ports[1]}", "port for other replicas", 2.0),
            (f"{HOST}:{cluster.telemetry_ports[0]}", "HTTP", 2.0),
            (f"{HOST}:{pair.ports[0]}", "frozen", 0.8),
        ):
            said = error_of([address], timeout)
            case.say(said)
            case.check(address in said and words in said, f"for {address} ({words}) the error says: {said}")
        several = [f"{HOST}:{free.getsockname()[1]}", "no-such-host.invalid:7100"]
        said = error_of(several)
        case.check(all(part in said for part in (*several, "refused", "resolve")), f"for two addresses: {said}")
        for one in held:
            one.close()
    idle = [socket.create_connection((HOST, full.ports[0])) for _ in range(90)]
    said = error_of(full.addresses)
    case.say(said)
    # Idle connections make place for one that works; else it is told that there is none.
    case.check(said == "connected" or "full" in said, f"for a replica with as many connections as it takes: {said}")
    for one in idle:
        one.close()


if __name__ == "__main__":
    main(run)
