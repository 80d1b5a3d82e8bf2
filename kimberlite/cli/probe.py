"""Ask one replica for its status over a plain blocking socket.

`status` and `dev` must say what each replica is doing even when there is no quorum and
no primary; so they ask every address by itself instead of opening a session.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from kimberlite._fast import framing
from kimberlite.config import parse_address
from kimberlite.errors import FrameError, UnavailableError, WrongClusterError
from kimberlite.types import NO_REPLICA, ZERO16, Command, Reason

REPLY_BYTES_MAX = 1 << 20


def fetch_status(address: str, timeout: float) -> dict[str, object]:
    """The status that the replica at `address` gives of itself, a JSON object.

    Raises UnavailableError when there is no answer within `timeout` seconds.
    """
    client = secrets.token_bytes(16)
    hello = framing.make_header(cluster=ZERO16, command=Command.HELLO, replica=NO_REPLICA, client=client)
    ask = framing.make_header(cluster=ZERO16, command=Command.STATUS, replica=NO_REPLICA, client=client)
    try:
        with socket.create_connection(parse_address(address), timeout) as connection:
            connection.settimeout(timeout)
            connection.sendall(hello.raw + ask.raw)
            received = bytearray()
            while True:
                chunk = connection.recv(1 << 16)
                if not chunk:
                    raise UnavailableError(f"{address} closed the connection", address=address)
                received += chunk
                if (reply := _status_in(bytes(received), address)) is not None:
                    return reply
    except (OSError, FrameError) as error:
        raise UnavailableError(f"{address}: {describe(error)}", address=address) from error


def _status_in(received: bytes, address: str) -> dict[str, object] | None:
    frames, _, _ = framing.parse(received, 0, len(received), REPLY_BYTES_MAX)
    for header, body in frames:
        if header.command == Command.STATUS_REPLY:
            document = json.loads(bytes(body))
            return document if isinstance(document, dict) else {}
        if header.command == Command.REJECT:
            reason = Reason(header.reason)
            if reason == Reason.WRONG_CLUSTER:
                raise WrongClusterError(f"{address} belongs to another cluster", address=address)
            raise UnavailableError(f"{address} refused to answer: {reason.name.lower()}", address=address)
    return None


def fetch_all(addresses: Sequence[str], timeout: float) -> list[dict[str, object] | UnavailableError]:
    """fetch_status for every address at the same time; an error takes the place of its answer."""

    def one(address: str) -> dict[str, object] | UnavailableError:
        try:
            return fetch_status(address, timeout)
        except UnavailableError as error:
            return error

    with ThreadPoolExecutor(max_workers=len(addresses)) as pool:
        return list(pool.map(one, addresses))


def describe(error: Exception) -> str:
    """What happened, in the words of a person who looks at a network."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "host name does not resolve"
    return str(error)
