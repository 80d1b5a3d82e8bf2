"""Frames of a peer with valid checksums and current views ended replicas (50), or the cluster for good. None does."""

from __future__ import annotations

from random import Random

from lab import Case, main

from kimberlite._fast.framing import make_header
from kimberlite.types import Command
from kimberlite.vsr.members import Membership
from kimberlite.vsr.quorum import quorums

SECONDS = 120
SAMPLE = True
ROUNDS = 25
FRAMES = 30
MEMBERSHIP = Membership(tuple(range(3)), quorums(3), turns=16, expected=0b111)


def run(case: Case) -> None:
    try:
        from kimberlite.vopr.hostile import EXTREMES, Known, frames
    except ImportError:  # a version without it: the numbers alone say enough
        frames = None
        EXTREMES = (2**64 - 1, 2**63)
    random = Random("frames of a peer")
    cluster = case.cluster(3)
    for number in range(5):
        cluster.append([b"before %d" % number])
    primary, backup, absent = cluster.roles()
    cluster.kill(absent)
    for turn in range(ROUNDS):
        for victim in (primary, backup):
            status = cluster.tells(victim)
            sent = []
            for _ in range(FRAMES):  # each on the connection that the last one may have closed
                if frames is None:
                    fields = {"replica": absent, "view": random.choice(EXTREMES)}
                    sent.append((make_header(cluster=cluster.cluster, command=Command.PING, **fields), b""))
                else:
                    numbers = (status["view"], status["op"], status["commit"])
                    known = Known(cluster.cluster, MEMBERSHIP, victim, absent, *numbers)
                    sent += [(message.header, bytes(message.body)) for message in frames(random, known)]
            for start in range(0, len(sent), 3):
                cluster.inject(victim, absent, sent[start : start + 3], hold=0.005)
        codes = [cluster.exit_codes[index] for index in (primary, backup)]
        case.check(codes == [None, None], f"round {turn}: replicas ended, exit codes {codes}")
    case.check(cluster.leader(40) is not None, f"nobody leads: {cluster.status(primary)}")
    told = [cluster.tells(index).get("refused") for index in (primary, backup)]
    case.check(all(told), f"each has refused a number: {told}")
    position = cluster.append([b"after"], timeout=40)
    case.check(position >= 5, f"the next event has position {position}")
    cluster.start(absent)
    cluster.wait()
    case.check(cluster.append([b"with all"], timeout=20) == position + 1, "the log goes on")
    case.check(cluster.exit_codes == [None] * 3, f"replicas ended: exit codes {cluster.exit_codes}")


if __name__ == "__main__":
    main(run)
