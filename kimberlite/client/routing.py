"""Whom a client asks: the primary of the newest view that is known, where there is a connection to it.

Replicas say which view they are in with every answer, and of themselves when another one begins, so nobody has to try.
A replica that did not answer in time is not asked again for SILENT_NS while another one answers: what it was sent has
arrived, and a frozen one must not cost every second attempt. When it is said of a newer view, it is asked at once.

Times are monotonic nanoseconds handed in. Imports nothing of Kimberlite.
"""

from __future__ import annotations

SILENT_NS = 1_000_000_000


class Routing:
    """The replicas of a cluster as one client sees them, and the one that it asks now."""

    __slots__ = ("_silent", "connected", "replica_count", "target", "view")

    def __init__(self, replica_count: int) -> None:
        self.replica_count = replica_count
        self.view = 0  # the newest that is known
        self.connected: set[int] = set()
        self.target = 0
        self._silent: dict[int, int] = {}  # replica that did not answer -> not asked again before

    @property
    def leader(self) -> int:
        """The primary of the newest view that is known."""
        return self.view % self.replica_count

    @property
    def can_send(self) -> bool:
        return self.target in self.connected

    def learn(self, view: int) -> bool:
        """What a replica says; whether that is news."""
        if view <= self.view:
            return False
        self.view = view
        self._silent.clear()  # of a newer view nobody was asked
        return True

    def begin(self) -> None:
        """A new request: nothing is held against anybody."""
        self._silent.clear()
        self.target = self.leader

    def was_silent(self, now: int) -> None:
        """The target did not answer in time: the next one is asked."""
        self._silent[self.target] = now + SILENT_NS
        self.next()

    def next(self) -> None:
        """Round the replicas, those that are connected only, when there are any."""
        for step in range(1, self.replica_count + 1):
            candidate = (self.target + step) % self.replica_count
            if candidate in self.connected:
                self.target = candidate
                return

    def choose(self, refused_by: int, attempts: int, now: int) -> bool:
        """Whom to ask when `refused_by` does not lead: the leader, or another when it is who refused, or can not be
        asked. Whether the leader is asked now."""
        may_lead = self.leader != refused_by and self.leader in self.connected and not self._is_silent(self.leader, now)
        self.target = self.leader if may_lead else self.another(attempts, now)
        return may_lead

    def another(self, attempts: int, now: int) -> int:
        """Each of those that do not lead in turn, between two attempts at the leader: the view may be one that nobody
        is in, when who told of it died before it had written it down; then another replica leads, in an earlier view.
        """
        others = [(self.leader + step) % self.replica_count for step in range(1, self.replica_count)]
        others = [replica for replica in others if replica in self.connected]
        answering = [replica for replica in others if not self._is_silent(replica, now)] or others
        return answering[attempts // 2 % len(answering)] if answering else self.leader

    def _is_silent(self, replica: int, now: int) -> bool:
        return self._silent.get(replica, now) > now
