"""The client side of a node over loopback: greeting, limits, routes, reads that wait."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import sys
from typing import Any

import pytest
from client_side import CLUSTER, Node, batch, connect, run, until, writers

from kimberlite._fast import events, framing
from kimberlite._fast.framing import make_header
from kimberlite.errors import AddressInUseError
from kimberlite.net import CLIENT_VERSION, READ_END, READ_TIMES, READ_WAIT, times
from kimberlite.net.peers import HELLO_BYTES_MAX
from kimberlite.node import server as server_module
from kimberlite.node.connections import Bounds
from kimberlite.told import TELLS
from kimberlite.types import HEADER_SIZE, ZERO16, Command, Message, Operation, Reason

HOUR_NS = 3_600_000_000_000


# Greeting


@pytest.mark.parametrize("cluster", [CLUSTER, ZERO16], ids=["its cluster", "any cluster"])
def test_a_greeting_names_the_cluster_or_asks_for_it(cluster: bytes) -> None:
    async def test(node: Node) -> None:
        client = await connect(node, greet=False)
        client.send(Command.HELLO, cluster=cluster)
        assert (await client.answer()).header.command == Command.HELLO
        assert node.server.connections == 1

    run(test)


@pytest.mark.parametrize(
    ("command", "fields", "reason"),
    [
        (Command.HELLO, {"cluster": b"x" * 16}, Reason.WRONG_CLUSTER),
        (Command.HELLO, {"replica": 2}, Reason.MALFORMED),
        (Command.STATUS, {}, Reason.MALFORMED),
    ],
)
def test_who_does_not_greet_properly_is_told_why_and_disconnected(
    command: Command, fields: dict[str, Any], reason: Reason
) -> None:
    async def test(node: Node) -> None:
        client = await connect(node, greet=False)
        client.send(command, **fields)
        await client.rejected(reason)
        assert await client.reader.read() == b""

    run(test)


def test_before_the_greeting_nothing_large_is_read() -> None:
    async def test(node: Node) -> None:
        client = await connect(node, greet=False)
        client.send(Command.HELLO, bytes(HELLO_BYTES_MAX))
        with contextlib.suppress(ConnectionResetError):  # what it has not read makes it one
            assert await client.reader.read() == b""

    run(test)


def test_a_greeting_with_a_large_request_behind_it() -> None:
    async def test(node: Node) -> None:
        client = await connect(node, greet=False)
        body = batch(bytes(4 * HELLO_BYTES_MAX))
        client.send(Command.HELLO)
        client.send(Command.REQUEST, body, operation=Operation.APPLY, count=1)
        await until(lambda: node.requests)
        assert node.requests[0][0].body == body

    run(test)


def of(connections: int, waiting: int = 8, **options: Any) -> Bounds:
    return Bounds(connections, waiting, **options)


def test_above_the_limit_the_status_is_answered_and_others_are_told_why() -> None:
    async def test(node: Node) -> None:
        for number in range(2):
            (await connect(node, b"%d" % number * 16)).send(Command.REQUEST, operation=Operation.REGISTER)
        third = await connect(node, b"3" * 16)
        third.send(Command.STATUS)
        assert (await third.answer()).header.command == Command.STATUS_REPLY
        assert node.server.connections == 2
        third.send(Command.REQUEST, operation=Operation.REGISTER)
        await third.rejected(Reason.CONNECTIONS)
        assert await third.reader.read() == b""
        silent = await connect(node, greet=False)
        await silent.rejected(Reason.CONNECTIONS)
        assert node.counters.ended == ["refused", "refused"]
        writers[0].close()
        await until(lambda: node.server.connections == 1)
        await connect(node, b"4" * 16)
        assert node.server.connections == 2

    run(test, bounds=of(2))


def test_above_the_limit_whoever_works_takes_the_place_of_the_one_idle_longest() -> None:
    async def test(node: Node) -> None:
        clients = [await connect(node, b"%d" % number * 16) for number in range(3)]
        clients[2].send(Command.READ, position=0, flags=READ_WAIT, timestamp=HOUR_NS)
        await until(lambda: node.server._clients._idle)
        clients[0].send(Command.REQUEST, operation=Operation.REGISTER)
        await until(lambda: node.requests)
        for number, gone in (
            (4, clients[1]),
            (5, clients[2]),
        ):  # not the one that has done something, and last who waits
            new = await connect(node, b"%d" % number * 16)
            new.send(Command.REQUEST, operation=Operation.REGISTER)
            await gone.rejected(Reason.CONNECTIONS)
            await until(lambda number=number: len(node.requests) == number - 2)
        assert node.counters.ended == ["displaced"] * 2
        assert node.server.connections == 3

    run(test, bounds=of(3))


def test_of_many_that_come_at_once_all_are_told_and_the_last_has_a_place() -> None:
    async def test(node: Node) -> None:
        await connect(node)
        crowd = [await connect(node, greet=False) for _ in range(40)]
        last = await connect(node, greet=False)
        last.send(Command.HELLO)
        last.send(Command.STATUS)
        answers = [(await last.answer()).header.command for _ in range(2)]
        assert answers == [Command.HELLO, Command.STATUS_REPLY]
        for client in crowd:
            await client.rejected(Reason.CONNECTIONS)

    run(test, bounds=of(1))


@pytest.mark.parametrize("taken", [0, 1], ids=["held", "none held"])
def test_without_descriptors_a_client_is_refused_and_the_loop_goes_on(taken: int) -> None:
    async def test(node: Node) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        sockets = [socket.socket() for _ in range(3)]
        listener = node.server._server
        assert listener is not None
        highest = max(map(int, os.listdir("/proc/self/fd")))  # closing one above the limit would make no room
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, highest + 64), hard))
        held = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.open(os.devnull, os.O_RDONLY))
            if taken:
                listener._let_go()
                held.append(os.open(os.devnull, os.O_RDONLY))
            loop = asyncio.get_running_loop()
            for sock in sockets:
                sock.setblocking(False)
                await loop.sock_connect(sock, ("127.0.0.1", node.port))
            await asyncio.sleep(0.2)
            if not taken:
                for sock in sockets:
                    frame = framing.decode_header(await loop.sock_recv(sock, HEADER_SIZE))
                    assert (frame.command, frame.reason) == (Command.REJECT, Reason.CONNECTIONS)
        finally:
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await connect(node)  # it goes on by itself
        for sock in sockets:
            sock.close()

    run(test)


def test_garbage_ends_the_connection_and_no_other() -> None:
    async def test(node: Node) -> None:
        other = await connect(node, b"1" * 16)
        client = await connect(node, b"2" * 16)
        client.writer.write(b"GET / HTTP/1.1\r\n\r\n" + bytes(300))
        assert await client.reader.read() == b""
        other.send(Command.STATUS)
        assert json.loads((await other.answer()).body) == {"role": "primary"}

    run(test)


def test_an_address_in_use_is_named() -> None:
    async def test(node: Node) -> None:
        other = Node()
        other.server._listen_on = ("127.0.0.1", node.port)
        with pytest.raises(AddressInUseError, match=str(node.port)):
            await other.server.start()

    run(test)


# Requests


def test_requests_of_one_wake_up_are_handed_on_together_and_answers_find_their_client() -> None:
    async def test(node: Node) -> None:
        client = await connect(node)
        client.writer.transport.pause_reading()
        frames = []
        for number in range(1, 4):
            body = batch(b"%d" % number)
            header = make_header(
                body,
                cluster=CLUSTER,
                command=Command.REQUEST,
                client=client.identity,
                operation=Operation.APPLY,
                request=number,
                count=1,
            )
            frames.append(header.raw + body)
        client.writer.write(b"".join(frames))
        await until(lambda: sum(map(len, node.requests)) == 3)
        assert [request.header.request for request in node.requests[0]] == [1, 2, 3]
        client.writer.transport.resume_reading()
        reply = make_header(b"r", cluster=CLUSTER, command=Command.REPLY, replica=1, view=4, client=client.identity)
        node.server.send_client(client.identity, Message(reply, b"r"))
        assert (await client.answer()).body == b"r"
        node.server.send_client(b"?" * 16, Message(reply, b"r"))
        assert node.counters.dropped == ["no_client"]

    run(test)


def test_answers_go_to_the_connection_used_last() -> None:
    async def test(node: Node) -> None:
        first = await connect(node)
        second = await connect(node)
        reply = Message(make_header(cluster=CLUSTER, command=Command.REPLY, replica=1, view=4))
        node.server.send_client(b"c" * 16, reply)
        await second.answer()
        first.send(Command.REQUEST, batch(b"x"), operation=Operation.APPLY, count=1)
        await until(lambda: node.requests)
        node.server.send_client(b"c" * 16, reply)
        await first.answer()
        first.writer.close()
        await until(lambda: node.server.connections == 1)
        node.server.send_client(b"c" * 16, reply)
        await second.answer()
        second.writer.close()
        await until(lambda: node.server.connections == 0)
        node.server.send_client(b"c" * 16, reply)
        assert node.counters.dropped == ["no_client"], "it comes back by itself and asks again"
        assert not node.server._clients.routes

    run(test)


REFUSED = [
    (batch(b"x"), {"count": 1, "cluster": ZERO16}, Reason.WRONG_CLUSTER),
    (batch(b"x"), {"count": 1, "operation": Operation.NOOP}, Reason.MALFORMED),
    (batch(b"x"), {"count": 1, "operation": Operation.BATCH}, Reason.MALFORMED),
    (batch(b"x"), {"count": 2}, Reason.MALFORMED),
    (batch(b"x"), {"count": 1, "nonce": 16}, Reason.MALFORMED),  # it names an extension, which later releases have
    (batch(), {"count": 0}, Reason.MALFORMED),
    (b"no batch", {"count": 1}, Reason.MALFORMED),
    (b"", {"count": 0}, Reason.MALFORMED),
    (batch(b"x" * 101), {"count": 1}, Reason.TOO_LARGE),
    (batch(*[b"x" * 100] * 9), {"count": 9}, Reason.TOO_LARGE),
    (batch(*[b""] * 11), {"count": 11}, Reason.TOO_LARGE),
    (b"x", {"operation": Operation.REGISTER}, Reason.MALFORMED),
    (b"", {"operation": Operation.REGISTER, "count": 1}, Reason.MALFORMED),
    (batch(b"x"), {"count": 1, "replica": 0}, Reason.MALFORMED),
]


@pytest.mark.parametrize(("body", "fields", "reason"), REFUSED)
def test_what_can_not_enter_the_log_never_reaches_the_core(body: bytes, fields: dict[str, Any], reason: Reason) -> None:
    async def test(node: Node) -> None:
        client = await connect(node)
        identity = client.send(Command.REQUEST, body, **{"operation": Operation.APPLY, "request": 5, **fields})
        answer = await client.rejected(reason)
        assert (answer.header.context, answer.header.request) == (identity, 5)
        client.send(Command.STATUS)
        if reason != Reason.WRONG_CLUSTER:
            await client.answer()
        assert not node.requests

    run(test, event_bytes_max=100, request_bytes_max=900, events_max=10)


def test_what_is_just_within_the_limits_enters() -> None:
    async def test(node: Node) -> None:
        client = await connect(node)
        for body, count in ((batch(b"x" * 100), 1), (batch(*[b""] * 10), 10)):
            client.send(Command.REQUEST, body, operation=Operation.APPLY, count=count)
        client.send(Command.REQUEST, operation=Operation.REGISTER)
        await until(lambda: sum(map(len, node.requests)) == 3)

    run(test, event_bytes_max=100, request_bytes_max=900, events_max=10)


@pytest.mark.parametrize("version", [0, CLIENT_VERSION - 1])
def test_an_older_client_is_told_so_and_let_go(version: int) -> None:
    async def test(node: Node) -> None:
        client = await connect(node, greet=False)
        client.send(Command.HELLO, count=version)
        await client.rejected(Reason.VERSION)
        assert await client.reader.read() == b""

    run(test)


@pytest.mark.parametrize("command", [Command.PREPARE, Command.DO_VIEW_CHANGE, Command.REPLY, Command.HELLO])
def test_a_client_does_not_speak_for_a_replica(command: Command) -> None:
    async def test(node: Node) -> None:
        client = await connect(node)
        client.send(command)
        await client.rejected(Reason.MALFORMED)

    run(test)


def test_what_a_client_tells_counts_once_and_when_it_is_answered() -> None:
    async def test(node: Node) -> None:
        client = await connect(node)
        fields = {"operation": Operation.APPLY, "session": 5, "request": 1, "count": 1, "flags": TELLS}
        sent = client.send(Command.REQUEST, batch(b"event"), **fields)
        await until(lambda: len(node.requests) == 1)

        async def answer(command: Command, about: bytes) -> None:
            header = make_header(
                cluster=CLUSTER, command=command, replica=1, view=4, client=client.identity, context=about
            )
            node.server.send_client(client.identity, Message(header))
            assert (await client.answer()).header.command == command

        await answer(Command.REJECT, sent)
        assert not node.counters.told, "who refuses it has not heard it"
        await answer(Command.REPLY, b"o" * 16)
        assert not node.counters.told, "another request was answered"
        await answer(Command.REPLY, sent)
        assert [bytes(header.checksum) for header in node.counters.told] == [sent]
        client.send(Command.REQUEST, batch(b"event"), **fields)
        await until(lambda: len(node.requests) == 2)
        await answer(Command.REPLY, sent)
        assert len(node.counters.told) == 1

    run(test)


def test_a_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REPLY_QUEUE_MAX", 1 << 20)

    async def test(node: Node) -> None:
        client = await connect(node)
        client.writer.transport.pause_reading()
        body = bytes(256 << 10)
        reply = Message(make_header(body, cluster=CLUSTER, command=Command.REPLY, replica=1, view=4), body)
        while "slow_client" not in node.counters.dropped:
            node.server.send_client(client.identity, reply)
            await asyncio.sleep(0)
        client.writer.transport.abort()
        await until(lambda: node.server.connections == 0)

    run(test)


# Turns


def test_of_many_reads_one_is_answered_in_a_turn_and_others_come_between() -> None:
    async def test(node: Node) -> None:
        node.log.events = [b"e"]
        greedy, other = await connect(node, b"1" * 16), await connect(node, b"2" * 16)
        order: list[bytes] = []
        read = node.log.read

        def noted(*arguments: Any) -> Any:
            order.append(b"read")
            return read(*arguments)

        node.log.read = noted  # type: ignore[method-assign]
        for _ in range(20):
            greedy.send(Command.READ, position=0)
        other.send(Command.REQUEST, operation=Operation.REGISTER)
        node.server._on_requests = lambda requests: order.append(b"request")
        for _ in range(20):
            assert (await greedy.answer()).header.command == Command.READ_REPLY
        assert order.index(b"request") < 20, "it did not wait for all of them"

    run(test)


@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2),
    reason="asyncio's own writelines asks nobody to pause there (CVE-2024-12254); replicas run on uvloop",
)
def test_a_reader_that_does_not_read_gets_no_more_answers_made() -> None:
    async def test(node: Node) -> None:
        node.log.events = [bytes(1 << 20)]
        client = await connect(node)
        client.writer.transport.pause_reading()
        for _ in range(100):
            client.send(Command.READ, position=0)
        held, quiet = -1, 0
        while quiet < 20:  # until nothing changes
            await asyncio.sleep(0.005)
            (connection,) = node.server._clients.all()
            quiet = quiet + 1 if connection.memory_bytes == held else 0
            held = connection.memory_bytes
        assert held < 3 << 20
        client.writer.transport.resume_reading()
        for _ in range(100):
            await client.answer()

    run(test)


def test_refused_requests_are_handled_a_few_at_a_time() -> None:
    async def test(node: Node) -> None:
        client = await connect(node)
        for number in range(200):
            client.send(Command.REQUEST, b"no batch", operation=Operation.APPLY, count=1, request=number)
        for number in range(200):
            assert (await client.rejected(Reason.MALFORMED)).header.request == number

    run(test)


def test_nothing_more_is_handled_after_the_end_of_a_connection() -> None:
    async def test(node: Node) -> None:
        client = await connect(node)
        client.send(Command.STATUS, cluster=b"x" * 16)
        client.send(Command.REQUEST, operation=Operation.REGISTER)
        await client.rejected(Reason.WRONG_CLUSTER)
        with contextlib.suppress(ConnectionResetError):
            assert await client.reader.read() == b""
        assert not node.requests

    run(test)


# Reads


def test_reads_are_answered_with_what_was_asked_for() -> None:
    async def test(node: Node) -> None:
        node.log.events = [b"%d" % number for number in range(10)]
        client = await connect(node)
        identity = client.send(Command.READ, position=3, count=4, session=1000)
        answer = await client.answer()
        header = answer.header
        assert (header.command, header.context, header.position, header.count) == (Command.READ_REPLY, identity, 3, 4)
        assert (header.timestamp, header.op) == (10, 7)
        assert events.slice(answer.body, 0, 4) == [b"3", b"4", b"5", b"6"]
        assert node.log.asked == (3, 4, 1000)
        client.send(Command.READ, position=0, session=1 << 40)
        await client.answer()
        assert node.log.asked[2] == server_module.READ_BYTES_MAX
        client.send(Command.READ, position=10)
        assert (await client.rejected(Reason.POSITION_BEYOND_END)).header.position == 10
        client.send(Command.READ, position=11, flags=READ_WAIT, timestamp=HOUR_NS)
        await client.rejected(Reason.POSITION_BEYOND_END)
        node.log.damaged = True
        client.send(Command.READ, position=0)
        await client.rejected(Reason.CORRUPT)

    run(test)


def test_a_read_tells_when_its_events_were_appended_when_asked() -> None:
    async def test(node: Node) -> None:
        node.log.events = [b"%d" % number for number in range(10)]
        client = await connect(node)
        client.send(Command.READ, position=3, count=4, flags=READ_TIMES)
        answer = await client.answer()
        assert (answer.header.count, answer.header.session) == (4, 2)
        batch, stamps, counts = times.split(answer.body, 2, 4)
        assert events.slice(batch, 0, 4) == [b"3", b"4", b"5", b"6"] and events.validate(batch) == 4
        assert (stamps, counts) == ((1003, 2000), (1, 3))

    run(test)


def test_the_end_is_told_at_once() -> None:
    async def test(node: Node) -> None:
        client = await connect(node)
        for expected in (0, 3):
            client.send(Command.READ, flags=READ_END | READ_WAIT, timestamp=HOUR_NS)
            answer = await client.answer()
            assert (answer.header.command, answer.header.count, answer.body) == (Command.READ_REPLY, 0, b"")
            assert answer.header.timestamp == expected
            node.log.events = [b"a", b"b", b"c"]

    run(test)


def test_a_read_at_the_end_waits_for_what_comes() -> None:
    async def test(node: Node) -> None:
        client = await connect(node)
        identity = client.send(Command.READ, position=0, flags=READ_WAIT, timestamp=HOUR_NS)
        await until(lambda: node.server._parked)
        node.server.on_applied()
        assert node.server._parked, "nothing came"
        node.log.events.append(b"new")
        node.server.on_applied()
        answer = await client.answer()
        assert (answer.header.context, events.slice(answer.body, 0, 1)) == (identity, [b"new"])
        assert not node.server._parked

    run(test)


def test_a_read_that_waits_ends_with_its_time_or_its_connection() -> None:
    async def test(node: Node) -> None:
        client = await connect(node)
        client.send(Command.READ, position=0, flags=READ_WAIT, timestamp=1)
        answer = await client.answer()
        assert (answer.header.command, answer.header.count, answer.body) == (Command.READ_REPLY, 0, b"")
        client.send(Command.READ, position=0, flags=READ_WAIT, timestamp=HOUR_NS)
        await until(lambda: node.server._parked)
        client.writer.close()
        await until(lambda: not node.server.connections)
        assert not node.server._parked
        node.log.events.append(b"new")
        node.server.on_applied()

    run(test)


def test_one_read_waits_on_a_connection() -> None:
    async def test(node: Node) -> None:
        client = await connect(node)
        client.send(Command.READ, position=0, flags=READ_WAIT, timestamp=HOUR_NS, nonce=1)
        second = client.send(Command.READ, position=0, flags=READ_WAIT, timestamp=HOUR_NS, nonce=2)
        await until(lambda: any(parked.parked and parked.parked.nonce == 2 for parked in node.server._parked))
        node.log.events.append(b"new")
        node.server.on_applied()
        assert (await client.answer()).header.context == second
        assert len(node.server._parked) == 0

    run(test)


def test_stopping_frees_the_port() -> None:
    async def main() -> None:
        node = Node()
        await node.server.start()
        port = node.port
        await node.server.stop()
        with socket.create_server(("127.0.0.1", port)):
            pass

    asyncio.run(main())


# News


def test_whoever_appends_is_told_of_a_view_that_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "TOLD_PER_TURN", 2)

    async def test(node: Node) -> None:
        appending = [await connect(node, b"%d" % number * 16) for number in range(5)]
        for client in appending:
            client.send(Command.REQUEST, operation=Operation.REGISTER)
        reading = await connect(node, b"r" * 16)
        await until(lambda: sum(map(len, node.requests)) == 5)
        node.server.tell_view()
        for client in appending:
            told = (await client.answer()).header
            assert (told.command, told.context, told.client) == (Command.HELLO, ZERO16, ZERO16)
        reading.send(Command.STATUS)
        assert (await reading.answer()).header.command == Command.STATUS_REPLY  # and nothing before

    run(test)
