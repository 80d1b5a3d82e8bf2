"""Another log in the place of the own one: whether it may be, and what is kept.

Imports errors, types and vsr only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kimberlite.errors import FrameError, invariant
from kimberlite.types import FrameReason, Header
from kimberlite.vsr import bounds, repair
from kimberlite.vsr.codec import SUFFIX_OPS_MAX, follows

if TYPE_CHECKING:
    from kimberlite.vsr.state import State


def agrees(s: State, suffix: Sequence[Header], canonical: int) -> bool:
    """Whether a log that ends with `suffix` can hold all of this one up to `canonical`, and what is committed here."""
    log = s.log
    settled = max(canonical, log.committed)
    if suffix[-1].op < log.committed:
        return False
    for header in suffix:
        own = log.headers.get(header.op)
        if header.op <= settled and own is not None and own.checksum != header.checksum:
            return False
    below = log.headers.get(suffix[0].op - 1) if suffix[0].op - 1 <= settled else None
    return below is None or follows(below, suffix[0])


def check_suffix(s: State, header: Header, suffix: Sequence[Header]) -> None:
    """That a start_view holds the end of the log that it speaks of, from a committed op on. Raises FrameError."""
    if suffix[-1].op != header.op or len(suffix) > SUFFIX_OPS_MAX or suffix[0].op > header.commit:
        raise FrameError(
            f"ops {suffix[0].op} to {suffix[-1].op} are not the end of a log of {header.op} ops of which "
            f"{header.commit} are committed",
            reason=FrameReason.BAD_SIZE,
        )
    if header.log_view != header.view:
        raise FrameError(f"the log of view {header.log_view} starts none", reason=FrameReason.BAD_SIZE)
    for known in suffix:
        bounds.check_header(s, known, header.view)


def is_wanted(s: State, view: int) -> bool:
    """Whether a log of that view is installed when it comes: only one newer than ours. The log of a view only grows,
    so a start_view of the log_view we already have can only be a late one, shorter than what we acknowledged."""
    return view > s.view or s.log_view < view


def lacks_entries(s: State, suffix: tuple[Header, ...]) -> bool:
    """Whether entries of the chosen log would have to be appended here."""
    known = (s.log.headers.get(header.op) for header in suffix)
    held = all(
        own is not None and own.checksum == header.checksum and s.log.holds(header.op)
        for own, header in zip(known, suffix, strict=True)
    )
    return not held


def install(s: State, suffix: tuple[Header, ...], canonical: int) -> None:
    """Make the log of this view ours, and persist that before anything is said of it."""
    invariant(
        suffix[-1].op >= s.log.committed,
        "nothing that was committed is ever dropped",
        head=suffix[-1].op,
        committed=s.log.committed,
        view=s.view,
    )
    truncate_to = s.log.install(suffix, max(canonical, s.log.committed))
    repair.on_installed(s)
    s.note_commit()
    s.execution.emitted = s.execution.applied
    s.log_view = s.view
    s.conflict = None
    doubt = max((op for op in s.log.faulty if op > truncate_to), default=0)
    # What is committed and missing here may have another log's entry in its place: no part of the base.
    base = min(s.log.committed, truncate_to, max(s.log.durable, s.log.rooted))
    s.promised = replace(s.promised, base=base, suffix_head=suffix[-1].op, suffix=suffix, doubt=doubt)
    s.persist_view(truncate_to=truncate_to)
