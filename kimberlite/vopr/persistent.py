"""The phase *persistent fault*: one thing goes wrong and stays wrong, and the clients must be served all the same.

From a cluster that is level and whole, with clients under load, one fault of `FAULTS` begins, and lasts to the end of
the phase. The others are a quorum, and healthy: every client must be answered within LIMIT_NS, in round after round.
That a cluster recovers once a fault has ended is check E1, and is not enough: a disk that hangs and a link that is cut
one way stay like that until a person comes. The violation (check E6) names the fault.

Each fault is put upon a *primary* and a *backup* of the moment it begins; the backup is drawn from the others. In many
runs a view is left in the midst of it, for whoever leads then is asked to step down: the clients must be served within
twice the time. Where just enough replicas are left for a commit, and one of them limps, who leads goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, TypeAlias

from kimberlite.errors import UsageError
from kimberlite.types import Command
from kimberlite.vopr.checkers import COMMIT_QUORUM, Violation
from kimberlite.vopr.clients import serve_all
from kimberlite.vopr.disk import PROMISE, WRITE, empty, fill
from kimberlite.vopr.late_return import SLOW_DISK, leader
from kimberlite.vopr.plan import MS

if TYPE_CHECKING:
    from kimberlite.vopr.nodes import SimNode
    from kimberlite.vopr.world import World

ANY = "any"
RARE = 0.2  # of the phases lose one kind of frames on one link
SEEDS_MIN, SEEDS_RARE_MIN = 4000, 12_000  # so many seeds of a campaign reach every fault; that lose one kind of frames
LIMIT_NS = 5000 * MS
LOAD, LOAD_NS = 20, 30 * MS  # appends of each client, and when at the latest the fault begins in the midst of them
ROUNDS = 3
BURST = 3  # appends of each client in a round
FILL = 400  # appends that use up what room is left, mostly
PAUSE_NS = 700 * MS  # between two rounds: longer than timers that should have gone off, and did not
FOREVER_NS = 1 << 60
FAR_NS = 25 * MS
SLUGGISH_NS, CRAWLING_NS = 700 * MS, 1500 * MS  # a phase of a write
SLOW_NODE_NS = 3 * MS  # for each input
LIMPING_NS, HASTY_NS = 80 * MS, 400 * MS  # a phase of a write, which has two; what a primary waits for at least
SILENCE_NS = 1500 * MS  # after which everybody knows who is down
BEHIND_NS = 20 * MS  # in which a replica that gets no entries falls behind
ALARM_NS, ALARM_GAP_NS = 900 * MS, 2500 * MS  # longer than a primary is waited for; longer than a vote counts
HUSH_NS, HUSH_GAP_NS = 200 * MS, 1200 * MS  # longer than from one heartbeat to the next; shorter than a vote counts
HOUR_NS = 3600 * 1000 * MS
ABDICATE_NS = 2000 * MS  # as it is by default: plans have shorter ones


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays which part."""

    primary: int
    backup: int
    other: int  # another backup


Fault: TypeAlias = Callable[["World", Cast], None]
FAULTS: dict[str, Fault] = {}

# Who can not lead like that has a successor soon: that none is needed would mean that the fault was none.
REPLACED = (
    "primary is down",
    "primary hangs",
    "primary has a disk that hangs",
    "primary has a journal that hangs",
    "primary is cut off",
    "primary is not heard",
    "primary does not hear",
    "primary steps down",
)
# Who leads goes on: nobody else would be better.
KEPT = "just enough are left"
FULL_BACKUP = "backup has a full disk"
# Who is slow has a successor too, in a while: what takes long there alone adds up from one op to the next.
REPLACED_LATE = ("primary has a disk that takes most of a second", "primary has a disk that takes seconds")
ALL_FULL, BACKUPS_FULL = "all disks are full", "the disks of all backups are full"
# Appends are refused then, with the reason: see docs/cluster.md.
REFUSING = ("primary has a full disk", ALL_FULL, BACKUPS_FULL)


def _on_each(name: str, fault: Callable[[World, int], None]) -> None:
    """A fault of one replica: of the primary, or of a backup."""
    FAULTS[f"primary {name}"] = lambda world, cast: fault(world, cast.primary)
    FAULTS[f"backup {name}"] = lambda world, cast: fault(world, cast.backup)


def _on_each_link(name: str, fault: Callable[[World, int, int], None]) -> None:
    """A fault of one direction of a link."""
    FAULTS[f"{name} from the primary to a backup"] = lambda world, cast: fault(world, cast.primary, cast.backup)
    FAULTS[f"{name} from a backup to the primary"] = lambda world, cast: fault(world, cast.backup, cast.primary)
    FAULTS[f"{name} from a backup to another"] = lambda world, cast: fault(world, cast.backup, cast.other)


# What takes long to show, and does not in every phase that has it: drawn so many times as often as others.
DENSE, OFTEN = (*REPLACED_LATE, ALL_FULL, BACKUPS_FULL), 4


# What one replica does, or its machine


def _hang(world: World, index: int) -> None:
    world.nodes[index].paused_until = FOREVER_NS


def _slow_disk(world: World, index: int) -> None:
    world.slow_down(index, (WRITE, PROMISE), SLOW_DISK)


def _hung_disk(world: World, index: int) -> None:
    world.hang(index, (WRITE, PROMISE))


def _hung_journal(world: World, index: int) -> None:
    world.hang(index, (WRITE,))


def _crawling_disk(world: World, index: int, write_ns: int) -> None:
    world.slow_down(index, (WRITE, PROMISE), write_ns // world.plan.disk_latency_ns)


def _slow_node(world: World, index: int) -> None:
    world.slow_nodes[index] = SLOW_NODE_NS


def _cut_off(world: World, index: int) -> None:
    _mute(world, index)
    _deafen(world, index)


def _mute(world: World, index: int) -> None:
    world.network.cuts.update((index, other) for other in range(world.plan.replica_count) if other != index)


def _unmute(world: World, index: int) -> None:
    world.network.cuts.difference_update((index, other) for other in range(world.plan.replica_count))


def _deafen(world: World, index: int) -> None:
    world.network.cuts.update((other, index) for other in range(world.plan.replica_count) if other != index)


def _set_clock(world: World, index: int, hours: int) -> None:
    core = world.nodes[index].driver.core
    core.set_clock_offset(core.state.clock.offset + hours * HOUR_NS)


def _fill(world: World, index: int) -> None:
    """The file system has nothing left to speak of: the node tells the core so before the last byte is gone."""
    fill(world.files[index])
    world.nodes[index].driver.core.set_short_of_space(True)


def _far_away(world: World, index: int) -> None:
    world.network.distance[index] = FAR_NS


_on_each("is down", lambda world, index: world.crash(index))
_on_each("hangs", _hang)
_on_each("is slow", _slow_node)
_on_each("has a slow disk", _slow_disk)
_on_each("has a disk that takes most of a second", partial(_crawling_disk, write_ns=SLUGGISH_NS))
_on_each("has a disk that takes seconds", partial(_crawling_disk, write_ns=CRAWLING_NS))
_on_each("has a disk that hangs", _hung_disk)
_on_each("has a journal that hangs", _hung_journal)
_on_each("is slow to answer", _far_away)
_on_each("is cut off", _cut_off)
_on_each("is not heard", _mute)
_on_each("does not hear", _deafen)
_on_each("has a clock hours ahead", lambda world, index: _set_clock(world, index, 3))
_on_each("has a clock hours behind", lambda world, index: _set_clock(world, index, -3))
_on_each("has a full disk", _fill)

# What befalls the disks of many


def _fill_up(world: World, indices: Sequence[int]) -> None:
    """No space for another segment, and what is left of this one is used up, until clients are refused. Then nobody
    asks for more: that there is space again is to be noticed all the same."""
    for index in indices:
        fill(world.files[index])
    refused = world.counts.get("NoSpaceError", 0)
    for client in world.clients:
        client.quota += FILL // len(world.clients)
        client.append()
    world.run_until(
        world.now + LIMIT_NS,
        lambda: world.counts.get("NoSpaceError", 0) > refused or not any(client.busy for client in world.clients),
    )
    if world.counts.get("NoSpaceError", 0) > refused:
        world.count("FILLED_UP")
    for client in world.clients:
        client.quota = 0


def _fill_up_all(world: World, cast: Cast) -> None:
    _fill_up(world, range(world.plan.replica_count))


def _fill_up_backups(world: World, cast: Cast) -> None:
    _fill_up(world, [index for index in range(world.plan.replica_count) if index != cast.primary])


FAULTS[ALL_FULL] = _fill_up_all
FAULTS[BACKUPS_FULL] = _fill_up_backups


# What befalls one of those that are just enough


def _just_enough(world: World, cast: Cast, index: int, fault: Callable[[World, int], None]) -> None:
    """So many backups are down that no commit can do without the others, and one of these has the fault."""
    count = world.plan.replica_count
    spare = [other for other in range(count) if other not in (cast.primary, cast.backup)]
    for other in spare[: count - COMMIT_QUORUM[count]]:
        world.crash(other)
    world.run_until(world.now + SILENCE_NS, lambda: False)
    if index == cast.primary:  # its own write is waited for longer than any other
        _set_abdicate(world, HASTY_NS)
    fault(world, index)


LIMPING = {
    "has a slow disk": _slow_disk,
    "has a disk that takes its time": partial(_crawling_disk, write_ns=LIMPING_NS),
    "is slow": _slow_node,
    "is slow to answer": _far_away,
}
for _name, _fault in LIMPING.items():
    FAULTS[f"just enough are left, of which the primary {_name}"] = lambda world, cast, fault=_fault: _just_enough(  # type: ignore[misc]
        world, cast, cast.primary, fault
    )
    FAULTS[f"just enough are left, of which a backup {_name}"] = lambda world, cast, fault=_fault: _just_enough(  # type: ignore[misc]
        world, cast, cast.backup, fault
    )


# What befalls who has just begun to lead


def _as_it_begins(world: World, cast: Cast, fault: Callable[[World, int], None]) -> None:
    """The primary steps down, and its successor has the fault from the moment that it begins to lead."""
    primary = world.nodes[cast.primary]
    view = primary.driver.core.state.view

    def leads(node: SimNode) -> bool:
        core = node.driver.core
        if core.state.view <= view or core.leading is None:
            return False
        fault(world, node.index)
        return True

    world.ambushes.append(leads)
    world.act(primary.index, primary.life, primary.driver.step_down)


def _behind_as_it_begins(world: World, cast: Cast) -> None:
    """The next primary gets no entries for a moment, then the primary steps down, and the journal of who leads now
    hangs: it can not have what the last view left. Entries come to all again then: where it left the lead to another
    because of what it lacked, it is the journal of that one that hangs, and the two others are the quorum."""
    primary, count = world.nodes[cast.primary], world.plan.replica_count
    successor = world.membership.leader(world.membership.next_view(primary.driver.core.state.view))
    lost = {(index, successor, Command.PREPARE) for index in range(count)}

    def begins(world: World, leader: int) -> None:
        world.network.silenced -= lost
        _hung_journal(world, leader)

    world.network.silenced |= lost
    world.at(world.now + BEHIND_NS, lambda: _as_it_begins(world, cast, begins))


FAULTS["successor has a disk that hangs"] = partial(_as_it_begins, fault=_hung_disk)
FAULTS["successor is behind, and has a journal that hangs"] = _behind_as_it_begins
FAULTS["successor has a disk that takes seconds"] = partial(
    _as_it_begins, fault=partial(_crawling_disk, write_ns=CRAWLING_NS)
)
FAULTS["successor is not heard"] = partial(_as_it_begins, fault=_mute)
FAULTS["primary steps down"] = lambda world, cast: world.act(
    cast.primary, world.nodes[cast.primary].life, world.nodes[cast.primary].driver.step_down
)

# False alarms


def _false_alarms(world: World, cast: Cast) -> None:
    """One backup after another does not hear the primary for a while: each votes, and takes its vote back. The first
    one begins when no vote of an earlier phase counts any more, each next one when the last one's does not.

    Then once more, without that pause: all but the last one are not heard either until they have heard the primary
    again. So nobody has a vote of theirs, and they have none themselves any more."""
    others = [index for index in range(world.plan.replica_count) if index != cast.primary]
    begins = world.now
    for index in others:
        begins += ALARM_GAP_NS
        _deafen_for_a_while(world, cast.primary, index, begins)
    begins += ALARM_GAP_NS
    for index in others:
        _deafen_for_a_while(world, cast.primary, index, begins)
        if index != others[-1]:
            world.at(begins, partial(_mute, world, index))
            world.at(begins + ALARM_NS + HUSH_NS, partial(_unmute, world, index))
        begins += HUSH_GAP_NS


def _deafen_for_a_while(world: World, primary: int, index: int, begins: int) -> None:
    world.at(begins, partial(world.network.cuts.add, (primary, index)))
    world.at(begins + ALARM_NS, partial(world.network.cuts.discard, (primary, index)))


def _alarms_last_ns(replica_count: int) -> int:
    """At most so long until the last alarm has had its effect."""
    return replica_count * ALARM_GAP_NS + replica_count * HUSH_GAP_NS


FAULTS["false alarms"] = _false_alarms

# What one link does


def _lose(world: World, source: int, target: int, command: Command) -> None:
    world.network.silenced.add((source, target, command))


def _cut(world: World, a: int, b: int) -> None:
    world.network.cuts |= {(a, b), (b, a)}


def _cut_one_way(world: World, source: int, target: int) -> None:
    world.network.cuts.add((source, target))


FAULTS["link between the primary and a backup cut"] = lambda world, cast: _cut(world, cast.primary, cast.backup)
FAULTS["link between two backups cut"] = lambda world, cast: _cut(world, cast.backup, cast.other)
_on_each_link("nothing arrives", _cut_one_way)
for _command in (
    Command.PREPARE,
    Command.PREPARE_OK,
    Command.COMMIT,
    Command.START_VIEW_CHANGE,
    Command.DO_VIEW_CHANGE,
    Command.START_VIEW,
    Command.PING,
    Command.REQUEST_PREPARE,
    Command.REQUEST_HEADERS,
    Command.HEADERS,
):
    _on_each_link(f"no {_command.name}", partial(_lose, command=_command))


# The phase


def is_rare(name: str) -> bool:
    """Whether it is one of the many that lose one kind of frames."""
    return name.startswith("no ")


def check(name: str) -> None:
    """Raises UsageError for a fault that there is not."""
    if name not in ("", ANY, *FAULTS):
        raise UsageError(f"no persistent fault is called {name!r}; there are {', '.join(FAULTS)}")


def persistent_fault(world: World, name: str, number: int = 0) -> str:
    """Carry the phase out; "any" has a fault drawn. Returns its name. Raises Violation.

    number: which of the phases of the run."""
    random = Random(f"persistent {world.plan.seed} {number}")
    if name == ANY:
        wanted = random.random() < RARE
        names = [fault for fault in FAULTS if is_rare(fault) is wanted]
        (name,) = random.choices(names, [OFTEN if fault in DENSE else 1 for fault in names])
    _set_abdicate(world, ABDICATE_NS)
    primary = leader(world)
    backup, other = random.sample([index for index in range(world.plan.replica_count) if index != primary], 2)
    for client in world.clients:
        client.quota += LOAD
        client.append()
    world.run_until(world.now + random.randrange(LOAD_NS), lambda: False)
    world.trace.add(world.now, "persistent", name.encode(), primary, backup, other)
    world.count(f"PERSISTENT {name}")
    FAULTS[name](world, Cast(primary, backup, other))
    asked_at = random.choice((None, *range(1, ROUNDS))) if _may_change_views(name) else None
    for turn in range(ROUNDS):
        what = f"{name} (primary {primary}, backup {backup}, another {other})"
        if turn == asked_at:
            _check_replaced(world, name, primary)
            leading = world.nodes[leader(world)]
            view = leading.driver.core.state.view
            world.act(leading.index, leading.life, leading.driver.step_down)
            may_refuse = _refuses(name, backup, world.membership.leader(world.membership.next_view(view)))
            _serve_all(world, f"{what}, and replica {leading.index} steps down", may_refuse, 2 * LIMIT_NS)
        else:
            _serve_all(world, what, name in REFUSING or _refuses(name, backup, leader(world)))
        world.run_until(world.now + PAUSE_NS, lambda: False)
    for client in world.clients:
        client.quota = 0
    if name == "false alarms":
        world.run_until(world.now + _alarms_last_ns(world.plan.replica_count), lambda: False)
        if leader(world) != primary:
            raise Violation("E6 false alarms", f"{name}: replica {primary} was replaced, though a quorum heard it")
    if name.startswith((KEPT, BACKUPS_FULL)) and leader(world) != primary:
        raise Violation("E6 kept", f"{name}: replica {primary} was replaced, by one that waits for the same replicas")
    if asked_at is None:
        _check_replaced(world, name, primary)
    if name in REPLACED_LATE and leader(world) == primary:
        raise Violation("E6 slow", f"{name}: replica {primary} leads as before")
    _end(world)
    return name


def _set_abdicate(world: World, abdicate_ns: int) -> None:
    for node in world.nodes:
        state = node.driver.core.state
        state.config = replace(state.config, timing=replace(state.config.timing, abdicate_ns=abdicate_ns))


def _check_replaced(world: World, name: str, primary: int) -> None:
    if name in REPLACED and leader(world) == primary:
        raise Violation("E6 no fault", f"{name}, and replica {primary} leads as before")


def _may_change_views(name: str) -> bool:
    """Whether a view change in the midst of it is nothing but one more thing to cope with."""
    return name not in (*REFUSING, *REPLACED_LATE, "false alarms") and not name.startswith(KEPT)


def _refuses(name: str, backup: int, leads: int) -> bool:
    """Whether who leads, or is next to, is the backup whose disk is full: it says so to clients, as any primary does
    whose disk is full, and does not leave the lead to another for that when it lacks nothing."""
    return name == FULL_BACKUP and leads == backup


def _serve_all(world: World, fault: str, may_refuse: bool, limit_ns: int = LIMIT_NS) -> None:
    """Every client has something acknowledged that it asked for after this moment, or is told why not."""
    names = serve_all(world, BURST, limit_ns, may_refuse)
    if names:
        raise Violation(
            "E6 availability",
            f"{fault}: clients {names} were not answered for {limit_ns // MS} ms; {world.describe()}",
        )


def _end(world: World) -> None:
    """The fault ends."""
    world.ambushes.clear()
    world.network.heal()
    world.network.distance.clear()
    world.network.silenced.clear()
    world.cure()
    for node in world.nodes:
        empty(world.files[node.index])
        node.driver.core.set_short_of_space(False)
        world.resume(node.index)
        world.restart(node.index)
