"""Who a replica is when it starts, and the record that its configuration would make: see vsr.record and types.Identity.

A record holds what all replicas must agree on. It is made of the configuration before the birth of a cluster; from then
on the record is what counts, and what node.toml says otherwise of these settings has no effect.

May import: config, types, vsr.record. Pure: incarnations are drawn by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

from kimberlite.config import Config, parse_address
from kimberlite.types import ZERO16, Birth, Checksum, Identity
from kimberlite.vsr import record as records
from kimberlite.vsr.record import Address, Record, Settings

# Settings of the record, by their key in the configuration.
SHARED = {
    "sessions_max": "limits",
    "event_bytes_max": "limits",
    "request_bytes_max": "limits",
    "prepare_bytes_max": "limits",
    "frame_bytes_max": "limits",
    "checkpoint_ops": "checkpoint",
    "checkpoint_bytes": "checkpoint",
}


def draft_of(config: Config, origin: Checksum) -> Record:
    """The draft that this configuration makes; nobody is bound in it. Raises RecordError: the host names are too
    long."""
    values = {name: getattr(getattr(config, section), _key(name, section)) for name, section in SHARED.items()}
    clients = (Address(*parse_address(address)) for address in config.cluster.addresses)
    peers = (Address(*address) for address in config.peer_addresses)
    draft = records.draft(Settings(**values), origin, list(zip(peers, clients, strict=True)))
    records.encode(draft)
    return draft


def _key(name: str, section: str) -> str:
    return name.removeprefix(f"{section}_")


def at_start(config: Config, known: Identity, incarnation: bytes) -> Identity:
    """Who a replica is whose disk has the identity `known`. incarnation: a new one, for data that has none yet.

    Before its birth what it is bound to stays, and all else is taken from the configuration anew, so that a typing
    error can be corrected. Origin of data that never had an identity: ZERO16. Raises RecordError.
    """
    if known.birth in (Birth.FORMED, Birth.JOINING):
        return known
    before = records.decode(known.record) if known.record else None
    own = known.incarnation if known.incarnation != ZERO16 else incarnation
    draft = draft_of(config, before.origin if before is not None else ZERO16)
    if before is not None:
        draft = records.carried_over(draft, before)
    return unborn(draft, config.cluster.replica, own, known)


def unborn(draft: Record, slot: int, incarnation: bytes, known: Identity = Identity()) -> Identity:  # noqa: B008
    """Who has that draft: bound when everybody in it is. known: from which life and floors stay."""
    draft = records.bind(draft, slot, incarnation)
    return replace(
        known,
        birth=Birth.BOUND if draft.is_bound else Birth.UNBORN,
        slot=slot,
        incarnation=incarnation,
        digest=records.birth_digest(draft) if draft.is_bound else ZERO16,
        record=records.encode(draft),
    )


def all_born(config: Config, origin: Checksum, draw: Callable[[], bytes]) -> list[Identity]:
    """The identities of all replicas of a new cluster, by their slots, for whoever formats them all: members from the
    beginning. config: of any of them."""
    draft = draft_of(config, origin)
    for slot in range(config.replica_count):
        draft = records.bind(draft, slot, draw())
    return formed(draft)


def formed(draft: Record) -> list[Identity]:
    """The identities of the members of a bound draft, once all are."""
    record = records.born(draft)
    encoded = records.encode(record)
    return [
        Identity(Birth.FORMED, member.slot, member.incarnation, record.birth, record=encoded)
        for member in record.members
    ]


def with_settings(config: Config, identity: Identity) -> tuple[Config, list[str]]:
    """The configuration with the settings of the cluster's record, and a sentence for each that it says otherwise.
    Raises ConfigError: they do not fit the rest of the configuration."""
    if identity.birth is not Birth.FORMED:
        return config, []
    settings = records.decode(identity.record).settings
    changes: dict[str, dict[str, int]] = {}
    differences = []
    for name, section in SHARED.items():
        key, value = _key(name, section), getattr(settings, name)
        own = getattr(getattr(config, section), key)
        if own != value:
            changes.setdefault(section, {})[key] = value
            differences.append(
                f"{section}.{key} is {own} here, and {value} in the record of the cluster: {value} counts"
            )
    sections = {section: replace(getattr(config, section), **values) for section, values in changes.items()}
    return replace(config, **sections) if sections else config, differences


def shared_values(config: Config) -> dict[str, int]:
    """What must be equal on all replicas, by its key in node.toml."""
    settings = draft_of(config, ZERO16).settings
    return {
        f"{SHARED[field.name]}.{_key(field.name, SHARED[field.name])}": getattr(settings, field.name)
        for field in fields(Settings)
    }
