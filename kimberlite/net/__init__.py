"""Frames over TCP: connections, the mesh between replicas, addresses.

What the fields of the common header mean in each frame: kimberlite.frames.

May import: errors, types, _fast, _sys.
"""

CLIENT_VERSION = 2  # of the frames between clients and replicas; a change that the other side must know raises it

# Flags of READ.
READ_WAIT = 1  # when there is nothing at `position` yet, wait for it: one such READ waits on a connection
READ_END = 2  # only tell the end of the log, with no events
READ_TIMES = 4  # tell when the events were appended as well
