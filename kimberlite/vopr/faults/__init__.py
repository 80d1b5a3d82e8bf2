"""The faults of a run: one entry for each kind, with what it does to the world.

A fault is a time, a kind and an argument: one number below ARGUMENT_END, drawn or taken from a script, that says on
whom and how much. Each kind reads it in its own way, so that every number means something. `aim` looks at the world as
it is in that moment and returns what is to be done, or None when the fault would change nothing: a crash of who is
down, a cut from a replica to itself. Such a fault is not counted, and it is not in the script of the run either.

A kind that ends other faults has a floor: plans that draw it do so with that weight at least.

A new kind is a function in a room of this package, under its own name. Random choices come from `Random(argument)`,
never from the streams of the run: a run whose faults are given is the run that drew them.
"""

from kimberlite.vopr.faults import (  # noqa: F401, I001 - what is imported is entered into the list, in this order
    processes,
    links,
    roles,
    disks,
    surroundings,
    places,
)
from kimberlite.vopr.faults.disks import lies_of
from kimberlite.vopr.faults.registry import ARGUMENT_END, KINDS, START_NS, Fault, Kind, check
from kimberlite.vopr.faults.roles import STRIKES

__all__ = ["ARGUMENT_END", "KINDS", "START_NS", "STRIKES", "Fault", "Kind", "check", "lies_of"]
