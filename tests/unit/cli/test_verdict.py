"""The verdict over a cluster, from answers that its replicas could give."""

from __future__ import annotations

from typing import Any

import pytest

from kimberlite.cli.verdict import BEHIND_OPS, Verdict, contact_s, health, is_doubtful, judge
from kimberlite.errors import UnavailableError, WrongClusterError

ADDRESSES = ["h:1", "h:2", "h:3"]
SILENT = UnavailableError("h:9: no answer in time")


def answer(replica: int, heard: float | None = 0.02, **changes: object) -> dict[str, Any]:
    """What a healthy member of three says; heard: how long ago it heard each of the others."""
    peers = [{"replica": other, "last_heard_s": heard} for other in range(3) if other != replica]
    said: dict[str, Any] = {
        "replica": replica,
        "cluster": "ab" * 16,
        "role": "primary" if replica == 0 else "backup",
        "status": "normal",
        "view": 3,
        "commit": 119,
        "replica_count": 3,
        "quorum": 2,
        "can_commit": True,
        "cannot_commit": [],
        "faulty": 0,
        "peers": peers,
        "unhealthy": "",
    }
    return {**said, **changes}


ALONE = answer(0, 3.2, can_commit=False, cannot_commit=["no_quorum"])


def test_healthy() -> None:
    found = judge(ADDRESSES, [answer(0), answer(1, None), answer(2, 99.0)])
    assert (found.verdict, found.can_commit, found.reasons) == (Verdict.HEALTHY, True, ())
    assert (found.members, found.quorum, found.id) == (3, 2, "ab" * 16)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([answer(0), answer(1), SILENT], "no answer in time"),
        ([answer(0), answer(1), answer(2, status="recovering")], "replica 2: recovering"),
        ([answer(0), answer(1), answer(2, unhealthy="its disk is hot")], "replica 2: its disk is hot"),
        ([answer(0), answer(1), answer(2, faulty=3)], "replica 2: 3 damaged entries to repair"),
        ([answer(0, commit=5000), answer(1, commit=5000), answer(2, commit=1)], "replica 2: 4999 ops behind"),
        ([answer(0, 1.5), answer(1), answer(2)], "replica 0: replica 1 unheard for 1.5 s"),
        # The primary does not answer us, but a backup hears it.
        ([SILENT, answer(1), answer(2)], "no answer in time"),
    ],
)
def test_degraded(answers: list[Any], reason: str) -> None:
    found = judge(ADDRESSES, answers)
    assert (found.verdict, found.can_commit) == (Verdict.DEGRADED, True)
    assert reason in "; ".join(found.reasons)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([ALONE, SILENT, SILENT], "replica 0 leads: can not commit (no_quorum); replica 1 unheard for 3.2 s"),
        ([SILENT, answer(1, can_commit=False, cannot_commit=["no_primary"]), SILENT], "no primary"),
        ([answer(0, can_commit=False, cannot_commit=["disk_full"]), answer(1), answer(2)], "disk_full"),
        # It leads an older view and does not know better yet.
        (
            [answer(0, view=2), answer(1, role="primary", can_commit=False, cannot_commit=["catching_up"]), answer(2)],
            "catching_up",
        ),
        ([answer(0, status="view_change", can_commit=False)] * 3, "no primary"),
    ],
)
def test_no_quorum(answers: list[Any], reason: str) -> None:
    found = judge(ADDRESSES, answers)
    assert (found.verdict, found.can_commit) == (Verdict.NO_QUORUM, False)
    assert reason in "; ".join(found.reasons)


def test_no_answer() -> None:
    found = judge(ADDRESSES, [SILENT] * 3)
    assert (found.verdict, found.can_commit, found.members) == (Verdict.NO_ANSWER, None, 0)


def test_an_older_release_says_less_and_is_judged_by_what_it_hears() -> None:
    old = {key: value for key, value in answer(0, 3.0).items() if key not in ("can_commit", "cannot_commit")}
    assert judge(ADDRESSES, [old, SILENT, SILENT]).verdict == Verdict.NO_QUORUM
    heard = {**old, "peers": answer(0)["peers"]}
    assert judge(ADDRESSES, [heard, SILENT, SILENT]).verdict == Verdict.DEGRADED
    assert judge(["h:1"], [{"replica": 0, "role": "standby"}]).verdict == Verdict.NO_QUORUM


def test_the_silence_that_counts_is_what_the_replica_says() -> None:
    slow = {"contact_s": 2.4}  # four heartbeats of 600 ms
    assert judge(ADDRESSES, [answer(0, 2.3, **slow), answer(1, **slow), answer(2, **slow)]).verdict == Verdict.HEALTHY
    found = judge(ADDRESSES, [answer(0, 2.5, **slow), answer(1, **slow), answer(2, **slow)])
    assert "replica 1 unheard for 2.5 s" in "; ".join(found.reasons)
    assert contact_s(answer(0), answer(1, **slow), SILENT) == 2.4
    assert contact_s(SILENT) == 1.0


def test_one_address_is_enough_where_the_primary_hears_all() -> None:
    assert judge(["h:1"], [answer(0)]).verdict == Verdict.HEALTHY
    found = judge(["h:2"], [answer(1)])
    assert (found.verdict, found.reasons) == (
        Verdict.DEGRADED,
        ("2 of 3 members were not asked, nor the primary: give the addresses of all",),
    )


def test_a_primary_that_may_not_have_noticed_yet_is_asked_again() -> None:
    assert is_doubtful([answer(0), SILENT, SILENT])
    assert not is_doubtful([answer(0), answer(1), SILENT])
    assert not is_doubtful([ALONE, SILENT, SILENT])
    assert not is_doubtful([SILENT, SILENT, SILENT])


def test_addresses_of_two_clusters_are_refused_with_both_ids() -> None:
    with pytest.raises(WrongClusterError, match=f"h:1 is of {'ab' * 16}, h:2 is of {'cd' * 16}"):
        judge(ADDRESSES, [answer(0), answer(1, cluster="cd" * 16), SILENT])


def test_a_small_lag_is_no_blemish() -> None:
    assert judge(ADDRESSES, [answer(0, commit=119 + BEHIND_OPS), answer(1), answer(2)]).verdict == Verdict.HEALTHY


def test_what_a_replica_says_itself_is_not_said_twice() -> None:
    said = answer(0, 3.2, unhealthy="op 7 has 1 of 2 acks; replica 1 unheard for 3.2 s")
    assert health(said) == "op 7 has 1 of 2 acks; replica 1 unheard for 3.2 s; replica 2 unheard for 3.2 s"
