"""Frames over TCP: connections, the mesh between replicas, addresses.

How the fields of the common header are used between clients and replicas:

HELLO         the first frame each way. Of a client: client, count = CLIENT_VERSION. Of a replica: replica, view,
              count = size of the cluster; to a client: body, a JSON object: members (addresses for clients, by index),
              primary (its index as far as known), view, replica. An older client gets REJECT, reason VERSION
REQUEST       client, session, request, operation, count = events, latency_us; body: event batch
REPLY         client, session, request, operation, view, op, position = of the first event, count, context = REQUEST
REJECT        reason, view, position = end of the log, context = checksum of the frame refused, flags = FLAG_PREPARED
              when the request had been prepared, count = milliseconds to wait when the reason is BUSY_QUEUE
READ          client, position = first wanted, count = most events, session = most bytes, flags = READ_WAIT, READ_END
              and READ_TIMES or 0, timestamp = how long to wait, in nanoseconds
READ_REPLY    position = first, count = events (0: nothing came in time), timestamp = end of the log, op = applied,
              context = READ; body: event batch. After READ_TIMES, session = runs, and behind the batch the table of
              net.times: of each run of events that one op appended the op's timestamp (u64) and how many (u32)
STATUS        client
STATUS_REPLY  context = STATUS; body: JSON object

May import: errors, types, _fast, _sys.
"""

CLIENT_VERSION = 2  # of the frames between clients and replicas; a change that the other side must know raises it

# Flags of READ.
READ_WAIT = 1  # when there is nothing at `position` yet, wait for it: one such READ waits on a connection
READ_END = 2  # only tell the end of the log, with no events
READ_TIMES = 4  # tell when the events were appended as well
