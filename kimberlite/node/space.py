"""Whether the file system of a replica has less left than it should.

Below `storage.free_bytes_min` the replica says that its disk is full: as primary it refuses appends, as
backup it tells the primary, which refuses when no quorum has room. It goes on writing and acknowledging
what others append for as long as it can: to stop would take a vote and a copy from the cluster, and
what is kept free is for checkpoints, without which nothing can be trimmed.

Imports nothing.
"""

from __future__ import annotations

RESUME = 5 / 4  # of the least: from there on it is enough again


class FreeSpace:
    """Judges what is free, with hysteresis. least: bytes; 0 judges anything to be enough."""

    def __init__(self, least: int) -> None:
        self.least = least
        self.is_short = False

    def look(self, free: int) -> bool:
        """Whether there is too little now."""
        self.is_short = free < (self.least * RESUME if self.is_short else self.least)
        return self.is_short

    def reason(self, free: int) -> str:
        """A sentence, empty when there is enough."""
        if not self.is_short:
            return ""
        return (
            f"{free} bytes of the file system are free, below storage.free_bytes_min, {self.least}; it is enough "
            f"again from {int(self.least * RESUME)} on"
        )
