"""The record that a configuration makes, and who a replica is when it starts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kimberlite.config import Config, from_mapping
from kimberlite.errors import ConfigError, RecordError
from kimberlite.node import identity as identities
from kimberlite.types import ZERO16, Birth, Heard, Identity
from kimberlite.vsr import record as records
from kimberlite.vsr.record import Address, Role

ORIGIN = b"o" * 16


def config(replica: int = 0, count: int = 3, **sections: dict[str, object]) -> Config:
    addresses = [f"node-{index}.example:710{index}" for index in range(count)]
    return from_mapping({"cluster": {"id": "c1" * 16, "replica": replica, "addresses": addresses}, **sections})


def name(slot: int) -> bytes:
    return bytes([slot + 1]) * 16


def test_a_draft_has_what_all_replicas_must_agree_on() -> None:
    draft = identities.draft_of(config(limits={"sessions_max": 77}, checkpoint={"ops": 99}), ORIGIN)
    assert draft.settings.sessions_max == 77
    assert draft.settings.checkpoint_ops == 99
    assert draft.settings.frame_bytes_max == 4 << 20
    assert draft.members[1].peer == Address("node-1.example", 8101)
    assert draft.members[1].client == Address("node-1.example", 7101)
    assert draft.origin == ORIGIN
    assert not draft.is_bound
    # Not where it listens, nor how long it waits.
    other = config(1, timing={"heartbeat_ms": 7})
    assert identities.draft_of(other, ORIGIN) == identities.draft_of(config(), ORIGIN)


def test_shared_values_are_named_by_their_keys() -> None:
    values = identities.shared_values(config(checkpoint={"ops": 99}))
    assert values["checkpoint.ops"] == 99
    assert set(values) == {
        "limits.sessions_max",
        "limits.event_bytes_max",
        "limits.request_bytes_max",
        "limits.prepare_bytes_max",
        "limits.frame_bytes_max",
        "checkpoint.ops",
        "checkpoint.bytes",
    }


def test_data_without_an_identity_gets_one_with_its_first_start() -> None:
    first = identities.at_start(config(1), Identity(), name(1))
    assert (first.birth, first.slot, first.incarnation, first.digest) == (Birth.UNBORN, 1, name(1), ZERO16)
    draft = records.decode(first.record)
    assert draft.origin == ZERO16
    assert [member.incarnation for member in draft.members] == [ZERO16, name(1), ZERO16]
    assert identities.at_start(config(1), first, b"x" * 16) == first


def test_what_is_bound_stays_and_a_corrected_configuration_counts() -> None:
    first = identities.at_start(config(1), Identity(life=5, heard=(Heard(1, 2, 3),) * 16), name(1))
    draft = records.decode(first.record)
    for slot in (0, 2):
        draft = records.bind(draft, slot, name(slot))
    bound = replace(first, birth=Birth.BOUND, record=records.encode(draft), digest=records.birth_digest(draft))
    assert identities.at_start(config(1), bound, b"x" * 16) == bound
    corrected = identities.at_start(config(1, limits={"sessions_max": 7}), bound, b"x" * 16)
    assert corrected.birth is Birth.BOUND
    assert corrected.digest != bound.digest
    assert (corrected.life, corrected.heard) == (bound.life, bound.heard)
    found = records.decode(corrected.record)
    assert found.settings.sessions_max == 7
    assert [member.incarnation for member in found.members] == [name(0), name(1), name(2)]


def test_who_was_left_out_stays_left_out() -> None:
    first = identities.at_start(config(1), Identity(), name(1))
    without = records.leave_out(records.decode(first.record), 2)
    again = identities.unborn(without, 1, b"n" * 16, first)
    assert again.birth is Birth.UNBORN
    started = identities.at_start(config(1), again, b"x" * 16)
    assert records.decode(started.record).members[2].role is Role.LOST
    bound = identities.unborn(records.bind(records.decode(started.record), 0, name(0)), 1, b"n" * 16, started)
    assert bound.birth is Birth.BOUND


def test_a_lone_replica_is_bound_at_once() -> None:
    alone = identities.at_start(config(0, 1), Identity(), name(0))
    assert alone.birth is Birth.BOUND
    assert alone.digest == records.birth_digest(records.decode(alone.record))


def test_who_is_formed_is_who_it_is_whatever_the_configuration_says() -> None:
    drawn = iter([name(0), name(1), name(2)])
    all_three = identities.all_born(config(), ORIGIN, lambda: next(drawn))
    assert [one.incarnation for one in all_three] == [name(0), name(1), name(2)]
    assert len({one.record for one in all_three}) == 1
    assert all(one.birth is Birth.FORMED and one.slot == slot for slot, one in enumerate(all_three))
    record = records.decode(all_three[0].record)
    assert (record.epoch, record.origin, record.birth) == (1, ORIGIN, all_three[0].digest)
    assert identities.at_start(config(1, limits={"sessions_max": 7}), all_three[1], b"x" * 16) == all_three[1]


def test_the_settings_of_the_record_count() -> None:
    own = identities.all_born(config(limits={"sessions_max": 7}), ORIGIN, iter([name(0), name(1), name(2)]).__next__)[0]
    kept, none = identities.with_settings(config(limits={"sessions_max": 7}), own)
    assert (kept, none) == (config(limits={"sessions_max": 7}), [])
    found, differences = identities.with_settings(config(checkpoint={"ops": 50}), own)
    assert (found.limits.sessions_max, found.checkpoint.ops) == (7, 4096)
    assert len(differences) == 2
    assert "limits.sessions_max is 1024 here, and 7" in differences[0]
    assert identities.with_settings(config(), Identity()) == (config(), [])
    large = identities.all_born(
        config(limits={"frame_bytes_max": 32 << 20}), ORIGIN, iter(map(name, range(3))).__next__
    )
    with pytest.raises(ConfigError, match="segment_bytes"):
        identities.with_settings(config(storage={"segment_bytes": 8 << 20}), large[0])


def test_host_names_that_have_no_room_are_refused_before_anything_is_made() -> None:
    addresses = [f"{'x' * 250}{index}:7100" for index in range(6)]
    long = from_mapping({"cluster": {"id": "c1" * 16, "replica": 0, "addresses": addresses}})
    assert len(records.encode(identities.draft_of(long, ORIGIN))) <= records.RECORD_MAX
    with pytest.raises(RecordError):
        identities.draft_of(
            from_mapping({"cluster": {"id": "c1" * 16, "replica": 0, "addresses": ["x" * 256 + ":7100"]}}), ORIGIN
        )
