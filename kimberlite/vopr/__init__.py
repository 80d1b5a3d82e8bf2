"""VOPR: the simulator. The replica code of production under a virtual clock, network and disk.

One seed is one run, byte for byte, in any process and under any hash seed. Start at
world.py; checkers.py holds what must be true; canaries/ holds the planted bugs that prove it.
"""
