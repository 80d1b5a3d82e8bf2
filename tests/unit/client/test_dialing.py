"""Who is dialled, who is let in, and what is said when nobody was."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fake_replicas import CLUSTER, Replicas, connected, run

import kimberlite
from kimberlite._fast.framing import make_header
from kimberlite.client import dialing
from kimberlite.client.dialing import parse_members
from kimberlite.errors import ClientVersionError, KimberliteError, UnavailableError, WrongClusterError
from kimberlite.types import Command, Message, Reason

OTHER = b"o" * 16


@asynccontextmanager
async def other_cluster() -> AsyncIterator[list[str]]:
    other = Replicas(1, OTHER)
    try:
        yield await other.start()
    finally:
        other.stop()


async def refused(addresses: list[str], timeout: float = 0.2, **options: Any) -> KimberliteError:
    with pytest.raises(KimberliteError) as raised:
        async with connected(addresses, timeout=timeout, **options):
            pytest.fail("it was let in")
    return raised.value


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


# Members


@pytest.mark.parametrize("given", [0, 1, 2])
def test_from_any_one_address_the_others_are_learned(given: int) -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.view = 1
        async with connected([addresses[given]]) as log:
            assert await log.append([b"a"]) == 0
            await until(lambda: len(log._replicas) == 3)
            replicas.servers[given].close()
            replicas.cut(given)
            replicas.view = (given + 1) % 3
            assert await log.append([b"b"]) == 1

    run(test)


def test_an_address_that_leads_where_another_one_does_makes_no_second_connection() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        aliases = [f"localhost:{address.rpartition(':')[2]}" for address in addresses]
        async with connected([*addresses, *aliases]) as log:
            await until(lambda: len(log._replicas) == 3)
            await asyncio.sleep(0.2)
            opened = [len([c for c in replicas.connections[index] if c.is_open]) for index in range(3)]
            assert opened == [1, 1, 1]

    run(test)


def test_only_the_given_addresses_when_that_is_wanted() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.log = [b"a", b"b"]
        replicas.behind = {1: 1}
        async with connected(addresses[1:2], only=True) as log:
            assert [event async for event in log.read(raw=True)] == [b"a"]
            assert set(log._replicas) == {1}

    run(test)


def test_members_that_can_not_be_reached_hurt_nobody() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.members = ["no-such-host.invalid:1", "127.0.0.1:1", addresses[2]]
        async with connected(addresses) as log:
            assert await log.append([b"a"]) == 0

    run(test)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"members": 5}',
        b'{"members": "abc"}',
        b'{"members": ["a:1"]}',
        b'{"members": ["a:1", "b:2", 3]}',
        b'{"members": ["a:1", "b:2", "c"]}',
        b'{"members": {"a:1": 1, "b:2": 2, "c:x": 3}}',
        b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_greeting_without_members_is_none(body: bytes) -> None:
    assert parse_members(body, 3) is None


def test_a_greeting_with_members() -> None:
    assert parse_members(json.dumps({"members": ["a:1", "[::1]:2"]}).encode(), 2) == ["a:1", "[::1]:2"]


# Clusters


@pytest.mark.parametrize("order", [1, -1])
def test_a_list_of_two_clusters_is_refused_with_both_ids(order: int) -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with other_cluster() as others:
            error = await refused([*addresses, *others][::order], timeout=5)
            assert isinstance(error, WrongClusterError)
            assert OTHER.hex() in str(error) and CLUSTER.hex() in str(error)

    run(test)


def test_a_second_cluster_that_is_found_late_ends_all_further_calls() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with other_cluster() as others:
            replicas.greets_after = {1: 1.0, 2: 1.0}
            late = others[0]
            async with connected([addresses[0]], timeout=5) as log:
                assert await log.append([b"a"]) == 0
                place = dialing.Place(late, *dialing.parse_address(late), is_given=True)
                log._dialer._places.append(place)
                log._dialer._spawn(log._dialer._dial(place))
                await until(lambda: log._dialer.error)
                with pytest.raises(WrongClusterError, match=OTHER.hex()):
                    await log.append([b"b"])
                with pytest.raises(WrongClusterError):
                    await log.status()
            assert replicas.log == [b"a"]

    run(test)


def test_a_member_of_another_cluster_is_not_used_and_hurts_nobody() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with other_cluster() as others:
            replicas.members = [addresses[0], others[0], addresses[2]]
            async with connected([addresses[0]]) as log:
                await until(lambda: len(log._replicas) == 2)
                assert await log.append([b"a"]) == 0

    run(test)


def test_the_wrong_cluster_is_refused_with_both_ids() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        error = await refused(addresses, cluster=OTHER.hex())
        assert isinstance(error, WrongClusterError)
        assert OTHER.hex() in str(error) and CLUSTER.hex() in str(error)

    run(test)


# Why not


def test_replicas_of_an_older_release_are_named_as_such() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.greets_in_words = False
        error = await refused(addresses, timeout=5)
        assert isinstance(error, ClientVersionError)
        assert "older version of the client protocol" in str(error)

    run(test)


def test_replicas_of_a_newer_release_ask_to_upgrade() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.refusal = Reason.VERSION
        error = await refused(addresses, timeout=5)
        assert isinstance(error, ClientVersionError)
        assert "upgrade this client" in str(error)

    run(test)


def test_a_refusal_is_told_in_its_words_and_tried_again() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.refusal = Reason.DRAINING
        error = await refused(addresses)
        assert isinstance(error, UnavailableError)
        assert all(f"{address}: it let nobody in: draining" in str(error) for address in addresses)
        entering = asyncio.ensure_future(kimberlite.connect(addresses, timeout=5).__aenter__())
        await asyncio.sleep(0.1)
        replicas.refusal = Reason.NONE
        await (await entering).close()

    run(test)


def test_a_replica_without_a_place_is_full_and_is_not_dialled_all_the_time() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.refusal = Reason.CONNECTIONS
        error = await refused(addresses[:1], timeout=0.4)
        assert f"{addresses[0]}: full" in str(error)
        assert len(replicas.connections[0]) == 1
        replicas.refusal = Reason.NONE
        async with connected(addresses[:1], timeout=5) as log:
            await until(lambda: 0 in log._replicas)
            (connection,) = [c for c in replicas.connections[0] if c.is_open]
            dismissal = make_header(cluster=CLUSTER, command=Command.REJECT, replica=0, reason=Reason.CONNECTIONS)
            connection.send(Message(dismissal))
            connection.close()
            await until(lambda: 0 not in log._replicas)
            assert "full" in log._dialer._places[0].problem
            assert await log.append([b"a"]) == 0

    run(test)


async def serve(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> asyncio.Server:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()  # also when the loop ends first

    return await asyncio.start_server(once, "127.0.0.1", 0)


def name_of(server: asyncio.Server) -> str:
    return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")


async def http_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + b"x" * 300)


async def noise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-whatever" * 30)


async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def peer(reason: Reason) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(256)
        header = make_header(cluster=CLUSTER, command=Command.REJECT, replica=0, reason=reason, count=3)
        writer.write(Message(header).header.raw)

    return answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (http, "port of the metrics"),
        (http_at_once, "port of the metrics"),
        (noise, "another protocol is spoken there: b'SSH-2.0"),
        (close, "closed without a greeting"),
        (silence, "no greeting within"),
        (peer(Reason.WRONG_CLUSTER), "port for other replicas"),
        (peer(Reason.WRONG_SIZE), "port for other replicas"),
        (peer(Reason.WRONG_REPLICA), "port for other replicas"),
    ],
)
def test_the_error_says_what_is_at_an_address(monkeypatch: pytest.MonkeyPatch, answer: Any, words: str) -> None:
    monkeypatch.setattr(dialing, "GREETING_S", 0.2)

    async def main() -> None:
        server = await serve(answer)
        error = await refused([name_of(server)], timeout=0.8)
        assert isinstance(error, UnavailableError)
        assert name_of(server) in str(error) and words in str(error)
        assert words in error.problems[name_of(server)]
        server.close()

    asyncio.run(main())


def test_the_error_says_it_of_each_address() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{sock.getsockname()[1]}"
        nowhere = "no-such-host.invalid:7100"
        error = asyncio.run(refused([nobody, nowhere, "a..b:1"], timeout=1))
        assert isinstance(error, UnavailableError)
        assert f"{nobody}: connection refused" in str(error)
        assert f"{nowhere}: the host name does not resolve" in str(error)
        assert "a..b:1: the host name does not resolve" in str(error)


def test_connecting_that_is_cancelled_leaves_nothing_behind() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.paused = {0, 1, 2}
        before = asyncio.all_tasks()
        entering = asyncio.ensure_future(kimberlite.connect(addresses, timeout=5).__aenter__())
        await until(lambda: all(replicas.connections))
        entering.cancel()
        await asyncio.wait([entering])
        assert asyncio.all_tasks() == before
        await until(lambda: not any(c.is_open for each in replicas.connections for c in each))

    run(test)
