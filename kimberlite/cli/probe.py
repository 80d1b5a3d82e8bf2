"""Ask one replica for its status over a plain blocking socket.

`status` and `dev` must say what each replica is doing even when there is no quorum and
no primary; so they ask every address by itself instead of opening a session.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from kimberlite._fast import framing
from kimberlite.config import parse_address
from kimberlite.errors import FrameError, UnavailableError, WrongClusterError
from kimberlite.net import CLIENT_VERSION
from kimberlite.types import NO_REPLICA, ZERO16, ClusterId, Command, Header, Reason, reason_text

REPLY_BYTES_MAX = 1 << 20
CLOSED = "it closed the connection; is that the client address of a replica?"


@dataclass(frozen=True, slots=True)
class Told:
    """What a replica tells: its status document, and the client addresses of all members as it knows them, in the order
    of their indexes (none from an older release)."""

    status: dict[str, object]
    members: tuple[str, ...]


def ask(address: str, timeout: float, cluster: ClusterId = ZERO16) -> Told:
    """Ask the replica at `address`, which must be of that cluster unless it is zero.

    Raises UnavailableError when there is no answer within `timeout` seconds in all, WrongClusterError.
    """
    deadline = time.monotonic() + timeout
    client = secrets.token_bytes(16)
    hello = framing.make_header(
        cluster=cluster, command=Command.HELLO, replica=NO_REPLICA, client=client, count=CLIENT_VERSION
    )
    question = framing.make_header(cluster=cluster, command=Command.STATUS, replica=NO_REPLICA, client=client)
    try:
        with socket.create_connection(parse_address(address), timeout) as connection:
            connection.sendall(hello.raw + question.raw)
            received = bytearray()
            while True:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                chunk = connection.recv(1 << 16)
                if not chunk:
                    raise UnavailableError(f"{address}: {CLOSED}", address=address)
                received += chunk
                if (told := _told_in(bytes(received), address)) is not None:
                    return told
    except (OSError, FrameError) as error:
        raise UnavailableError(f"{address}: {describe(error)}", address=address) from error


def fetch_status(address: str, timeout: float) -> dict[str, object]:
    """The status that the replica at `address` gives of itself, a JSON object. Raises as `ask` does."""
    return ask(address, timeout).status


def _told_in(received: bytes, address: str) -> Told | None:
    frames, _, _ = framing.parse(received, 0, len(received), REPLY_BYTES_MAX)
    members: tuple[str, ...] = ()
    for header, body in frames:
        if header.command == Command.HELLO:
            listed = _json(bytes(body), address).get("members", ()) if len(body) else ()
            members = tuple(map(str, listed)) if isinstance(listed, list) else ()
        elif header.command == Command.STATUS_REPLY:
            return Told(_json(bytes(body), address), members)
        elif header.command == Command.REJECT:
            raise _refusal(header, address)
    return None


def _refusal(header: Header, address: str) -> UnavailableError | WrongClusterError:
    if header.reason == Reason.WRONG_CLUSTER:
        return WrongClusterError(f"{address} is of another cluster, {header.cluster.hex()}", address=address)
    return UnavailableError(f"{address} refused to answer: {reason_text(header.reason)}", address=address)


def _json(body: bytes, address: str) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError as error:
        raise UnavailableError(f"{address} answered what is no JSON: {error}", address=address) from error
    return document if isinstance(document, dict) else {}


def ask_all(addresses: Sequence[str], timeout: float, cluster: ClusterId = ZERO16) -> list[Told | UnavailableError]:
    """`ask` for every address at the same time; an UnavailableError takes the place of its answer."""

    def one(address: str) -> Told | UnavailableError:
        try:
            return ask(address, timeout, cluster)
        except UnavailableError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(1, len(addresses))) as pool:
        return list(pool.map(one, addresses))


def fetch_all(addresses: Sequence[str], timeout: float) -> list[dict[str, object] | UnavailableError]:
    """fetch_status for every address at the same time; an error takes the place of its answer."""
    told = ask_all(addresses, timeout)
    return [answer if isinstance(answer, UnavailableError) else answer.status for answer in told]


def describe(error: Exception) -> str:
    """What happened, in the words of a person who looks at a network."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    if isinstance(error, ConnectionResetError):
        return CLOSED
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "host name does not resolve"
    return str(error)
