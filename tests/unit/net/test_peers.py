"""The mesh between replicas over loopback: greeting, refusals, reconnection, bounds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kimberlite._fast.framing import decode_header, make_header
from kimberlite.cli.local import free_port
from kimberlite.errors import AddressInUseError, NetworkError
from kimberlite.net import peers as peers_module
from kimberlite.net.peers import DROPPED, HELLO_BYTES_MAX, NO_MEMBER, STRANGER, Nobody, PeerNetwork, Refusal
from kimberlite.net.transport import NullCounters
from kimberlite.types import HEADER_SIZE, ZERO16, Command, Header, Message, Reason

CLUSTER = b"p" * 16
LIMIT_S = 30.0  # a test that waits longer has failed


class Counted(NullCounters):
    def __init__(self) -> None:
        self.dropped: list[str] = []

    def message_dropped(self, reason: str) -> None:
        self.dropped.append(reason)


class Peer:
    """A replica's network, and what came out of it."""

    def __init__(self, index: int, addresses: list[tuple[str, int]], **options: Any) -> None:
        self.messages: list[Message] = []
        self.refusals: list[tuple[int, Refusal]] = []
        self.counters = Counted()
        options = {"cluster": CLUSTER, "listen_on": ("127.0.0.1", addresses[index][1]), **options}
        self.network = PeerNetwork(
            index=index,
            addresses=addresses,
            make_header=make_header,
            view=lambda: 0,
            on_messages=options.pop(
                "on_messages",
                lambda messages: self.messages.extend(
                    Message(message.header, bytes(message.body)) for message in messages
                ),
            ),
            counters=self.counters,
            seed=index,
            on_refusal=lambda replica, refusal: self.refusals.append((replica, refusal)),
            **options,
        )


def free_addresses(count: int) -> list[tuple[str, int]]:
    first = free_port(count)
    return [("127.0.0.1", first + index) for index in range(count)]


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def run(test: Callable[[list[tuple[str, int]]], Awaitable[None]], count: int = 2) -> None:
    async def main() -> None:
        async with asyncio.timeout(LIMIT_S):
            await test(free_addresses(count))

    asyncio.run(main())


def prepare(replica: int, op: int, body: bytes = b"", **fields: Any) -> Message:
    fields = {"cluster": CLUSTER, "command": Command.PREPARE, "replica": replica, "op": op, **fields}
    return Message(make_header(body, **fields), body)


async def stop(*all_peers: Peer) -> None:
    for peer in all_peers:
        await peer.network.stop()
    await asyncio.sleep(0)


async def dialled(address: tuple[str, int], *messages: Message) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A hand-made connection that sends all of these frames in one piece."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"".join(message.header.raw + bytes(message.body) for message in messages))
    await writer.drain()
    return reader, writer


def hello(replica: int, count: int = 2, **fields: Any) -> Message:
    fields = {"cluster": CLUSTER, "command": Command.HELLO, **fields}
    return Message(make_header(replica=replica, count=count, **fields))


def test_replicas_meet_and_talk_both_ways() -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        peers = [Peer(index, addresses) for index in range(3)]
        for peer in peers:
            await peer.network.start()
        await until(lambda: all(len(peer.network.connected) == 2 for peer in peers))
        for source in range(3):
            for target in range(3):
                if source != target:
                    peers[source].network.send(target, prepare(source, 10 * source + target, b"body"))
        await until(lambda: all(len(peer.messages) == 2 for peer in peers))
        for target, peer in enumerate(peers):
            assert {message.header.op % 10 for message in peer.messages} == {target}
            assert {bytes(message.body) for message in peer.messages} == {b"body"}
            assert peer.network.met
            assert not peer.refusals
        await stop(*peers)

    run(test, 3)


def test_a_lone_replica_listens_to_nobody() -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        peer = Peer(0, addresses)
        await peer.network.start()
        with pytest.raises(OSError):
            await asyncio.open_connection(*addresses[0])
        await stop(peer)

    run(test, 1)


def test_what_can_not_be_sent_is_dropped_and_counted() -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        peer = Peer(0, addresses)
        peer.network.send(1, prepare(0, 1))
        assert peer.counters.dropped == ["not_connected"]

    run(test)


def test_the_queue_for_a_peer_that_does_not_read_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "SEND_QUEUE_MAX", 1 << 20)

    async def test(addresses: list[tuple[str, int]]) -> None:
        deaf = socket.create_server(addresses[1])
        peer = Peer(0, addresses)
        await peer.network.start()
        await until(lambda: 1 in peer.network._outgoing)
        body = bytes(256 << 10)
        while "queue_full" not in peer.counters.dropped:
            peer.network.send(1, prepare(0, 1, body))
            await asyncio.sleep(0)
        assert peer.network._outgoing[1].queued_bytes <= (1 << 20) + 2 * len(body)
        peer.network._outgoing[1].abort()
        await stop(peer)
        deaf.close()

    run(test)


def test_a_peer_that_comes_back_is_found_again_and_its_name_resolved_anew() -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        loop = asyncio.get_running_loop()
        resolved: list[str] = []
        look_up = loop.getaddrinfo

        async def getaddrinfo(host: Any, port: Any, **options: Any) -> Any:
            resolved.append(str(host))
            return await look_up("127.0.0.1" if host == "peer.example" else host, port, **options)

        loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign, assignment]
        named = [addresses[0], ("peer.example", addresses[1][1])]
        first = Peer(0, named)
        await first.network.start()
        for round in range(1, 4):
            second = Peer(1, addresses)
            await second.network.start()
            await until(lambda: first.network.connected)
            first.network.send(1, prepare(0, round))
            await until(lambda second=second: second.messages)  # type: ignore[misc]
            before = resolved.count("peer.example")
            await stop(second)
            await until(lambda: not first.network.connected)
            await until(lambda before=before: resolved.count("peer.example") > before)  # type: ignore[misc]
        await stop(first)

    run(test)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"cluster": b"q" * 16}, Reason.WRONG_CLUSTER), ({"more": 1}, Reason.WRONG_SIZE)],
    ids=["another cluster", "another number of replicas"],
)
def test_a_stranger_is_refused_by_both_sides_and_reported_once(options: dict[str, Any], reason: Reason) -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        ours = Peer(0, addresses)
        more = options.pop("more", 0)
        theirs = Peer(1, addresses + free_addresses(more), **options)
        await ours.network.start()
        await theirs.network.start()
        await until(lambda: ours.refusals and theirs.refusals)
        ((replica, refusal),) = ours.refusals
        assert (replica, refusal.reason) == (1, reason)
        assert f"{addresses[1][0]}:{addresses[1][1]}" in str(refusal)
        await until(lambda: len(ours.counters.dropped) > 3)  # it goes on trying, and stays quiet about it
        assert len(ours.refusals) == len(theirs.refusals) == 1
        assert not ours.network.connected
        assert not ours.messages
        assert not theirs.messages
        await stop(ours, theirs)

    run(test)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (hello(1, cluster=ZERO16), Reason.WRONG_CLUSTER),
        (hello(1, count=5), Reason.WRONG_SIZE),
        (hello(0), Reason.WRONG_REPLICA),
        (hello(7), Reason.WRONG_REPLICA),
        (prepare(1, 1), Reason.MALFORMED),
    ],
)
def test_the_first_frame_decides(first: Message, reason: Reason) -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        peer = Peer(0, addresses)
        await peer.network.start()
        reader, writer = await dialled(addresses[0], first, prepare(1, 2))
        answer = await reader.read()  # up to its end: we are disconnected
        assert len(answer) == HEADER_SIZE
        assert not peer.messages
        assert reason.name.lower() in peer.counters.dropped
        writer.close()
        await stop(peer)

    run(test)


def test_every_refusal_counts_as_something() -> None:
    """A peer of a cluster of another size was counted as "other": its reason had no name there."""
    assert set(DROPPED) == STRANGER | NO_MEMBER | {Reason.MALFORMED, Reason.CONNECTIONS, Reason.VERSION}


def test_a_greeting_and_a_large_frame_in_one_piece() -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        peer = Peer(0, addresses)
        await peer.network.start()
        large = prepare(1, 2, bytes(4 * HELLO_BYTES_MAX))
        _, writer = await dialled(addresses[0], hello(1), prepare(1, 1), large, prepare(1, 3))
        await until(lambda: len(peer.messages) == 3)
        assert [message.header.op for message in peer.messages] == [1, 2, 3]
        writer.close()
        await stop(peer)

    run(test)


def test_a_command_of_a_later_release_ends_no_connection() -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        peer = Peer(0, addresses)
        await peer.network.start()
        header = make_header(b"who knows", cluster=CLUSTER, command=17, replica=1)
        later = Message(header, b"who knows")
        _, writer = await dialled(addresses[0], hello(1), prepare(1, 1), later, prepare(1, 3))
        await until(lambda: len(peer.messages) == 3)
        assert [message.header.command for message in peer.messages] == [Command.PREPARE, 17, Command.PREPARE]
        writer.close()
        await stop(peer)

    run(test)


def test_before_its_greeting_a_peer_gets_little_room() -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        peer = Peer(0, addresses)
        await peer.network.start()
        reader, writer = await dialled(addresses[0], prepare(1, 1, bytes(HELLO_BYTES_MAX)))
        with contextlib.suppress(ConnectionResetError):  # what it has not read makes it one
            assert await reader.read() == b""
        writer.close()
        await stop(peer)

    run(test)


def test_nobody_speaks_for_another_replica_or_cluster() -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        peer = Peer(0, addresses)
        await peer.network.start()
        ok = {"command": Command.PREPARE_OK}
        _, writer = await dialled(
            addresses[0],
            hello(1, count=3),
            prepare(2, 1, **ok),
            prepare(1, 2, **ok),
            prepare(2, 3),  # a prepare that is passed on bears the index of who made it
            prepare(1, 4, cluster=b"q" * 16, **ok),
            prepare(1, 5, **ok),
        )
        await until(lambda: "wrong_cluster" in peer.counters.dropped)
        assert [message.header.op for message in peer.messages] == [2, 3]
        assert peer.counters.dropped == ["impostor", "wrong_cluster"]
        writer.close()
        await stop(peer)

    run(test, 3)


def test_the_connection_of_a_refused_frame_is_closed_and_no_other() -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        got: list[Message] = []
        peer = Peer(0, addresses, on_messages=got.extend)
        await peer.network.start()
        first, second = [await dialled(addresses[0], hello(index, 3), prepare(1, 4 + index)) for index in (1, 2)]
        await until(lambda: len(got) == 2)
        refused = next(message for message in got if message.header.op == 5)
        peer.network.refuse(refused)
        peer.network.refuse(Message(refused.header))  # one that came on no connection
        assert len(await first[0].read()) == HEADER_SIZE, "a HELLO, then the end"
        first[1].close()
        second[1].write(prepare(1, 7).header.raw)
        await until(lambda: got[-1].header.op == 7)
        second[1].close()
        await stop(peer)

    run(test, 3)


async def answer(reader: asyncio.StreamReader) -> Header:
    return decode_header(await reader.readexactly(HEADER_SIZE))


def test_a_second_connection_takes_the_place_of_one_that_is_silent() -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        peer = Peer(0, addresses)
        await peer.network.start()
        reader, old = await dialled(addresses[0], hello(1))
        await answer(reader)
        began = time.monotonic()
        other, new = await dialled(addresses[0], hello(1), prepare(1, 1))
        assert (await answer(reader)).command == Command.HELLO, "it is asked"
        await until(lambda: peer.messages)
        assert time.monotonic() - began > peers_module.PROBE_S * 0.9
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert (await answer(other)).command == Command.HELLO
        old.close()
        new.close()
        await stop(peer)

    run(test)


def test_a_second_connection_does_not_displace_one_that_lives() -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        peers = [Peer(index, addresses) for index in range(2)]
        for peer in peers:
            await peer.network.start()
        await until(lambda: all(peer.network.connected for peer in peers))
        second, one = await dialled(addresses[0], hello(1), prepare(1, 1))
        await until(lambda: peers[0].network._waiting)
        third, two = await dialled(addresses[0], hello(1), prepare(1, 2))
        for reader in (third, second):  # one waits for each replica
            refused = await answer(reader)
            assert (refused.command, refused.reason) == (Command.REJECT, Reason.CONNECTIONS)
            assert await reader.read() == b""
        peers[1].network.send(0, prepare(1, 3))
        await until(lambda: peers[0].messages)
        assert [message.header.op for message in peers[0].messages] == [3]
        one.close()
        two.close()
        await stop(*peers)

    run(test)


def test_a_second_connection_waits_no_longer_than_the_first_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "PROBE_S", 10 * LIMIT_S)

    async def test(addresses: list[tuple[str, int]]) -> None:
        peer = Peer(0, addresses)
        await peer.network.start()
        reader, old = await dialled(addresses[0], hello(1))
        await answer(reader)
        _, new = await dialled(addresses[0], hello(1), prepare(1, 2))
        await until(lambda: peer.network._waiting)
        old.close()
        await until(lambda: peer.messages)
        assert [message.header.op for message in peer.messages] == [2]
        new.close()
        await stop(peer)

    run(test)


def test_strangers_do_not_keep_a_peer_out() -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        peer = Peer(0, addresses, strangers_max=4)
        await peer.network.start()
        held = [await dialled(addresses[0]) for _ in range(8)]
        await until(lambda: len(peer.network._deadlines) == 2)
        reader, writer = await dialled(addresses[0], hello(1))
        assert (await answer(reader)).command == Command.HELLO
        for _, other in (*held, (reader, writer)):
            other.close()
        await stop(peer)

    run(test)


def test_who_finds_no_place_is_told_so() -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        peer = Peer(0, addresses, strangers_max=0)
        await peer.network.start()
        reader, writer = await dialled(addresses[0])
        refused = await answer(reader)
        assert (refused.command, refused.reason) == (Command.REJECT, Reason.CONNECTIONS)
        assert peer.counters.dropped == ["connection_limit"]
        writer.close()
        await stop(peer)

    run(test)


def test_an_address_in_use_is_named_and_nothing_is_started() -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        taken = socket.create_server(addresses[0])
        peer = Peer(0, addresses)
        with pytest.raises(AddressInUseError, match=f"127.0.0.1:{addresses[0][1]}"):
            await peer.network.start()
        assert not peer.network.diallers
        taken.close()
        with pytest.raises(NetworkError):
            await Peer(0, addresses, listen_on=("192.0.2.1", addresses[0][1])).network.start()

    run(test)


def test_a_peer_that_ended_is_gone_at_once_and_after_its_last_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "LASTED_S", 0.0)

    async def test(addresses: list[tuple[str, int]]) -> None:
        told: list[tuple[int, int]] = []
        first = Peer(0, addresses, on_gone=lambda replica: told.append((replica, len(first.messages))))
        second = Peer(1, addresses)
        for peer in (first, second):
            await peer.network.start()
        await until(lambda: first.network.connected and second.network.connected)
        for op in range(1, 101):
            second.network.send(0, prepare(1, op))
        await second.network.stop()
        await until(lambda: told)
        assert told == [(1, 100)]
        await asyncio.sleep(3 * peers_module.DIAL_FIRST_S)  # it is refused again, and nothing is told again
        assert told == [(1, 100)]
        await stop(first)

    run(test)


def test_a_listener_that_comes_and_goes_makes_nobody_gone() -> None:
    """Nor one that was never there: what had not lasted is nothing to be missed."""

    async def test(addresses: list[tuple[str, int]]) -> None:
        told: list[int] = []
        first = Peer(0, addresses, on_gone=told.append)
        await first.network.start()
        for _ in range(3):
            second = Peer(1, addresses)
            await second.network.start()
            await until(lambda second=second: first.network.connected and second.network.connected)
            await second.network.stop()
            await until(lambda: not first.network.connected)
            await asyncio.sleep(2 * peers_module.QUICK_DIALS * peers_module.QUICK_DIAL_S)
        assert told == []
        await stop(first)

    run(test)


def test_a_peer_that_accepts_again_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection broke, and it is there."""
    monkeypatch.setattr(peers_module, "LASTED_S", 0.0)

    async def test(addresses: list[tuple[str, int]]) -> None:
        told: list[int] = []
        first = Peer(0, addresses, on_gone=told.append)
        second = Peer(1, addresses)
        for peer in (first, second):
            await peer.network.start()
        await until(lambda: first.network.connected and second.network.connected)
        broken = first.network._outgoing[1]
        broken.abort()
        await until(lambda: first.network._outgoing.get(1) not in (None, broken) and first.network.connected)
        assert told == []
        await stop(first, second)

    run(test)


class BornLater(Nobody):
    """Lets everybody in, until it knows its members: those of one incarnation."""

    def __init__(self) -> None:
        self.is_born = False
        self.heeded: list[Header] = []

    def greeting(self) -> dict[str, Any]:
        return {"client": b"m" * 16, "session": 9, "epoch": 1}

    def judge_greeting(self, header: Header) -> Reason:
        return Reason.REPLACED if self.is_born and header.client != b"m" * 16 else Reason.NONE

    def refused_by(self, header: Header) -> None:
        self.heeded.append(header)


def test_who_was_let_in_before_the_birth_is_asked_again_behind_it() -> None:
    """Of prepares nobody asks who has sent them: that their connection is a member's must be known."""

    async def test(addresses: list[tuple[str, int]]) -> None:
        door = BornLater()
        peer = Peer(0, addresses, doorkeeper=door)
        await peer.network.start()
        stranger, to_peer = await dialled(addresses[0], hello(1, count=3), prepare(1, 1))
        _member, from_member = await dialled(addresses[0], hello(2, count=3, client=b"m" * 16), prepare(2, 2))
        await until(lambda: len(peer.messages) == 2)
        door.is_born = True
        peer.network.judge_again()
        answer = await stranger.read()
        to_peer.write(prepare(1, 3).header.raw)
        from_member.write(prepare(2, 4).header.raw)
        said = decode_header(answer[-HEADER_SIZE:])
        assert (said.command, said.reason) == (Command.REJECT, Reason.REPLACED)
        assert (said.client, said.session, said.epoch) == (b"m" * 16, 9, 1), "who says so, may be asked"
        await until(lambda: len(peer.messages) == 3)
        assert [message.header.op for message in peer.messages] == [1, 2, 4]
        for writer in (to_peer, from_member):
            writer.close()
        await stop(peer)

    run(test, 3)


def test_a_refusal_is_heeded_of_the_replica_whose_address_was_dialled() -> None:
    async def test(addresses: list[tuple[str, int]]) -> None:
        theirs, ours = BornLater(), BornLater()
        theirs.is_born = True
        ours.greeting = lambda: {"client": b"o" * 16}  # type: ignore[method-assign]
        peers = [Peer(0, addresses, doorkeeper=ours), Peer(1, addresses, doorkeeper=theirs)]
        for peer in peers:
            await peer.network.start()
        await until(lambda: ours.heeded)
        assert {(said.replica, said.client) for said in ours.heeded} == {(1, b"m" * 16)}
        await stop(*peers)

    run(test)
