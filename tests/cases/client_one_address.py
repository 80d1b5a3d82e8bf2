"""A client that was not given the primary's address never appended. One address of any replica is enough, from
Python and on the command line; a list of two clusters' addresses is refused with both ids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lab import HOST, Case, main

import kimberlite
import kimberlite.sync
from kimberlite.errors import WrongClusterError

SECONDS = 90
SAMPLE = True


def raised(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def run(case: Case) -> None:
    cluster = case.cluster(3)
    other = case.cluster(1)
    _, backup, _ = cluster.roles()
    one = [f"localhost:{cluster.ports[backup]}"]  # under another name than the members give it

    async def asynchronous(addresses: list[str]) -> int:
        async with kimberlite.connect(addresses, timeout=3) as log:
            return await log.append([b"a"])

    def blocking(addresses: list[str]) -> int:
        with kimberlite.sync.connect(addresses, timeout=3) as log:
            return log.append([b"a"])

    for name, call in (("async", lambda a: asyncio.run(asynchronous(a))), ("sync", blocking)):
        error = raised(lambda call=call: call(one))  # type: ignore[misc]
        case.check(error is None, f"{name}, one address, a backup's: {error!r}")
        mixed = [cluster.addresses[0], *other.addresses]
        for addresses in (mixed, mixed[::-1]):
            error = raised(lambda call=call, a=addresses: call(a))  # type: ignore[misc]
            case.check(isinstance(error, WrongClusterError), f"{name}, addresses of two clusters: {error!r}")
            ids = cluster.cluster_id in str(error), other.cluster_id in str(error)
            case.check(all(ids), f"{name}: the error does not name both clusters: {error}")
    done = case.command("append", "--addresses", one[0], "--timeout", "5", input="b\n")
    case.check(done.returncode == 0, f"kimberlite append with one address: {done.returncode} {done.stderr}")
    mixed_text = f"{cluster.addresses[0]},{other.addresses[0]}"
    done = case.command("append", "--addresses", mixed_text, "--timeout", "5", input="b\n")
    case.check(done.returncode == 23, f"kimberlite append with two clusters: {done.returncode} {done.stderr}")

    # One address is enough also when its replica dies afterwards.
    async def failover() -> None:
        async with kimberlite.connect(one, timeout=20) as log:
            await log.append([b"c"])
            cluster.kill(backup)
            for _ in range(20):
                await log.append([b"d"])

    error = raised(lambda: asyncio.run(failover()))
    case.check(error is None, f"after the replica of the given address died: {error!r}")
    case.say(f"all by {HOST}:{cluster.ports[backup]} alone")


if __name__ == "__main__":
    main(run)
