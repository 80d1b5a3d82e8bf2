"""Scenarios, in the order in which tests/integration/test_telemetry.py plays them on one cluster. Each metric names the
one in which it is shown to move. Imports nothing.
"""

from __future__ import annotations

LOAD = "load"  # clients append and read
REFUSALS = "refusals"  # duplicates, evictions, clients at the wrong replica, bytes that are no frame
REPAIRS = "repair"  # a backup that was away, and a peer that does not answer its requests
RETENTION = "retention"  # more is appended than is kept
DAMAGE = "damage"  # a flipped byte in a journal and in a superblock
STALL = "stall"  # a primary whose backups are stopped
RECOVERING = "recovering"  # a primary that starts again while its peers are stopped
CLOCK = "clock"  # a replica whose clock is set back by a day
KILL = "kill"  # a killed primary, started again with a disk that counts as slow
DRAIN = "drain"  # SIGTERM
HANG = "hang"  # SIGSTOP
STUCK = "stuck"  # the last op damaged on every replica
FULL = "full"  # file systems with less free space than they should have
WRITE_FAILURE = "write_failure"  # a journal write that the system refuses
FIXED = "fixed"  # what does not move: compared with what is known from elsewhere
SCENARIOS = (
    LOAD,
    REFUSALS,
    REPAIRS,
    DAMAGE,
    RETENTION,
    STALL,
    RECOVERING,
    CLOCK,
    KILL,
    DRAIN,
    HANG,
    STUCK,
    FULL,
    WRITE_FAILURE,
    FIXED,
)
