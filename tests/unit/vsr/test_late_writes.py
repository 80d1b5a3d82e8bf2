"""A write to the journal that takes long, while views change: what it put on the disk counts only when nothing has
cut it off since."""

from __future__ import annotations

from lab import MS, ROOT, Cluster, appended

from kimberlite.types import Command, Header, Message, Status
from kimberlite.vsr.work import Append


def prepare(before: Header, view: int, commit: int) -> Message:
    return appended(before, b"x", view=view, commit=commit, replicas=5)


class Late:
    """Replica 4 of five has ops 1 to 4 on its disk, and is writing op 5, which takes long."""

    def __init__(self) -> None:
        self.cluster = Cluster(5)
        self.node = self.cluster.node(4)
        self.log = [ROOT]
        for number in range(4):
            self.give(prepare(self.log[-1], 0, number))
        self.node.driver.on_disk()
        self.node.slow_disk(1000 * MS)
        self.late = prepare(self.log[4], 0, 4)
        self.give(self.late)
        assert set(self.node.core.log.writing) == {5}

    def give(self, message: Message) -> None:
        self.log.append(message.header)
        self.node.driver.on_input(messages=[message])

    def view(self, number: int, suffix: list[Header]) -> None:
        self.node.core.begin_view(number, suffix, self.cluster.now, commit=4)
        self.node.driver.on_tick()

    def wait(self) -> None:
        for _ in range(60):
            self.cluster.now += 1000 * MS
            self.node.driver.on_disk()
        self.node.slow_disk(0)


def test_what_was_cut_off_and_is_named_again_is_written_anew() -> None:
    late = Late()
    log, node = late.node.core.log, late.node
    late.view(1, late.log[4:5])
    late.view(2, [late.log[4], late.late.header])
    late.wait()
    assert (node.core.status, node.core.log_view, log.op) == (Status.NORMAL, 2, 5)
    assert (log.durable, node.store.head) == (4, 4)
    acknowledged = [
        message.header.op
        for source, _, message in late.cluster.sent
        if source == 4 and message.header.command == Command.PREPARE_OK and message.header.view == 2
    ]
    assert set(acknowledged) == {4}
    late.give(late.late)
    late.give(prepare(late.late.header, 2, 5))
    late.node.driver.on_disk()
    assert (log.durable, node.store.head) == (6, 6)
    assert node.entries() == [header.checksum for header in (*late.log[1:6], late.log[-1])]


def test_what_no_log_has_cut_off_counts_in_a_later_view() -> None:
    late = Late()
    late.view(1, late.log[4:6])
    late.wait()
    assert (late.node.core.log_view, late.node.core.log.durable, late.node.store.head) == (1, 5, 5)


def test_only_what_is_above_the_cut_is_void() -> None:
    """One group of writes, cut in two by the log of the next view."""
    late = Late()
    sixth = prepare(late.late.header, 0, 4)
    seventh = prepare(sixth.header, 0, 4)
    late.node.driver.on_input(messages=[sixth, seventh])
    groups = [persist for persist in late.node.core.pending if isinstance(persist, Append)]
    assert [[entry.header.op for entry in persist.entries] for persist in groups] == [[5], [6, 7]]
    late.view(1, [late.log[4], late.late.header, sixth.header])
    late.view(2, [late.log[4], late.late.header, sixth.header, seventh.header])
    late.wait()
    assert (late.node.core.log_view, late.node.core.log.durable, late.node.store.head) == (2, 6, 6)
    assert late.node.entries() == [header.checksum for header in (*late.log[1:6], sixth.header)]
