"""A start_view shorter than what is committed, or with a forged header, ended its receiver (50), or the cluster never
led again. It is refused: nobody ends, and the cluster goes on.
"""

from __future__ import annotations

from lab import Case, main, make_header

from kimberlite.types import Command, Operation
from kimberlite.vsr.codec import encode_headers

SECONDS = 120
SAMPLE = True


def run(case: Case) -> None:
    cluster = case.cluster(3)
    for number in range(4):
        cluster.append([b"before %d" % number])
    primary, backup, absent = cluster.roles()
    known = cluster.tells(backup)
    cluster.kill(absent)
    view = next(view for view in range(known["view"] + 1, known["view"] + 17) if view % 16 == absent)
    head = known["op"]

    def start_view(op: int, commit: int, count: int = 1) -> tuple[object, bytes]:
        chain = []
        for step in range(count):
            parent = chain[-1].checksum if chain else b"\5" * 16
            fields = {"view": view, "replica": absent, "op": op + step, "parent": parent, "operation": Operation.NOOP}
            chain.append(make_header(cluster=cluster.cluster, command=Command.PREPARE, **fields))
        body = encode_headers(chain)
        fields = {"view": view, "log_view": view, "op": op + count - 1, "commit": commit, "count": count}
        return make_header(body, cluster=cluster.cluster, command=Command.START_VIEW, replica=absent, **fields), body

    forged = {
        "shorter than what is committed": start_view(1, 1),
        "another entry for a committed op": start_view(head, head),
        "another entry behind the last": start_view(head + 1, head + 1),
        "an end far away": start_view(1000, 1000),
        "more headers than a superblock holds": start_view(head + 1, head + 1, 60),
    }
    for what, frame in forged.items():
        for to in (backup, primary):
            cluster.inject(to, absent, [frame, frame], hold=0.3)  # type: ignore[list-item]
        codes = [cluster.exit_codes[index] for index in (primary, backup)]
        case.check(codes == [None, None], f"{what}: replicas ended, exit codes {codes}")
        case.check(cluster.leader(30) is not None, f"{what}: nobody leads")
        position = cluster.append([what.encode()], timeout=30)
        case.check(position > 3, f"{what}: the next event has position {position}")
    cluster.start(absent)
    cluster.wait()
    case.check(cluster.append([b"with it"], timeout=20) > 3, "the log goes on")


if __name__ == "__main__":
    main(run)
