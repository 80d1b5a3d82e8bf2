"""Questions to a cluster: one frame, asked of one replica after another until one of them answers.

The primary is asked first. A replica that says nothing for `patience` is not waited for: the next is asked as
well, and the first answer counts, whoever it is of. Until it says something again, a silent one is asked last. So one
replica that is paused costs a question no more than its patience, and the questions after it nothing.
An answer names the frame that it answers (header.context). Thread rules: one event loop.
May import: errors, types, net.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any, Generic, TypeVar

from kimberlite.errors import KimberliteError
from kimberlite.net.transport import FrameConnection
from kimberlite.types import Bytes, Command, Header, Message

T = TypeVar("T")
ROUND_S = 0.05  # when every replica has been asked and none could tell: so long until they are asked again


class Elsewhere(Exception):
    """Raised by a judge: this replica can not tell, another one may. The message says why."""


class Asker:
    """Sends the frames of questions, and brings the answers to them."""

    def __init__(
        self,
        *,
        connections: Mapping[int, FrameConnection],
        make_frame: Callable[..., Message],
        primary: Callable[[], int | None],
        random: Random,
    ) -> None:
        """connections: of the replicas that have greeted, by index; the client keeps it up to date.
        primary: its index as far as known."""
        self.connections = connections
        self._make_frame = make_frame
        self._primary = primary
        self._random = random
        self.open: set[Question[Any]] = set()
        self._sent: dict[bytes, tuple[Question[Any], int, FrameConnection]] = {}  # by the frame's identity
        self._silent: set[int] = set()

    def on_frame(self, header: Header, body: Bytes) -> bool:
        """Whether the frame answers a question."""
        self._silent.discard(header.replica)
        sent = self._sent.pop(header.context, None)
        if sent is None:
            return False
        sent[0].on_answer(sent[1], Message(header, body))
        return True

    def on_lost(self, connection: FrameConnection) -> None:
        """That connection is gone, and with it the answers that were to come on it."""
        for identity, (question, replica, went_on) in list(self._sent.items()):
            if went_on is connection and self._sent.pop(identity, None) is not None:
                self._silent.discard(replica)
                question.on_lost(replica)

    def close(self, error: KimberliteError) -> None:
        """Every question ends in that error."""
        for question in list(self.open):
            question.fail(error)

    def choose(self, excluded: set[int]) -> int | None:
        """Whom to ask: the primary as far as known, for it is never behind; any other; one that is silent."""
        candidates = [replica for replica in self.connections if replica not in excluded]
        awake = [replica for replica in candidates if replica not in self._silent] or candidates
        primary = self._primary()
        return primary if primary in awake else self._random.choice(awake) if awake else None

    def send(self, question: Question[Any], replica: int, command: Command, fields: Mapping[str, int]) -> bytes:
        """Ask that replica; gives the identity of the frame."""
        message = self._make_frame(command, nonce=self._random.getrandbits(63), **fields)
        connection = self.connections[replica]
        self._sent[message.header.checksum] = question, replica, connection
        connection.send(message)
        return message.header.checksum

    def forget(self, question: Question[Any], identities: Iterable[bytes]) -> None:
        self.open.discard(question)
        for identity in identities:
            self._sent.pop(identity, None)

    def on_silent(self, replica: int) -> None:
        self._silent.add(replica)


class Question(Generic[T]):
    """One question and its answer, a future. `problem` says why there is none yet, of each replica.

    judge(replica, answer) gives what the answer means, or raises: Elsewhere, or a KimberliteError, which then is
    how the question ends. patience: seconds after which a replica that has not answered is not waited for.
    """

    def __init__(
        self,
        asker: Asker,
        judge: Callable[[int, Message], T],
        patience: float,
        command: Command,
        **fields: int,
    ) -> None:
        self.answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._problems: dict[int, str] = {}
        self.patience = patience
        self.is_asked = False
        self.users = 0  # who waits for the answer; kept by them
        self._asker = asker
        self._judge = judge
        self._command = command
        self._fields = fields
        self._asked: dict[int, bytes] = {}  # who has not answered yet, with the identity of the frame
        self._unable: set[int] = set()  # who has answered, and could not tell
        self._timer: asyncio.TimerHandle | None = None

    @property
    def problem(self) -> str:
        if not self.is_asked:
            return "other reads of this client come first"
        waiting = {replica: f"replica {replica} has not answered yet" for replica in self._asked}
        return "; ".join((waiting | self._problems).values()) or "no replica is connected"

    def ask(self) -> None:
        """Ask one more replica. Called once; it goes on by itself."""
        self.is_asked = True
        self._asker.open.add(self)
        replica = self._asker.choose(self._unable | self._asked.keys())
        if replica is None:
            self._unable.clear()
            self._later(ROUND_S, self.ask)
        else:
            self._asked[replica] = self._asker.send(self, replica, self._command, self._fields)
            self._later(self.patience, self._on_silence, replica)

    def on_answer(self, replica: int, message: Message) -> None:
        self._asked.pop(replica, None)
        if self.answer.done():
            return
        try:
            value = self._judge(replica, message)
        except Elsewhere as reason:
            self._problems[replica] = str(reason)
            self._unable.add(replica)
            self.ask()
        except KimberliteError as error:
            self.fail(error)
        else:
            self.settle(value)

    def settle(self, value: T) -> None:
        """This is the answer."""
        self._end()
        self.answer.set_result(value)

    def on_lost(self, replica: int) -> None:
        self._asked.pop(replica, None)
        if not self.answer.done():
            self._problems[replica] = f"the connection to replica {replica} was lost"
            self.ask()

    def fail(self, error: KimberliteError) -> None:
        self._end()
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # perhaps nobody waits for it any more

    def drop(self) -> None:
        """Nobody wants to know any more."""
        self._end()
        self.answer.cancel()

    def _on_silence(self, replica: int) -> None:
        if replica in self._asked:
            self._asker.on_silent(replica)
            self._problems[replica] = f"replica {replica} did not answer within {self.patience:.2g} s"
        self.ask()

    def _later(self, delay: float, call: Callable[..., None], *args: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay, call, *args)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._asker.forget(self, self._asked.values())
        self._asked.clear()
