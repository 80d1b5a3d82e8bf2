"""What is declared of a key of node.toml, and what a value is held against.

May import: errors.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar, cast

from kimberlite.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Knob:
    """What is known of one key besides its name and default.

    unit: of the value, empty for a name or a switch. low, high: inclusive bounds of
    an integer. choices: the allowed words. help: what it does. too_low, too_high: what
    goes wrong towards either extreme. example: shown for keys without a default.
    """

    help: str
    unit: str = ""
    low: int | None = None
    high: int | None = None
    choices: tuple[str, ...] = ()
    too_low: str = ""
    too_high: str = ""
    multiple_of: int = 1
    example: str = ""


def knob(default: T, help: str, **details: object) -> T:
    """Declare a key with a default. Typed as its default so that dataclasses read naturally."""
    metadata = {"knob": Knob(help, **details)}  # type: ignore[arg-type]
    return field(default=default, metadata=metadata)


def required(kind: type[T], help: str, **details: object) -> T:
    """Declare a key that must be given."""
    return cast(T, field(metadata={"knob": Knob(help, **details)}))  # type: ignore[arg-type]


def knobs_of(section: type[Any]) -> list[tuple[str, Knob]]:
    """The keys of a section in their order of declaration."""
    return [(item.name, item.metadata["knob"]) for item in fields(section)]


def kind_of(section: type[Any], key: str) -> str:
    """`int`, `str`, `bool` or `list`: the TOML type of a key."""
    item: Field[object] = next(item for item in fields(section) if item.name == key)
    return "list" if str(item.type).startswith("tuple") else str(item.type)


KIND_WORDS = {"int": "a whole number", "str": "a string", "bool": "true or false", "list": "a list of strings"}


def check_value(key: str, value: object, kind: str, knob: Knob) -> None:
    """Raise ConfigError unless `value` has the type and is within the bounds of the key."""

    def refuse(wanted: str) -> ConfigError:
        shown = f"{knob.unit} " if knob.unit and isinstance(value, int) else ""
        return ConfigError(f"{key} is {value!r} {shown}but must be {wanted}".replace("  ", " "), key=key, value=value)

    right = {
        "int": isinstance(value, int) and not isinstance(value, bool),
        "str": isinstance(value, str),
        "bool": isinstance(value, bool),
        "list": isinstance(value, tuple) and all(isinstance(item, str) for item in value),
    }[kind]
    if not right:
        raise refuse(KIND_WORDS[kind])
    if knob.choices and value not in knob.choices:
        raise refuse("one of " + ", ".join(knob.choices))
    if isinstance(value, int) and not isinstance(value, bool):
        if (knob.low is not None and value < knob.low) or (knob.high is not None and value > knob.high):
            raise refuse(f"from {knob.low} to {knob.high}")
        if value % knob.multiple_of:
            raise refuse(f"a multiple of {knob.multiple_of}")


def has_default(item: Field[object]) -> bool:
    return item.default is not MISSING
