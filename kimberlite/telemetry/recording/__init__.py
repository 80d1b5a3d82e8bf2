"""The rooms of the recorder, one for each side of a replica that is measured: see telemetry/recorder.py.

    handles     cells by the names of the catalogue
    events      what the core reports
    traffic     frames and connections
    loop        where the event loop's time goes
    executions  the state machine, and replies
    exemplars   an operation to look at beside a latency
    gauges      how the replica is, set at a bounded rate
    storage     disk, journal, scrubber
    memory      what is held, by owner

Thread rules: the thread of the replica's event loop. May import: errors, types, told, vsr.events, vsr.work, _fast.
"""
