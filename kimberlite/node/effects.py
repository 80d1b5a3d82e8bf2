"""Where the frames of a driver go: to the other replicas, and to clients.

The time that it takes to send is charged to sending, and not to the protocol.

May import: net, telemetry, types, node.
"""

from __future__ import annotations

from kimberlite.net.peers import PeerNetwork
from kimberlite.node.server import ClientServer
from kimberlite.telemetry.recorder import Recorder
from kimberlite.telemetry.recording.loop import PROTOCOL, SEND
from kimberlite.types import ClientId, Command, Message


class PlainEffects:
    """The `Network` of a driver whose sending nobody times."""

    def __init__(self, peers: PeerNetwork, server: ClientServer, recorder: Recorder) -> None:
        self.send = peers.send
        self.send_client = server.send_client
        self.refuse = peers.refuse


class Effects:
    """The `Network` of a driver."""

    def __init__(self, peers: PeerNetwork, server: ClientServer, recorder: Recorder) -> None:
        self._peers = peers
        self._server = server
        self._clock = recorder.loop
        self._executions = recorder.executions

    def send(self, replica: int, message: Message) -> None:
        self._clock.switch(SEND)
        self._peers.send(replica, message)
        self._clock.switch(PROTOCOL)

    def send_client(self, client: ClientId, message: Message) -> None:
        self._clock.switch(SEND)
        self._server.send_client(client, message)
        self._clock.switch(PROTOCOL)
        if message.header.command == Command.REPLY:
            self._executions.replied(message.header.op)

    def refuse(self, message: Message) -> None:
        self._peers.refuse(message)
