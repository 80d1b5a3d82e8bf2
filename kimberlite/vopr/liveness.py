"""The liveness phase of a run: faults end, and everything pending must finish.

First a core quorum alone must do with what it has; then everybody comes back, and all must converge. The phases late
return and persistent fault follow, in runs that have them; then all disks are looked at (checks E1, I13, I17). In the
end every log is read, by the replicas that have started once more (World.read_log).
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING

from kimberlite.storage.audit import Audit, Cause
from kimberlite.vopr import conversions, limits
from kimberlite.vopr.checkers import VIEW_CHANGE_QUORUM, Violation
from kimberlite.vopr.clients import serve_all
from kimberlite.vopr.disk import SimDisk, empty
from kimberlite.vopr.late_return import late_return
from kimberlite.vopr.persistent import ANY, persistent_fault
from kimberlite.vopr.plan import MS

if TYPE_CHECKING:
    from kimberlite.vopr.nodes import SimNode
    from kimberlite.vopr.world import World

CORE_NS_MAX = 60_000 * MS
CONVERGE_NS_MAX = 60_000 * MS
BIRTH_NS_MAX = 10_000 * MS
SERVE_NS_MAX = 10_000 * MS
FAR_APPENDS, FAR_CLIENTS = 5, 8  # of each, of so many clients, which who comes back over a long way has missed
PERSISTENT_FAULTS = 2
IDLE_NS = 500 * MS  # of which every frame is counted
QUIET_NS = 300 * MS  # for what is being written, repaired and trimmed
WITNESS_CAUSES = {Cause.WITNESS_DAMAGED, Cause.WITNESS_UNREADABLE, Cause.WITNESS_MISSING, Cause.WITNESS_OTHER}
SCRUBBED_CAUSES = {*WITNESS_CAUSES, Cause.COPY_DAMAGED, Cause.COPY_OLD}  # harmless, but written again by a tour


def liveness(world: World) -> None:
    """See the module docstring. Raises Violation."""
    end_faults(world)
    count, everybody = world.plan.replica_count, world.whole
    core = set(everybody)
    _be_born(world)
    if not world.rotten and not world.plan.garbage:
        core = set(Random(f"core {world.plan.seed}").sample(everybody, VIEW_CHANGE_QUORUM[count]))
    for index in everybody:
        if index not in core:
            world.crash(index)
    for index in sorted(core):
        world.restart(index)
    demand(world, CORE_NS_MAX, f"replicas {sorted(core)} of {count}", sorted(core))
    _serve(world)
    _return(world, sorted(core))
    _serve(world)
    demand(world, CONVERGE_NS_MAX, "all replicas that have served", everybody)
    may_one_fail = count >= 3 and not world.drawer.lost
    if world.plan.late_ops and may_one_fail and not world.rotten and not world.plan.garbage:
        world.run_until(world.now + QUIET_NS, lambda: False)  # what was on its way has arrived
        world.quiet_since, world.is_late_return = world.now, True
        late_return(world)
        world.is_late_return = False
        demand(world, CONVERGE_NS_MAX, "all replicas after a late return", everybody)
    _scrub_all(world)
    if world.plan.persistent and may_one_fail and world.plan.sessions_max >= len(world.clients):
        for number in range(PERSISTENT_FAULTS if world.plan.persistent == ANY else 1):
            world.quiet_since = world.now
            fault = persistent_fault(world, world.plan.persistent, number)
            demand(world, CONVERGE_NS_MAX, f"all replicas after the fault: {fault}", everybody)
            _serve(world)
        _scrub_all(world)
    world.run_until(world.now + CONVERGE_NS_MAX, lambda: not any(node.disk.submissions for node in world.nodes))
    world.run_until(world.now + QUIET_NS, lambda: False)
    check_rest(world)
    for index in everybody:
        _check_disk(world, world.nodes[index])
    demand(world, CONVERGE_NS_MAX, "all replicas whose disks were looked at", everybody)
    _restart_all(world)
    demand(world, CONVERGE_NS_MAX, "all replicas after a restart at rest", everybody)


def _return(world: World, core: list[int]) -> None:
    """All come back and catch up; in some runs over links slower than all that they wait for, when they have missed
    some more. What took so long to come counts all the same."""
    everybody = world.whole
    far = [index for index in everybody if index not in core]
    if not far and world.rot_victim is not None:
        far = [world.rot_victim]
    if world.plan.far_ns and far:
        for index in far:
            world.crash(index)
        for client in world.clients[:FAR_CLIENTS]:
            client.quota += FAR_APPENDS
            client.append()
        world.run_until(world.now + SERVE_NS_MAX, lambda: not world.is_client_busy())
        world.network.distance = dict.fromkeys(far, world.plan.far_ns)
        world.count("CAME_BACK_FROM_FAR")
    for node in world.nodes:
        world.restart(node.index)
    demand(world, CONVERGE_NS_MAX, "all replicas", everybody)
    world.network.distance.clear()
    _refuse_new_disks(world)


def _refuse_new_disks(world: World) -> None:
    """N3: where a disk is lost for good the new one, among all others, is told that it is no member, and its process
    ends."""
    lost = world.drawer.lost
    if not world.run_until(world.now + SERVE_NS_MAX, lambda: not any(world.nodes[index].up for index in lost)):
        raise Violation("N3 refused", f"the new disks of replicas {sorted(lost)} are not refused; {world.describe()}")


def _be_born(world: World) -> None:
    """A birth takes all replicas, and comes to its end when they are there."""

    def done() -> bool:
        is_born = all(world.nodes[index].driver.core.state.own.is_formed for index in world.whole)
        return is_born and (not world.plan.converted or conversions.is_over(world))

    if world.is_old:
        for node in world.nodes:
            world.crash(node.index)
        conversions.convert(world)
    if not (world.plan.birth or world.plan.converted) or done():
        return
    for node in world.nodes:
        world.restart(node.index)
    if not world.run_until(world.now + BIRTH_NS_MAX, done) and world.plan.birth:
        world.format_all()
    if not world.run_until(world.now + BIRTH_NS_MAX, done):
        raise Violation("E1 birth", f"all are there, and the cluster is not born; {world.describe()}")
    world.count("BORN_LATE")


def end_faults(world: World) -> None:
    """Nothing fails any more; who is down stays down, and who has a failed disk goes down."""
    world.network.faults_on = False
    world.network.heal()
    world.drawer.settle(world)
    world.cure()
    world.ambushes.clear()
    world.doomed = [None] * world.plan.replica_count
    for files, device in zip(world.files, world.devices, strict=True):
        empty(files)
        device.lies = None
    for node in world.nodes:
        node.disk.fail_next_write = None
        if node.disk.has_failed:  # its replica ends as soon as it hears of it: that too is before the faults end
            world.crash(node.index)
        world.resume(node.index)


def demand(world: World, limit: int, who: str, indices: list[int]) -> None:
    """Everything pending finishes within so many nanoseconds, and these replicas have the same log, whole and applied.
    Raises Violation."""

    def done() -> bool:
        if world.is_client_busy():
            return False
        head = world.nodes[indices[0]].driver.core.state.execution.applied
        for index in indices:
            state = world.nodes[index].driver.core.state
            log = state.log
            if not state.execution.applied == log.op == log.durable == head or log.faulty:
                return False
        return True

    if not world.run_until(world.now + limit, done):
        busy = [client.index for client in world.clients if client.busy]
        states = world.describe(indices)
        raise Violation("E1 liveness", f"{who} did not finish in {limit // MS} ms: clients {busy} wait; {states}")


def _serve(world: World) -> None:
    """E1: that nothing is pending is not enough, for what is given up is not pending either: every client gets
    something acknowledged that it asks for now. Not where clients take the sessions from each other."""
    if world.plan.sessions_max < len(world.clients):
        return
    names = serve_all(world, 1, SERVE_NS_MAX)
    if names:
        raise Violation(
            "E1 service",
            f"nothing fails, and clients {names} had nothing acknowledged for {SERVE_NS_MAX // MS} ms; "
            f"{world.describe()}",
        )


def check_rest(world: World) -> None:
    """I17: when nothing happens, replicas say little, and keep nothing that only work needs."""
    world.idle_frames = Counter()
    world.run_until(world.now + IDLE_NS, lambda: False)
    limits.check_idle(world.idle_frames, world.nodes[0].driver.core.state.config, IDLE_NS)
    world.idle_frames = None
    for node in (world.nodes[index] for index in world.whole):
        limits.check_rest(node.index, limits.held(node.driver.core, node.store, node.disk))
        conflict = node.driver.core.state.conflict
        if conflict is not None:
            raise Violation("I17 bounds", f"nothing happens, and replica {node.index} has not settled that {conflict}")
        if node.store.is_checkpoint_stalled:
            raise Violation(
                "I17 bounds", f"nothing happens, and the checkpoint of replica {node.index} waits for space"
            )
        _check_trimmed(node)


def _check_trimmed(node: SimNode) -> None:
    """I7: what was trimmed has given its space back: the disk begins where the log does."""
    there, wanted = node.store.first_op, node.driver.core.state.log.first_op
    if there != wanted and node.store.is_checkpoint_idle:
        raise Violation(
            "I7 trimmed",
            f"nothing happens, and replica {node.index} keeps what is below op {wanted}, from op {there} on",
        )


def _scrub_all(world: World) -> None:
    """Damage that nobody has read yet is found by a tour over everything, and repaired. A tour reads the checkpoint
    that the superblock names: one that still waits for space, a second after a disk was full, must be named before."""
    world.run_until(world.now + QUIET_NS, lambda: False)
    if not _has_named_checkpoints(world):
        world.run_until(world.now + CONVERGE_NS_MAX, lambda: _has_named_checkpoints(world))
    for node in (world.nodes[index] for index in world.whole):
        world.scrub(node, lambda node=node: _tour(node))  # type: ignore[misc]
    demand(world, CONVERGE_NS_MAX, "all replicas after a tour over their disks", world.whole)


def _has_named_checkpoints(world: World) -> bool:
    return all(world.nodes[index].store.is_checkpoint_idle for index in world.whole)


def _tour(node: SimNode) -> None:
    """What is left of the present tour, and a whole one."""
    wanted = node.scrubber.tours + (1 if node.scrubber.is_between_tours else 2)
    while node.scrubber.tours < wanted:
        node.scrubber.step()


def _check_disk(world: World, node: SimNode) -> None:
    """Nothing on a disk is damaged any more, as the audit sees it."""
    audit = Audit(SimDisk(world.files[node.index], lambda: world.now, lambda: 1))
    wrong = [finding for finding in audit.findings() if not finding.harmless or finding.cause in SCRUBBED_CAUSES]
    wrong = [finding for finding in wrong if finding.op is None or finding.op >= node.store.first_op]
    wrong = [finding for finding in wrong if finding.op is not None or finding.cause not in WITNESS_CAUSES]
    if wrong:
        what = "; ".join(f"{finding.file}: {finding.text} (op {finding.op})" for finding in wrong[:3])
        raise Violation("I13 scrubbed disk", f"replica {node.index} after a whole tour: {what}")


def _restart_all(world: World) -> None:
    """I13: a restart fears for nothing on a disk that a whole tour has looked at, and on which nothing is written. What
    a crash has torn behind the end stands there until it is written over."""
    world.run_until(world.now + QUIET_NS, lambda: False)
    for node in (world.nodes[index] for index in world.whole):
        known = world.counts["faulty"]
        world.crash(node.index)
        world.restart(node.index)
        if world.counts["faulty"] != known:
            raise Violation("I13 restart at rest", f"replica {node.index} starts at rest, and finds damage on its disk")
