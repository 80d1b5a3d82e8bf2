"""Draws from a stream of a seed: those of random.Random, the same numbers, in half of the time.

Everything that happens by chance in a run is drawn; randrange and choice look at kinds of arguments that nobody gives
here. Imports nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def below(random: Random, bound: int) -> int:
    """random.randrange(bound), for a bound above 0."""
    bits = bound.bit_length()
    number = random.getrandbits(bits)
    while number >= bound:
        number = random.getrandbits(bits)
    return number


def one_of(random: Random, what: Sequence[T]) -> T:
    """random.choice(what), of one thing at least."""
    return what[below(random, len(what))]
