"""What a newer release says and this one does not know is told as a number, and ends nothing."""

from __future__ import annotations

import pytest

from kimberlite._fast.framing import make_header
from kimberlite.cli import probe
from kimberlite.client.answers import refusal
from kimberlite.client.session import Session
from kimberlite.errors import RejectedError
from kimberlite.types import Command, Message, Reason, reason_text

CLUSTER = b"k" * 16
UNKNOWN = 999


def rejection(reason: int, **fields: object) -> Message:
    return Message(make_header(cluster=CLUSTER, command=Command.REJECT, replica=1, reason=reason, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("reason", [*Reason, UNKNOWN])
def test_every_reason_has_words(reason: int) -> None:
    name = f"reason {UNKNOWN}" if reason == UNKNOWN else Reason(reason).name.lower().replace("_", " ")
    assert reason_text(reason) == name
    assert refusal(1, rejection(reason)).endswith(f"refused: {reason_text(reason)}")
    if reason != Reason.WRONG_CLUSTER:
        told = probe._refusal(rejection(reason).header, "h:1")
        assert str(told).endswith(f"refused to answer: {reason_text(reason)}")


def test_a_request_refused_for_an_unknown_reason() -> None:
    """It was a ValueError in the middle of a step of the client."""
    session = Session(make_header=make_header, cluster=CLUSTER, client_id=b"c" * 16, replica_count=1, seed=7)
    session.connected(0, 0)
    session.append([b"x"], 0, None)
    session.flush(0)
    ((_, register),), _ = session.take_output()
    about = {"client": register.header.client, "request": register.header.request, "context": register.header.checksum}
    session.step(rejection(UNKNOWN, **about), 0)
    _, (outcome,) = session.take_output()
    assert isinstance(outcome.error, RejectedError) and f"reason {UNKNOWN}" in str(outcome.error)
