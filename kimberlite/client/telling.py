"""What a client says through `logging`, under `kimberlite.client`: connections that are lost and found, requests that
are repeated and why, sessions that end. Nothing is printed unless the program sets logging up: there is a NullHandler.

Nothing is said of a request that is answered the first time, and never what is in one. Each loss, attempt or repetition
costs a look at the logger's level. May import: types.
"""

from __future__ import annotations

import logging

from kimberlite.types import ClientId, Message, Reason, reason_text

LOGGER = logging.getLogger("kimberlite.client")
LOGGER.addHandler(logging.NullHandler())


def connected(name: str, replica: int) -> None:
    """A replica has greeted."""
    LOGGER.info("connected to replica %d at %s", replica, name)


def disconnected(name: str, replica: int, cause: Exception | None) -> None:
    """The connection to a replica that had greeted is gone; not because this client closed it."""
    why = f"{type(cause).__name__}" if cause is not None else "closed by the other side"
    LOGGER.warning("the connection to replica %d at %s is lost (%s): it is tried again", replica, name, why)


def of_no_use(name: str, problem: str) -> None:
    """Something else keeps an address from being of use than before."""
    LOGGER.info("%s is of no use for now: %s", name, problem)


class Told:
    """What of one client's session was told."""

    def __init__(self) -> None:
        self._last: object = None  # header of the request that was sent last
        self._client_id: ClientId | None = None
        self.reason = 0  # of the last refusal of that request: see Reason

    def sent(self, replica: int, message: Message, client_id: ClientId) -> None:
        """A request leaves, perhaps again. client_id: each session has one for itself."""
        if message.header is not self._last:
            self._last = message.header
            if client_id is not self._client_id:
                self._begins(client_id)
            self.reason = 0
        elif LOGGER.isEnabledFor(logging.INFO):
            why = f"it was refused: {reason_text(self.reason)}" if self.reason else "there is no answer yet"
            LOGGER.info("request %d is sent again, to replica %d: %s", message.header.request, replica, why)

    def _begins(self, client_id: ClientId) -> None:
        before, self._client_id = self._client_id, client_id
        if before is not None:
            evicted = self.reason == Reason.NO_SESSION
            why = "it was evicted for newer ones (limits.sessions_max)" if evicted else "an append ended unknown"
            LOGGER.warning("the session has ended, and a new one begins: %s", why)
