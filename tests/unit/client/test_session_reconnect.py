"""A request in flight survives the loss of every connection."""

from __future__ import annotations

import pytest

from kimberlite._fast import framing
from kimberlite.client.session import Session


@pytest.mark.parametrize("replica_count", [1, 3])
def test_request_is_sent_again_when_the_only_connection_comes_back(replica_count: int) -> None:
    session = Session(
        make_header=framing.make_header, cluster=bytes(16), client_id=bytes(16), replica_count=replica_count, seed=1
    )
    session.connected(0, 0)
    session.append([b"event"], 0)
    session.flush(0)
    (first,), _ = session.take_output()
    session.disconnected(0, 1)
    assert session.next_deadline() is None
    session.connected(0, 2)
    assert session.take_output()[0] == [first]
    assert session.next_deadline() is not None
