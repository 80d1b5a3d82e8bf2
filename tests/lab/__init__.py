"""The laboratory: how tests build and watch the core of a replica, alone or in a small cluster.

    entries.py     prepares and headers in a chain, and every other frame
    cores.py       one core in a given state, its inputs and outputs, and what tests see and set inside it
    cluster.py     a small cluster in memory: real core, driver and store; a test rules links, disks and time
    old_data.py    directories as the first release left them
    transcripts.py what went into cores and came out of them, as lines of text that are kept in files

The contract of each is its docstring. What holds for all of them:

- One way to do a thing: no test module builds a core, a cluster, a chain or a frame of the core by itself.
- The core is used by its inputs and outputs. What tests see of its insides they see through `Core`, whose table of
  places is the only spot that knows where the core keeps what.
- Everything is deterministic: no clock, no randomness but seeds.

Imports kimberlite only; pytest puts the directory above this one on the path (pyproject.toml).
"""

from lab.cluster import FOR_EVER, Cluster, Machine, Node, alone, between
from lab.cores import Core, answers, core_of, leading, messages_sent, refusals, restarted, sent, started
from lab.entries import (
    CLUSTER,
    MS,
    ROOT,
    appended,
    chain,
    do_view_change,
    frame,
    headers_of,
    heartbeat,
    ping,
    prepare,
    prepare_ok,
    prepares,
    request,
    start_view,
    start_view_change,
)

__all__ = [
    "CLUSTER",
    "MS",
    "ROOT",
    "frame",
    "prepare",
    "prepares",
    "chain",
    "appended",
    "request",
    "heartbeat",
    "prepare_ok",
    "ping",
    "headers_of",
    "start_view_change",
    "do_view_change",
    "start_view",
    "Core",
    "core_of",
    "started",
    "restarted",
    "leading",
    "messages_sent",
    "sent",
    "answers",
    "refusals",
    "Cluster",
    "Machine",
    "Node",
    "alone",
    "FOR_EVER",
    "between",
]
