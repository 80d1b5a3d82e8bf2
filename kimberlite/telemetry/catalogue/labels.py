"""Labels of the catalogue, and their closed sets of values: most are the members of an enum of the protocol.

May import: types, vsr.events, vsr.work, telemetry.catalogue.metric.
"""

from __future__ import annotations

from enum import Enum

from kimberlite.telemetry.catalogue.metric import Label
from kimberlite.types import Access, ClientFailure, Command, Dropped, Ended, Reason, Status
from kimberlite.vsr.events import DropReason
from kimberlite.vsr.work import CannotCommit

OUTCOMES = ("committed", "failed")
FAILURES = ("view_change", "suffix_dropped")
LOG_OUTCOMES = ("written", "suppressed", "dropped")
COMMIT_STAGES = ("queue", "journal", "replicate", "apply", "reply")
CRITICAL_STAGES = ("journal", "replicate")
OWNERS = ("clients", "peers", "entries")
OBJECTS = ("entries", "headers", "sessions")
LOOP_PARTS = ("poll", "parse", "protocol", "disk_wait", "send", "other")


def label_value(member: Enum) -> str:
    """What a label says of a member of an enum: its value when that is text, else its name."""
    return member.value if isinstance(member.value, str) else member.name.lower()


def enum_label(name: str, *enums: type[Enum]) -> Label:
    """A label with a value for each member, and no others: what has no name of its own would be counted nowhere."""
    return Label(name, tuple(dict.fromkeys(label_value(member) for enum in enums for member in enum)))


MESSAGE_TYPE = enum_label("message_type", Command)
DROP_REASON = enum_label("reason", DropReason, Dropped)
REJECT_REASON = Label("reason", tuple(label_value(reason) for reason in Reason if reason is not Reason.NONE))
CANNOT_COMMIT = enum_label("reason", CannotCommit)
ENDED = enum_label("reason", Ended)
CLIENT_FAILURE = enum_label("outcome", ClientFailure)
DIRECTION = Label("direction", ("received", "sent"))
ACCESS = enum_label("operation", Access)
PEER = Label("peer", replicas=True)
STATE = enum_label("state", Status)

BUILD_LABELS = ("version", "release", "python", "checksum_kernel")
CONFIG_LABELS = (
    "telemetry_units",
    "storage_mode",
    "heartbeat_ms",
    "suspect_min_ms",
    "suspect_max_ms",
    "pipeline_max",
    "queue_max",
    "sessions_max",
    "segment_bytes",
)
SCRUBBED = Label("what", ("entry", "witness", "superblock", "checkpoint"))
SINK = Label("sink", ("prometheus", "otlp", "statsd", "log"))
