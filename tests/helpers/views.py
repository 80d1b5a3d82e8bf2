"""How a core under test gets the log of a view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kimberlite._fast.framing import make_header
from kimberlite.types import Command, Header, Message
from kimberlite.vsr.codec import encode_headers
from kimberlite.vsr.replica import Replica

NONCE = 7


def start_view(core: Replica, suffix: Sequence[Header], now: int, **fields: Any) -> None:
    """The primary of `view` tells `core`, whose evidence it had, how the log of that view ends."""
    body = encode_headers(suffix)
    view = fields["view"]
    given = {
        "cluster": core.config.cluster,
        "replica": view % core.config.replica_count,
        "log_view": view,
        "op": suffix[-1].op,
        "count": len(suffix),
        **fields,
    }

    def frame(nonce: int) -> Message:
        return Message(make_header(body, command=Command.START_VIEW, nonce=nonce, **given), body)

    core.step(frame(0), now)  # it enters the view, and gives evidence when that is durable
    core.scope.evidence_nonce = core.scope.evidence_nonce or NONCE
    core.step(frame(core.scope.evidence_nonce), now)
