"""What goes into the cores of a small cluster and what comes out of them, as text that is kept in files.

A file tells a story: commands, each after `> `, and below each what the cores did, one line for every input and
output. `play` carries the commands out and gives the whole text; a test compares it with the file, and writes it there
when pytest is called with --rewrite-transcripts. A changed line is a changed behaviour: it is reviewed like code.

    5 ms                                the time, when it has moved
    1 < COMMIT: view 1, op 3, of 0      input of replica 1: a frame, a request, a tick, something durable or executed
    1 > 0: PREPARE_OK: view 1, op 3, 3a output: a frame to replica 0, to client 1 (`client 1`), to several (`0, 2`)
    1 > disk 4: write APPLY 3a ...      to be made durable; `1 < disk 4` when it is
    1 > execute op 3
    1 ! gives up the lead of view 1     an event that is in the log of a node

An entry is called by its op and a letter: `3b` is the second one that the file has of op 3. Fields of a frame that are
0 are left out; `n1` is the first nonce. Lines that begin with `#` are comments. Commands (with `quietly` before: no
line is written of what follows from them):

    cluster N [checkpoint OPS]          format and start so many replicas
    hide COMMAND...                     no line is written of these frames; with COMMIT, nor of answers to heartbeats
    register, append EVENT [SIZE]       a request of the client to who leads; `appends COUNT SIZE` one after another
    deliver                             frames arrive until none is under way
    run MS [until WHAT]                 time passes: until `leading` (a primary is ready, and all follow), `answered`,
                                        `level` (all that are up take part and have executed all), EVENT (a kind of it)
    lose [COMMAND...] [A->B]            such frames never arrive, until `lose nothing`; `hold` ends with `release`
    disk A off|on, durable A [COUNT]    nothing is done, it is; what was asked first is done
    crash A..., start A..., restart     restart: all at once
    damage A OP                         the body of an entry on the disk
    trim                                as far as the primary may
    step_down                           the primary is asked to leave the lead
    show                                where every replica is
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from random import Random
from typing import Any

from kimberlite.node.checkpoints import CheckpointPolicy
from kimberlite.node.driver import FastCodec
from kimberlite.types import HEADER_SIZE, ZERO16, Command, Header, Message, Operation, Reason, Status
from kimberlite.vopr.disk import corrupt
from kimberlite.vsr import events
from kimberlite.vsr.codec import decode_evidence
from kimberlite.vsr.events import TABLE, Event, EventKind, Level
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.work import Admission, Append, Persist, ServePrepare, ToClient, ToReplica, Work
from lab.cluster import Cluster, Links, nothing
from lab.entries import MS

FIELDS = (  # of a header, in this order; timestamp and latency are left out: they are those of a clock
    *("epoch", "view", "log_view", "op", "commit", "checkpoint_op", "session", "request", "position", "count", "flags"),
)
WITH_HEADERS = (Command.HEADERS, Command.START_VIEW)
CODEC = FastCodec()


def play(text: str) -> str:
    """The same story as it is told now."""
    player = Player()
    for line in text.splitlines():
        if line.startswith("> "):
            player.obey(line[2:].split())
        elif line.startswith("#"):
            player.page.lines.append(line)
    return player.page.text()


class Page:
    """The lines so far, and what they mean by short names."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.hidden: set[int] = set()
        self.is_muted = False
        self._nonces: dict[int, int] = {}
        self._names: dict[bytes, str] = {}
        self._ticks: dict[int, str] = {}
        self.now = 0  # of the last input
        self._at = -1  # of the last line

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def add(self, replica: int, line: str) -> None:
        if self.is_muted:
            return
        if self.now != self._at:
            self._at = self.now
            self.lines.append(f"{self.now / MS:.0f} ms")
        if (tick := self._ticks.pop(replica, None)) is not None:
            self.lines.append(tick)
        self.lines.append(f"{replica} {line}")

    def hides(self, header: Header) -> bool:
        is_answer = header.command == Command.PREPARE_OK and header.nonce  # to a heartbeat
        return header.command in self.hidden or (is_answer and Command.COMMIT in self.hidden)

    def given(self, replica: int, now: int, line: str) -> None:
        self.now = now
        self.add(replica, f"< {line}")

    def tick(self, replica: int, now: int) -> None:
        """Said when something follows from it."""
        self.now = now
        self._ticks[replica] = f"{replica} < tick"

    def done(self, replica: int) -> None:
        """Nothing does any more."""
        self._ticks.pop(replica, None)

    def frame(self, message: Message) -> str:
        header = message.header
        name = Command(header.command).name
        if header.command == Command.PREPARE:
            name = f"PREPARE {self.entry(header)}"
        if header.command == Command.REJECT:
            name = f"REJECT {Reason(header.reason).name}"
        if header.command == Command.REPLY:
            name = f"REPLY {Operation(header.operation).name}"
        fields = [field for field in FIELDS if not (field == "op" and header.command == Command.PREPARE)]
        parts = [f"{field} {value}" for field in fields if (value := getattr(header, field))]
        if header.command not in (Command.PREPARE, Command.REJECT, Command.REPLY) and header.context != ZERO16:
            parts.append(self._names.get(header.context, "of an unknown entry"))
        if header.nonce:
            parts.append(f"n{self._nonces.setdefault(header.nonce, len(self._nonces) + 1)}")
        if header.command in WITH_HEADERS:
            parts.append(f"[{self.entries(CODEC.decode_headers(message.body))}]")
        if header.command == Command.DO_VIEW_CHANGE:
            parts.append(self.evidence(message))
        return f"{name}{': ' if parts else ''}{', '.join(parts)}"

    def name(self, identity: bytes, op: int) -> str:
        """An entry is called by its op, and a letter that tells it from others that are made for the same op."""
        if identity not in self._names:
            taken = sum(int(name[:-1]) == op for name in self._names.values())
            self._names[identity] = f"{op}{'abcdefgh'[taken]}"
        return self._names[identity]

    def entry(self, header: Header) -> str:
        behind = f" behind {self.name(header.parent, header.op - 1)}" if header.op else ""
        return f"{Operation(header.operation).name} {self.name(header.checksum, header.op)}{behind}"

    def entries(self, headers: Sequence[Header]) -> str:
        return "; ".join(map(self.entry, headers))

    def evidence(self, message: Message) -> str:
        found = decode_evidence(CODEC, message.body)

        def said(bits: int) -> str:
            return ops([found.first + at for at in range(64) if bits >> at & 1])

        return f"[{self.entries(found.headers)}; present {said(found.present)}; never had {said(found.nack)}]"

    def promise(self, persist: Persist) -> str:
        if isinstance(persist, Append):
            return f"write {self.entries([message.header for message in persist.entries])}"
        state = persist.state
        words = f"view {state.view}, log_view {state.log_view}, commit {state.commit}, base {state.base}"
        words += f", suffix {ops([header.op for header in state.suffix])} of {state.suffix_head}"
        words += f", doubt {state.doubt}" if state.doubt else ""
        return words + (f", cut behind {persist.truncate_to}" if persist.truncate_to is not None else "")


def ops(numbers: Sequence[int]) -> str:
    """Those between are left out."""
    if not numbers:
        return "none"
    return f"{numbers[0]}..{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


class Recorded(Replica):
    """The core of production, which writes down what it is given and what it asks for."""

    def __init__(self, page: Page, **fields: Any) -> None:
        self.page = page
        page.now = fields["now"]
        super().__init__(**fields)

    def step(self, message: Message, now: int) -> None:
        self.page.now = now
        if not self.page.hides(message.header):
            self.page.given(self.state.index, now, f"{self.page.frame(message)}, of {message.header.replica}")
        super().step(message, now)

    def propose(self, message: Message, now: int) -> Admission:
        header = message.header
        answer = super().propose(message, now)
        what = f"{Operation(header.operation).name} of client {header.client[0]}, request {header.request}"
        self.page.given(self.state.index, now, f"{what}: {answer.name}")
        return answer

    def tick(self, now: int) -> None:
        self.page.tick(self.state.index, now)
        super().tick(now)

    def durable(self, token: int, now: int) -> None:
        self.page.given(self.state.index, now, f"disk {token}")
        super().durable(token, now)

    def applied_op(self, op: int, results: Any, now: int) -> None:
        self.page.given(self.state.index, now, f"executed op {op}")
        super().applied_op(op, results, now)

    def entry_faulty(self, op: int, header: Header | None, now: int) -> None:
        self.page.given(
            self.state.index,
            now,
            f"op {op} is damaged: {'what it was too' if header is None else self.page.entry(header)}",
        )
        super().entry_faulty(op, header, now)

    def checkpointed(self, op: int) -> None:
        self.page.add(self.state.index, f"< a checkpoint of op {op}")
        super().checkpointed(op)

    def trimmed(self, first_op: int) -> None:
        self.page.add(self.state.index, f"< the log begins with op {first_op}")
        super().trimmed(first_op)

    def propose_trim(self, first_op: int, first_position: int, now: int) -> bool:
        answer = super().propose_trim(first_op, first_position, now)
        self.page.given(self.state.index, now, f"trim, so that the log begins with op {first_op}: {answer}")
        return answer

    def step_down(self, now: int) -> None:
        self.page.given(self.state.index, now, "step down")
        super().step_down(now)

    def take_work(self) -> Work:
        work = super().take_work()
        for line in self._asked(work):
            self.page.add(self.state.index, line)
        self.page.done(self.state.index)
        return work

    def take_sends(self) -> list[ToReplica | ToClient]:
        sends = super().take_sends()
        for line in self._sent(sends):
            self.page.add(self.state.index, line)
        return sends

    def take_events(self) -> list[Event]:
        told = super().take_events()
        for line in self._told(told):
            self.page.add(self.state.index, line)
        self.page.done(self.state.index)
        return told

    def _told(self, told: Sequence[Event]) -> Iterator[str]:
        for event in told:
            if TABLE[event.kind].level is not Level.COUNTED:
                yield f"! {events.sentence(event)}"

    def _asked(self, work: Work) -> Iterator[str]:
        yield from self._told(work.events)
        yield from self._sent(work.send)
        for persist in work.persist:
            yield f"> disk {persist.token}: {self.page.promise(persist)}"
        for apply in work.apply:
            yield f"> execute op {apply.op}"
        for serve in work.serve:
            what = f"op {serve.op}" if isinstance(serve, ServePrepare) else f"headers {serve.first}..{serve.last}"
            yield f"> read {what} for {serve.replica}"
        for message in work.refused:
            yield f"> refuse {Command(message.header.command).name} of {message.header.replica}"

    def _sent(self, send: Sequence[ToReplica | ToClient]) -> Iterator[str]:
        for _, group in groupby(send, lambda send: (send.message.header.checksum, isinstance(send, ToReplica))):
            sends = list(group)
            message = sends[0].message
            if self.page.hides(message.header):
                continue
            to = [str(send.replica) if isinstance(send, ToReplica) else f"client {send.client[0]}" for send in sends]
            yield f"> {', '.join(to)}: {self.page.frame(message)}"


class Player:
    def __init__(self) -> None:
        self.page = Page()
        self.cluster: Cluster
        self.number = 0

    def obey(self, words: list[str]) -> None:
        self.page.lines += ["", f"> {' '.join(words)}"]
        self.page.is_muted = words[0] == "quietly"
        if self.page.is_muted:
            words = words[1:]
        carry_out = getattr(self, f"do_{words[0]}", None)
        if carry_out is None:
            raise ValueError(f"there is no command `{words[0]}`")
        carry_out(*words[1:])

    def do_cluster(self, count: str, _: str = "", checkpoint_ops: str = "") -> None:
        policy = CheckpointPolicy(ops=int(checkpoint_ops)) if checkpoint_ops else CheckpointPolicy()
        self.cluster = Cluster(int(count), make_core=partial(Recorded, self.page), checkpoints=policy)

    def do_hide(self, *commands: str) -> None:
        self.page.hidden = {Command[command] for command in commands}

    def do_register(self) -> None:
        self._request()

    def do_append(self, event: str, size: str = "0") -> None:
        self.number += 1
        self._request(event.encode().ljust(int(size), b"."))

    def do_appends(self, count: str, size: str) -> None:
        for number in range(int(count)):
            self.do_append(str(number), size)
            self.do_run("5000", "until", "answered")

    def _request(self, *payloads: bytes) -> None:
        for node in self.cluster.up:
            node.answers.clear()
        self.cluster.primary.driver.on_input(requests=[self.cluster.request(self.number, *payloads)])

    def do_deliver(self) -> None:
        self.cluster.deliver()
        self._note_session()

    def do_run(self, ms: str, _: str = "", what: str = "") -> None:
        until: Callable[[], bool] | None = None
        cluster = self.cluster
        seen = {node.index: len(node.events) for node in cluster.up}
        if what == "leading":

            def until() -> bool:
                views = {node.core.view for node in cluster.up if node.core.status == Status.NORMAL}
                normal = all(node.core.status == Status.NORMAL for node in cluster.up)
                return normal and len(views) == 1 and any(node.leads and node.core.ready for node in cluster.up)

        elif what == "level":

            def until() -> bool:
                found = {op for node in cluster.up for op in (node.core.applied, node.core.log.op)}
                return len(found) == 1 and all(node.core.status == Status.NORMAL for node in cluster.up)

        elif what == "answered":

            def until() -> bool:
                return any(node.answers for node in cluster.up)

        elif what:

            def until() -> bool:
                recent = [event for node in cluster.up for event in node.events[seen.get(node.index, 0) :]]
                return any(event.kind is EventKind[what] for event in recent)

        cluster.run(int(ms), until)
        self._note_session()

    def _note_session(self) -> None:
        for node in self.cluster.up:
            for answer in node.answers:
                if answer.header.operation == Operation.REGISTER:
                    self.cluster.session = answer.header.session

    def do_lose(self, *which: str) -> None:
        self.cluster.lost = links(which)

    def do_hold(self, *which: str) -> None:
        self.cluster.held = links(which)

    def do_release(self) -> None:
        self.cluster.release()

    def do_disk(self, index: str, state: str) -> None:
        node = self.cluster.node(int(index))
        {"on": node.disk_on, "off": node.disk_off}[state]()

    def do_durable(self, index: str, count: str = "1") -> None:
        self.cluster.node(int(index)).make_durable(int(count))

    def do_crash(self, *indexes: str) -> None:
        self.cluster.crash(*map(int, indexes))

    def do_start(self, *indexes: str) -> None:
        for index in indexes:
            self.cluster.start(int(index))

    def do_restart(self) -> None:
        self.cluster.restart()

    def do_damage(self, index: str, op: str) -> None:
        """Of a replica that is up: what is on its disk, not what it has in memory."""
        store = self.cluster.node(int(index)).store
        segment, _, _, place = store.place_of(int(op))
        name = f"journal-{segment:08}"
        corrupt(self.cluster.files[int(index)], name, (place or 0) + HEADER_SIZE, 64, Random(int(op)))

    def do_trim(self) -> None:
        primary = self.cluster.primary
        extent = [each for each in primary.store.extents() if each.first_op <= primary.core.trimmable_op][-1]
        primary.driver.trim(extent.first_op, extent.first_position)

    def do_step_down(self) -> None:
        self.cluster.primary.driver.step_down()

    def do_show(self) -> None:
        for index, node in enumerate(self.cluster.nodes):
            if node is None:
                self.page.lines.append(f"{index} is down")
                continue
            core = node.core
            role = "primary" if core.is_primary else "backup"
            self.page.lines.append(
                f"{index} {role}, {core.status.name}, view {core.view}, log_view {core.log_view}, op {core.log.op}, "
                f"durable {core.log.durable}, commit {core.commit_max}, applied {core.applied}"
                + (f", damaged {ops(sorted(core.log.faulty))}" if core.log.faulty else "")
                + (f", first op {core.first_op}" if core.first_op > 1 else "")
            )


def links(which: Sequence[str]) -> Links:
    """The frames that words like `PREPARE COMMIT ->2` or `0->` name: of one of the commands and on one of the ways."""
    if which == ("nothing",):
        return nothing
    commands = {Command[word] for word in which if "->" not in word}
    ways = [word.split("->") for word in which if "->" in word]

    def meant(source: int, target: int, message: Message) -> bool:
        if commands and message.header.command not in commands:
            return False
        return not ways or any(a in ("", str(source)) and b in ("", str(target)) for a, b in ways)

    return meant
