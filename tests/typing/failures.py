"""What type checkers know of errors. Checked by `make lint`, never run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import assert_type

from kimberlite import errors


def attributes(error: BaseException) -> None:
    match error:
        case errors.PositionError():
            assert_type(error.position, int)
            assert_type(error.first, int | None)
            assert_type(error.end, int | None)
        case errors.UnavailableError():
            assert_type(error.addresses, Sequence[str])
            assert_type(error.problems, Mapping[str, str] | None)
        case errors.BusyError():
            assert_type(error.waiting, int | None)
            assert_type(error.reason, int | None)
        case errors.EventTooLargeError():
            assert_type(error.limit, int)
        case errors.OutcomeUnknownError():
            assert_type(error.exit_code, int)
        case errors.KimberliteError():
            assert_type(error.details, dict[str, object])
            print(error.position)  # type: ignore[attr-defined]
        case _:
            raise error


def is_timeout(error: errors.OutcomeUnknownError) -> TimeoutError:
    return error
