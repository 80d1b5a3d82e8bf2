"""The status table, from answers that replicas could give."""

from __future__ import annotations

from kimberlite.cli.status import describe, render
from kimberlite.errors import UnavailableError

ADDRESSES = ["h:1", "h:2", "h:3"]


def answer(replica: int, **changes: object) -> dict[str, object]:
    said: dict[str, object] = {
        "replica": replica,
        "role": "primary" if replica == 0 else "backup",
        "status": "normal",
        "view": 3,
        "op": 120,
        "commit": 119,
        "positions": 4000,
        "version": "0.1.0",
        "unhealthy": "",
    }
    return {**said, **changes}


def test_lag_is_measured_against_the_most_advanced() -> None:
    rows = describe(ADDRESSES, [answer(0), answer(1, commit=100), answer(2, commit=119)])
    assert [row["lag"] for row in rows] == [0, 19, 0]
    assert all(row["reachable"] for row in rows)


def test_lag_counts_what_is_executed_not_what_is_heard_of() -> None:
    """A primary whose disk hangs hears of every commit that the others make, and executes none."""
    rows = describe(ADDRESSES, [answer(0, applied=20), answer(1, applied=119), answer(2, applied=118, commit=118)])
    assert [row["lag"] for row in rows] == [99, 0, 1]


def test_a_log_that_is_far_ahead_of_the_clocks_is_said_of_one_that_is_well() -> None:
    ahead = {"jump_s": 0.0, "log_ahead_s": 40 * 86_400.5}
    rows = describe(ADDRESSES, [answer(0, clock=ahead), answer(1, clock=ahead, unhealthy="retention"), answer(2)])
    shown = [line[line.index("0.1.0") + 5 :].strip() for line in render(rows).splitlines()[1:]]
    assert shown == ["ok; the log's last timestamp is 40 d ahead of its clock", "retention", "ok"]


def test_an_unreachable_replica_has_a_row() -> None:
    rows = describe(ADDRESSES, [answer(0), UnavailableError("h:2: connection refused"), answer(2)])
    assert rows[1] == {"replica": 1, "address": "h:2", "reachable": False, "unhealthy": "h:2: connection refused"}


def test_table() -> None:
    unhealthy = "op 120 has 1 of 2 acks"
    rows = describe(
        ADDRESSES,
        [answer(0, unhealthy=unhealthy), UnavailableError("h:2: no answer in time"), answer(2, status="view_change")],
    )
    assert render(rows).splitlines() == [
        "replica  address  role         view   op  commit  events  lag  version  health",
        "0        h:1      primary         3  120     119    4000    0  0.1.0    op 120 has 1 of 2 acks",
        "1        h:2      unreachable     -    -       -       -    -  -        h:2: no answer in time",
        "2        h:3      view_change     3  120     119    4000    0  0.1.0    ok",
    ]


def test_a_replica_of_another_release_may_say_less() -> None:
    rows = describe(["h:1"], [{"replica": 0, "role": "standby"}])
    assert rows[0]["lag"] is None
    assert "0        h:1" in render(rows)
