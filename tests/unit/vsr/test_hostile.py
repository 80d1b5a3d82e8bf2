"""Well-formed frames with valid checksums and current views, by the thousand: none ends a replica."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from lab import Cluster, Node, frame

from kimberlite._fast import events
from kimberlite.types import ZERO16, Command, Message, Operation
from kimberlite.vopr import hostile
from kimberlite.vsr.codec import Evidence, encode_evidence, encode_headers, encode_trim
from kimberlite.vsr.events import EventKind

PEERS = (
    *(Command.PREPARE, Command.PREPARE_OK, Command.COMMIT, Command.START_VIEW_CHANGE, Command.DO_VIEW_CHANGE),
    *(Command.START_VIEW, Command.PING, Command.REQUEST_PREPARE, Command.REQUEST_HEADERS, Command.HEADERS),
)
FIELDS = ("view", "op", "commit", "log_view", "checkpoint_op", "nonce", "position", "session", "request", "timestamp")


def loaded(seed: int) -> Cluster:
    """Three replicas with a few ops each."""
    cluster = Cluster()
    cluster.register()
    for number in range(1, 2 + seed % 5):
        cluster.append(number, b"event %d" % number)
    cluster.run(100)
    return cluster


@pytest.mark.parametrize("seed", range(40))
def test_the_cluster_goes_on_under_frames_that_no_replica_sends(seed: int) -> None:
    cluster, random = loaded(seed), Random(f"hostile {seed}")
    for _ in range(30):
        node = random.choice(cluster.up)
        sender = random.choice([index for index in range(3) if index != node.index])
        node.driver.on_input(messages=hostile.frames(random, hostile.known_of(node.core.state, sender)))
        cluster.run(random.choice((0, 5, 50)))
    cluster.settle()
    applied = len(cluster.primary.machine.applied)
    cluster.append(applied + 1, b"after")
    cluster.run(5000, lambda: all(len(node.machine.applied) == applied + 1 for node in cluster.up))
    assert len({tuple(node.entries()) for node in cluster.up}) == 1
    assert any(node.kinds(EventKind.DROPPED) for node in cluster.up)


def anything(random: Random, node: Node) -> Message:
    """A frame of any numbers, as likely as not such as an honest replica could send."""
    core = node.core
    command = random.choice(PEERS)
    near = [0, 1, core.view, core.view + 1, core.log.op, core.log.op + 1, core.commit_max, core.now, core.applied + 2]
    numbers = {name: random.choice((*near, *near, *hostile.EXTREMES, random.getrandbits(64))) for name in FIELDS}
    numbers["view"] = random.choice((core.view, core.view, core.view + 1, core.view + 2, numbers["view"]))
    known = [*core.log.headers.values()]
    fields: dict[str, Any] = {
        **numbers,
        "replica": random.randrange(3),
        "count": random.choice((0, 1, 2, 48, 2**32 - 1)),
        "operation": random.choice((*Operation, 77)),
        "context": random.choice((ZERO16, random.randbytes(16), random.choice(known).checksum)),
        "parent": random.choice((random.randbytes(16), random.choice(known).checksum)),
        "flags": random.randrange(2),
    }
    body = random.choice(bodies(random, node))
    return frame(command, body, **fields)


def bodies(random: Random, node: Node) -> list[bytes]:
    core = node.core
    known = hostile.known_of(core.state, (node.index + 1) % 3)
    first = random.choice((core.log.op, core.log.op + 1, core.commit_max, 1))
    before = core.log.headers.get(first - 1)
    view = random.choice((core.view, core.view + 1))
    chain = hostile.chain(random, known, random.choice((1, 2, 5, 48, 49)), first, view, before)
    own = [header for header in (core.log.headers.get(op) for op in range(first, core.log.op + 1)) if header]
    bits = (1 << min(len(chain), 60)) - 1
    batch = events.build([b"forged"])
    request = events.SubRequest(b"x" * 16, 1, random.getrandbits(64), Operation.APPLY, 1, batch)
    return [
        b"",
        random.randbytes(random.choice((1, 32, 256, 300))),
        encode_headers(chain),
        encode_headers(own),
        encode_headers([*own, *chain[:1]]),
        encode_evidence(Evidence(first, bits, bits & random.getrandbits(64), 0, tuple(chain[:60]))),
        encode_evidence(Evidence(random.choice((first, 2**64 - 1)), 0, 0, random.getrandbits(64), ())),
        batch,
        events.pack_requests([request] * random.choice((1, 2))),
        encode_trim(random.choice((1, 2, 2**63)), random.choice((0, 1, 2**64 - 1))),
    ]


@pytest.mark.parametrize("seed", range(60))
def test_no_frame_ends_a_replica(seed: int) -> None:
    """Each replica by itself, for whoever can say anything can also make two replicas disagree: what is asked is
    that nothing is raised, and nothing executed is taken back."""
    cluster, random = loaded(seed), Random(f"anything {seed}")
    cluster.lost = lambda source, target, message: True
    for _ in range(60):
        node = random.choice(cluster.up)
        applied = node.core.applied
        node.driver.on_input(messages=[anything(random, node) for _ in range(random.choice((1, 1, 5)))])
        cluster.run(random.choice((0, 0, 5, 100)))
        assert applied <= node.core.applied <= node.core.log.op
