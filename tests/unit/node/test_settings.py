"""Every bound and timeout of the core is the user's to set, or is named here as one that is not."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from kimberlite.config import Config, apply_override, from_mapping
from kimberlite.node.settings import core_config
from kimberlite.vsr.config import CoreConfig, Timing

# Of the protocol, and of no use to anybody as a knob.
OWN = {
    "apply_per_round",
    "do_view_change_resend_ns",
    "forfeit_gap",
    "headers_ahead",
    "headers_per_message",
    "ping_ns",
    "repair_bytes",
    "repair_pause_ns",
    "repair_window",
    "room_kept_bytes",
    "timing",  # a record: its fields are looked at
}


def config_with(*settings: str) -> Config:
    document: dict[str, object] = {
        "cluster": {"id": "6c" * 16, "replica": 0, "addresses": ["127.0.0.1:1", "127.0.0.1:2"]}
    }
    for setting in settings:
        apply_override(document, setting)
    return from_mapping(document)


def test_the_defaults_of_both_are_the_same() -> None:
    mine, cores = core_config(config_with()), CoreConfig(cluster=bytes(16), replica=0, replica_count=2)  # type: ignore[arg-type]
    assert replace(mine, cluster=cores.cluster) == cores


@pytest.mark.parametrize(
    "name", sorted({item.name for item in (*fields(CoreConfig), *fields(Timing)) if item.init} - OWN)
)
def test_every_bound_and_timeout_comes_from_the_configuration(name: str) -> None:
    settings = {
        "cluster": "cluster.id=" + "ab" * 16,
        "replica": "cluster.replica=1",
        "replica_count": 'cluster.addresses=["127.0.0.1:1"]',
    }
    setting = f"timing.{name.removesuffix('_ns')}_ms" if name.endswith("_ns") else f"limits.{name}"
    usual = core_config(config_with())
    if name in settings:
        changed = core_config(config_with(settings[name]))
    else:
        section, _, key = setting.partition(".")
        value = getattr(getattr(config_with(), section), key)
        changed = core_config(config_with(f"{setting}={value + 1 if value else 64 << 20}"))
    differ = [old != new for old, new in ((usual, changed), (usual.timing, changed.timing)) if hasattr(old, name)]
    assert differ == [True]


def test_a_bound_on_the_backlog_takes_the_place_of_what_a_pipeline_takes() -> None:
    assert core_config(config_with()).held_bytes_max == 2 * core_config(config_with()).pipeline_bytes
    assert core_config(config_with("limits.backlog_bytes=8388608")).held_bytes_max == 8 << 20
