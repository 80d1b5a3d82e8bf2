"""`vopr`: campaigns of the simulator, one run again, a failing run made small, planted bugs, enumerations.

Campaigns, planted bugs and enumerations print what they have found so far when SIGINT or SIGTERM cuts them short.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kimberlite.cli.common import COUNT, JOBS, POSITIVE, json_option, note, print_json, table
from kimberlite.cli.interruption import Interruption
from kimberlite.errors import CanaryMissedError, UsageError, ViolationError
from kimberlite.vopr import canaries as planted
from kimberlite.vopr import conversion_crashes, corruption, crash_images, crashes, recording
from kimberlite.vopr import minimize as minimizer
from kimberlite.vopr import run as runs
from kimberlite.vopr.campaign import Campaign
from kimberlite.vopr.campaign import Progress as CampaignProgress
from kimberlite.vopr.plan import DEFAULT, PLANS, REQUESTS

if TYPE_CHECKING:
    from rich.progress import Progress


def seed_range(text: str) -> tuple[int, int]:
    """A:B: from seed A up to seed B, not including B."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise click.BadParameter(f"{text!r} is no range of seeds: 0:100 means seeds 0 to 99")
    return int(match[1]), int(match[2])


requests_option = click.option(
    "--requests",
    type=POSITIVE,
    default=REQUESTS,
    show_default=True,
    metavar="N",
    help="Appends that the clients of a run make together.",
)

plan_option = click.option(
    "--plan",
    type=click.Choice(list(PLANS)),
    default=DEFAULT,
    show_default=True,
    help="What load and which faults the seeds draw from.",
)

record_option = click.option(
    "--record/--no-record",
    default=False,
    show_default=True,
    help="Have replicas record their metrics, as nodes do, and hold each against a model at every step (check M1).",
)

OUTCOMES = ("repaired", "healed", "harmless", "refused", "wrong")  # of an image with damage

canary_option = click.option("--canary", metavar="NAME", help="With that planted bug, to see how it fails.")


class Bar:
    """A progress bar on standard error when that is a terminal; gives a function to advance it, by one or
    by as many as it is told."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._progress: Progress | None = None

    def __enter__(self) -> Callable[..., None]:
        if not sys.stderr.isatty():
            return lambda count=1: None
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        progress = Progress(
            TextColumn(self._what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # lines go above the bar on a terminal, to the file elsewhere
        )
        task = progress.add_task(self._what, total=self._total)
        progress.start()
        self._progress = progress
        return lambda count=1: progress.advance(task, count)

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()


@click.group("vopr", short_help="Run the simulator.")
def vopr() -> None:
    """Run the simulator: the replica code of production under a virtual clock, network and disk.

    One seed is one run, byte for byte, on every machine.
    """


@vopr.command("run", short_help="Run a range of seeds.")
@click.option("--seeds", type=seed_range, default="0:100", show_default=True, metavar="A:B", help="A up to B-1.")
@plan_option
@requests_option
@click.option(
    "--jobs",
    type=JOBS,
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that share the seeds; the result does not depend on it.",
)
@click.option(
    "--state",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep there how far it has got, and go on from there when the file exists.",
)
@record_option
@json_option
def run_command(
    seeds: tuple[int, int], plan: str, requests: int, jobs: int, state: Path | None, record: bool, as_json: bool
) -> None:
    """Run a range of seeds and report every broken invariant with the command that replays it.

    Ends with exit code 0 when nothing was broken, else with 51; cut short by Ctrl-C with 130, by SIGTERM with 143.
    With --json the last line, the only one on standard output, has seeds, violations, trace_hash, messages,
    messages_per_s, wall_s, labels (how often each rare event was reached) and complete (false when it was cut
    short); violations go to standard error.

    With --state it can be cut short in any way, a kill or a power cut too, and the same command goes on later: the
    result is that of one go. A file of another campaign, or of other code, is refused, and one that another process
    goes on with.
    """
    if state is None:
        run_campaign(seeds, plan, requests, jobs, None, as_json, record)
        return
    key: dict[str, object] = {"seeds": list(seeds), "plan": plan, "requests": requests}
    with CampaignProgress(state, key | ({"record": True} if record else {})) as progress:
        run_campaign(seeds, plan, requests, jobs, progress, as_json, record)


def run_campaign(
    seeds: tuple[int, int],
    plan: str,
    requests: int,
    jobs: int,
    progress: CampaignProgress | None,
    as_json: bool,
    record: bool = False,
) -> None:
    show = note if as_json else click.echo
    campaign = progress.load() if progress else Campaign()
    total = seeds[1] - seeds[0]
    if campaign.seeds:
        note(
            f"{progress}: {campaign.seeds} of {total} seeds are done, "
            f"{len(campaign.violations)} of them with a violation"
        )
    with Interruption() as interruption:
        with Bar("seeds", total) as advance:
            advance(campaign.seeds)
            first = seeds[0] + campaign.seeds
            for outcome in interruption.until(runs.outcomes(first, seeds[1], requests, jobs, plan, record)):
                campaign.add(outcome)
                if outcome.check:
                    show(violation_text(outcome, requests, plan))
                if progress:
                    progress.save_when_due(campaign)
                advance()
        if progress:
            progress.save(campaign)
        is_complete = interruption.signal is None
        if is_complete and campaign.first is not None:
            differs = runs.check_determinism(*campaign.first, requests, plan)
            if differs is not None:
                campaign.violations.append(differs)
                show(violation_text(differs, requests, plan))
        show_campaign(campaign, is_complete, as_json)
        interruption.finish(f"{campaign.seeds} of {total} seeds")
    raise_findings(campaign, requests, plan)


def show_campaign(campaign: Campaign, is_complete: bool, as_json: bool) -> None:
    summary = campaign.summary() | {"complete": is_complete}
    if as_json:
        print_json(summary)
        return
    click.echo(
        f"{campaign.seeds} seeds, {len(campaign.violations)} violations, trace hash {campaign.trace_hash}, "
        f"{campaign.messages} messages, {summary['messages_per_s']} messages/s, {campaign.wall_s:.1f} s"
    )


def raise_findings(campaign: Campaign, requests: int, plan: str) -> None:
    """Raises ViolationError when something was broken, or too little was tried."""
    if campaign.violations:
        bad = [outcome.seed for outcome in campaign.violations]
        shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        replay = runs.replay_command(campaign.violations[0], requests, plan)
        raise ViolationError(
            f"{len(bad)} violations in {campaign.seeds} seeds ({shown}); look at one with `{replay}`, make it "
            "small with `kimberlite vopr minimize`",
            seeds=bad,
        )
    unreached = campaign.unreached()
    if unreached:
        raise ViolationError(
            f"E4 coverage: in {campaign.seeds} seeds nothing reached {', '.join(unreached)}: the faults are too weak",
            seeds=[],
        )


def violation_text(outcome: runs.Outcome, requests: int, plan: str) -> str:
    lines = [
        f"seed {outcome.seed}: {outcome.violation}",
        f"  replay: {runs.replay_command(outcome, requests, plan)}",
        f"  {len(outcome.faults)} faults; the end of the trace (nanoseconds, what, where):",
    ]
    return "\n".join([*lines, *(f"    {line}" for line in outcome.tail.splitlines())])


@vopr.command("replay", short_help="Run one seed again.")
@click.argument("seed", type=COUNT)
@plan_option
@requests_option
@click.option(
    "--script",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A run as written by `vopr minimize`; its own plan and numbers are used.",
)
@click.option(
    "--trace", type=click.Path(dir_okay=False, path_type=Path), help="Write the full trace there; - prints it."
)
@canary_option
@record_option
@json_option
def replay(
    seed: int,
    plan: str,
    requests: int,
    script: Path | None,
    trace: Path | None,
    canary: str | None,
    record: bool,
    as_json: bool,
) -> None:
    """Run one seed again, exactly: the trace hash is the same every time, in every process.

    Ends with exit code 51 when the run breaks an invariant.
    """
    wanted = runs.Script(seed, requests, name=plan)
    if script is not None:
        wanted = runs.Script.parse(script.read_text(encoding="utf-8"))
        if wanted.seed != seed:
            raise UsageError(f"{script} is a run of seed {wanted.seed}, not {seed}")
    with planted.planted(canary):
        outcome = runs.run(replace(wanted, record=record), full_trace=trace is not None)
    if trace is not None and str(trace) == "-":
        click.echo(outcome.tail)
    elif trace is not None:
        trace.write_text(outcome.tail + "\n", encoding="utf-8")
    elif outcome.check and not as_json:
        click.echo(outcome.tail)
    if as_json:
        row = asdict(outcome)
        del row["tail"]
        print_json(row)
    else:
        click.echo(
            f"seed {seed}, trace hash {outcome.trace_hash}, {outcome.messages} messages, {len(outcome.faults)} faults"
        )
    if outcome.check:
        raise ViolationError(outcome.violation, seeds=[seed])


@vopr.command("minimize", short_help="Make a failing run small.")
@click.argument("seed", type=COUNT)
@plan_option
@requests_option
@canary_option
@click.option("--runs-max", type=POSITIVE, default=minimizer.RUNS_MAX, show_default=True, help="Runs to try at most.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the small run; vopr-SEED.json when not given.",
)
@json_option
def minimize(
    seed: int, plan: str, requests: int, canary: str | None, runs_max: int, output: Path | None, as_json: bool
) -> None:
    """Shrink the faults of a failing run by delta debugging and write the small run to a file.

    The same invariant must break. The file is for `vopr replay SEED --script FILE`.
    """
    with Bar("runs", runs_max) as advance, planted.planted(canary):
        small = minimizer.minimize(
            runs.Script(seed, requests, name=plan), runs_max=runs_max, progress=lambda tried, faults: advance()
        )
    path = output or Path(f"vopr-{seed}.json")
    path.write_text(small.script.to_json(), encoding="utf-8")
    faults = small.script.faults or ()
    if as_json:
        print_json(
            {
                "seed": seed,
                "check": small.outcome.check,
                "faults_before": small.before,
                "faults": [list(fault) for fault in faults],
                "requests": small.script.requests,
                "overrides": dict(small.script.overrides),
                "runs": small.runs,
                "script": str(path),
            }
        )
        return
    click.echo(f"seed {seed}: {small.outcome.violation}")
    click.echo(
        f"{len(faults)} of {small.before} faults are needed, {small.script.requests} requests ({small.runs} runs):"
    )
    for when, kind, argument in faults:
        click.echo(f"  {when:>14} {kind} {argument}")
    click.echo(f"replay: kimberlite vopr replay {seed} --script {path}" + (f" --canary {canary}" if canary else ""))


@vopr.command("canaries", short_help="Check that planted bugs are found.")
@click.option("--seeds-max", type=POSITIVE, default=planted.SEEDS_MAX, show_default=True, help="Seeds to try for each.")
@click.option("--only", metavar="NAME", multiple=True, help="That planted bug only; may be given several times.")
@requests_option
@click.option(
    "--state",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep there what has been tried, and go on from there when the file exists.",
)
@json_option
def canaries(seeds_max: int, only: tuple[str, ...], requests: int, state: Path | None, as_json: bool) -> None:
    """Plant each known bug in turn and run seeds until a check finds it.

    Prints how many seeds it took and which check it was. A seed that fails without the bug as well is
    not counted as finding it. Ends with exit code 52 when one is not found; cut short by Ctrl-C with 130, by
    SIGTERM with 143.

    With --state it can be cut short in any way, and the same command goes on later, with another --seeds-max or
    --only too. A file of other code is refused.
    """
    names = planted.select(only)
    notes = planted.Notes(state, requests) if state is not None else None
    found: list[planted.Hunt] = []
    with Interruption() as interruption, Bar("bugs", len(names)) as advance:
        for hunt in interruption.until(planted.hunt_all(names, seeds_max, requests, notes)):
            found.append(hunt)
            if as_json:
                print_json(asdict(hunt))
            else:
                text = f"{hunt.seeds:>5} seeds  {hunt.check}" if hunt.check else f"not found in {hunt.seeds} seeds"
                click.echo(f"{hunt.name:40} {text}")
            advance()
    missed = [hunt.name for hunt in found if not hunt.check]
    if not as_json:
        click.echo(f"{len(found) - len(missed)} of {len(found)} planted bugs found")
    interruption.finish(f"{len(found)} of {len(names)} planted bugs")
    if missed:
        raise CanaryMissedError(f"planted bugs not found: {', '.join(missed)}", names=missed)


@vopr.group("enumerate", short_help="Every damage of a small disk, instead of luck.")
def enumerate_group() -> None:
    """Every damage of a small disk, one at a time, instead of luck."""


@enumerate_group.command("corruption", short_help="Damage every bit, sector and file.")
@click.option(
    "--every",
    type=POSITIVE,
    default=1,
    show_default=True,
    metavar="N",
    help="Of kinds with more than a hundred images, only every N-th.",
)
@click.option("--jobs", type=JOBS, default=1, show_default=True, metavar="N", help="Processes that share the images.")
@json_option
def enumerate_corruption(every: int, jobs: int, as_json: bool) -> None:
    """Damage every bit, sector and file of small replicas, one at a time; start, read everything, repair.

    Nothing may crash, no start may be refused while enough is left, what is served must be what was acknowledged,
    and everything else must be known to be damaged and repaired with the entries of a peer. Prints how many
    images ended how: repaired from a peer, healed by the start alone, harmless, refused (what is left is no
    replica). Ends with exit code 51 when something was wrong; cut short by Ctrl-C with 130, by SIGTERM with 143, and
    with what was found so far. With --json the totals are one line; complete is false when it was cut short.
    """
    total, begun = corruption.total(every), time.monotonic()
    report = corruption.Report()
    with Interruption() as interruption:
        with Bar("images", total) as advance:
            for part in interruption.until(corruption.enumerate_all(every, jobs)):
                report.merge(part)
                advance(part.images)
        show_corruption(report, time.monotonic() - begun, interruption.signal is None, as_json)
        interruption.finish(f"{report.images} of {total} images")
    if report.wrong:
        raise ViolationError(f"{report.wrong} of {report.images} images went wrong: {report.failures[0]}", seeds=[])


def show_corruption(report: corruption.Report, seconds: float, is_complete: bool, as_json: bool) -> None:
    columns = ("damage", "images", *OUTCOMES)
    rows: list[dict[str, object]] = [
        {"damage": kind, "images": sum(counts.values()), **counts} for kind, counts in report.outcomes.items()
    ]
    totals = {"images": report.images, **{name: report.totals.get(name, 0) for name in OUTCOMES}}
    if as_json:
        print_json(
            {
                **totals,
                "kinds": report.outcomes,
                "failures": report.failures,
                "seconds": round(seconds, 1),
                "complete": is_complete,
            }
        )
        return
    click.echo(table(columns, [*rows, {"damage": "all", **totals}]))
    click.echo(f"{report.images} images, {report.wrong} failures, {seconds:.1f} s")
    for text in report.failures:
        click.echo(text)


@enumerate_group.command("crashes", short_help="Crash at every event of the disks of a run.")
@click.option("--every", type=POSITIVE, default=1, show_default=True, metavar="N", help="Only every N-th image.")
@click.option("--jobs", type=JOBS, default=1, show_default=True, metavar="N", help="Processes that share the images.")
@click.option("--only", metavar="EVENT:VARIANT", help="That image only, as a failure names it.")
@click.option("--ring", is_flag=True, help="Of replicas that acknowledge after one write to a ring (storage.ring).")
@json_option
def enumerate_crashes(every: int, jobs: int, only: str | None, ring: bool, as_json: bool) -> None:
    """Crash at every event of the disks of a scripted run, and start on all that may be left of it.

    The run is a cluster of three: appends, batches, view changes, checkpoints, trims, restarts, a power cut. Of
    every write under way there is left every prefix of 512-byte units, with garbage at the tear, or all but one
    unit, while the others are there or not. No start may be refused, nothing acknowledged may be lost, and appends
    and another start must work after it. Prints how many events and images there were. Ends with exit code 51
    when something was wrong; cut short by Ctrl-C with 130, by SIGTERM with 143, and with what was found so far.
    With --json the numbers are one line; complete is false when it was cut short.
    """
    world = recording.record(ring=ring)
    report = crashes.Report()
    if only is not None:
        image = crash_images.find(world, only)
        if image is None:
            raise UsageError(f"there is no image {only!r}: it is EVENT:VARIANT, as a failure names it")
        if not as_json:
            click.echo(crashes.describe(image))
        report.add(image, crashes.try_one(world, image))
        show_crashes(report, {"images": 1}, as_json)
    else:
        total, begun = crashes.total(world, every), time.monotonic()
        with Interruption() as interruption:
            with Bar("images", total) as advance:
                for part in interruption.until(crashes.enumerate_all(world, every, jobs)):
                    report.merge(part)
                    advance(part.images)
            if not as_json:
                rows: list[dict[str, object]] = [{"event": kind, "images": n} for kind, n in report.kinds.items()]
                click.echo(table(("event", "images"), rows))
            counts = {
                "events": crashes.total_events(world),
                "images": report.images,
                "seconds": round(time.monotonic() - begun, 1),
                "complete": interruption.signal is None,
            }
            show_crashes(report, counts, as_json)
            interruption.finish(f"{report.images} of {total} images")
    if report.wrong:
        raise ViolationError(
            f"{report.wrong} of {report.images} images went wrong: {report.failures[0]}; look at it with "
            f"`kimberlite vopr enumerate crashes {'--ring ' if ring else ''}--only {report.failures[0].split(',')[0]}`",
            seeds=[],
        )


@enumerate_group.command("conversions", short_help="Power fails at every write while old data is converted.")
@click.option("--every", type=POSITIVE, default=1, show_default=True, metavar="N", help="Only every N-th case.")
@click.option("--jobs", type=JOBS, default=1, show_default=True, metavar="N", help="Processes that share the cases.")
@json_option
def enumerate_conversions(every: int, jobs: int, as_json: bool) -> None:
    """Convert data of the first release, and let power fail after every write of one replica.

    Three replicas; all are whole, or one is behind, was put back to an older image of its disk, or never comes again,
    or one is such an image and another one behind. The write is whole or torn, and one copy of the superblock or of
    the file `birth` is damaged besides, or none. The cluster must be born, everything acknowledged be there, and
    appends go on, also after another stop of all. Prints how many cases there were. Ends with exit code 51 when
    something was wrong; cut short by Ctrl-C with 130, by SIGTERM with 143, and with what was found so far. With --json
    the numbers are one line; complete is false when it was cut short.
    """
    total, begun = conversion_crashes.total(every), time.monotonic()
    report = conversion_crashes.Report()
    with Interruption() as interruption:
        with Bar("cases", total) as advance:
            for part in interruption.until(conversion_crashes.enumerate_all(every, jobs)):
                report.merge(part)
                advance(part.cases)
        seconds = round(time.monotonic() - begun, 1)
        if as_json:
            print_json({**asdict(report), "seconds": seconds, "complete": interruption.signal is None})
        else:
            click.echo(table(("before", "cases"), [{"before": kind, "cases": n} for kind, n in report.kinds.items()]))
            click.echo(f"{report.cases} cases, {report.wrong} failures, {seconds} s")
            for text in report.failures:
                click.echo(text)
        interruption.finish(f"{report.cases} of {total} cases")
    if report.wrong:
        raise ViolationError(f"{report.wrong} of {report.cases} cases went wrong: {report.failures[0]}", seeds=[])


def show_crashes(report: crashes.Report, counts: dict[str, int | float], as_json: bool) -> None:
    if as_json:
        print_json({**counts, **asdict(report)})
        return
    found = f"{report.wrong} failures"
    if "events" in counts:
        found = f"{counts['events']} events, {counts['images']} images, {found}, {counts['seconds']} s"
    click.echo(found)
    for text in report.failures:
        click.echo(text)
