"""The parts of `peers.py`: clusters of several systems, measured side by side on one machine.

workspace    a temporary directory, and the processes that live and end with it
rows         what was measured, a JSON object each
tables       rows, their medians, as Markdown with ratios
failover     the leader goes while a client appends: one procedure for every system that offers a target
systems/     one module a system: how it is started, loaded and, as a target of failover, deprived of its leader

Only systems.kimberlite imports the package kimberlite, and only when that system is measured.
"""
