"""Configuration: what is accepted, what is refused and how, and that the tree documents itself."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimberlite import config as configuration
from kimberlite.config import (
    SECTION_TYPES,
    Config,
    apply_override,
    check_value,
    from_mapping,
    kind_of,
    knobs_of,
    load,
    parse,
    parse_address,
    parse_addresses,
    parse_cluster_id,
)
from kimberlite.errors import ConfigError, DataMissingError

CLUSTER_ID = "5f0c7b9a3f6e4d6ab2c1d0e9f8a7b6c5"
MINIMAL = f"""
[cluster]
id = "{CLUSTER_ID}"
replica = 1
addresses = ["127.0.0.1:7100", "127.0.0.1:7101", "127.0.0.1:7102"]
"""
KNOBS = [
    pytest.param(name, key, knob, id=f"{name}.{key}")
    for name, section in SECTION_TYPES.items()
    for key, knob in knobs_of(section)
]


def minimal(*overrides: str) -> Config:
    return parse(MINIMAL, "node.toml", overrides)


def test_minimal_file_gives_the_defaults() -> None:
    config = minimal()
    assert config.cluster_id == bytes.fromhex(CLUSTER_ID)
    assert config.replica_count == 3
    assert config.client_address == ("127.0.0.1", 7101)
    assert config.peer_address == ("127.0.0.1", 8101)
    assert config.peer_addresses == (("127.0.0.1", 8100), ("127.0.0.1", 8101), ("127.0.0.1", 8102))
    assert config.telemetry.listen == "127.0.0.1:9471"
    assert config.limits.frame_bytes_max == 4 << 20


def test_bind_replaces_the_host_to_listen_on_and_no_other() -> None:
    config = minimal('cluster.bind="0.0.0.0"')
    assert config.client_address == ("0.0.0.0", 7101)
    assert config.peer_address == ("0.0.0.0", 8101)
    assert config.peer_addresses[1] == ("127.0.0.1", 8101)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("::", "::"),
        ("[::]", "::"),
        ("[fe80::1%eth0]", "fe80::1%eth0"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("a.b", "a.b"),
    ],
)
def test_bind_takes_brackets_and_zones(text: str, host: str) -> None:
    assert minimal(f'cluster.bind="{text}"').client_address == (host, 7101)


@pytest.mark.parametrize("text", ["1.2.3.4:7100", "[::1]:7100", "[a]", "[::1", "::x"])
def test_bind_is_no_address_with_a_port(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.bind: .* is no host name and no address"):
        minimal(f'cluster.bind="{text}"')


def test_addresses_have_brackets_and_zones() -> None:
    assert configuration.parse_address("[fe80::1%eth0]:7100") == ("fe80::1%eth0", 7100)
    with pytest.raises(ConfigError, match="in brackets"):
        configuration.parse_address("fe80::1%eth0:7100")


def test_a_tree_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        minimal().timing.heartbeat_ms = 1  # type: ignore[misc]


@pytest.mark.parametrize(("name", "key", "knob"), KNOBS)
def test_every_knob_is_documented(name: str, key: str, knob: configuration.Knob) -> None:
    kind = kind_of(SECTION_TYPES[name], key)
    assert knob.help.endswith(".")
    if kind == "int" and key != "replica":
        assert knob.low is not None and knob.high is not None and knob.low < knob.high
        assert knob.too_low and knob.too_high
        assert knob.unit or key == "peer_port_offset"
    suffixes = {"_ms": "ms", "_us": "us", "bytes": "bytes", "bytes_max": "bytes"}
    for suffix, unit in suffixes.items():
        if key.endswith(suffix):
            assert knob.unit == unit


@pytest.mark.parametrize(("name", "key", "knob"), KNOBS)
def test_default_is_within_its_own_bounds(name: str, key: str, knob: configuration.Knob) -> None:
    item = next(item for item in fields(SECTION_TYPES[name]) if item.name == key)
    if configuration.has_default(item):
        check_value(key, item.default, kind_of(SECTION_TYPES[name], key), knob)


@pytest.mark.parametrize(("name", "key", "knob"), KNOBS)
def test_wrong_type_is_refused(name: str, key: str, knob: configuration.Knob) -> None:
    kind = kind_of(SECTION_TYPES[name], key)
    for value in ("7", 7, 7.5, True, ("a",), (1,), None, {}):
        fits = {
            "int": type(value) is int,
            "str": type(value) is str,
            "bool": type(value) is bool,
            "list": value == ("a",),
        }[kind]
        if fits:
            continue
        with pytest.raises(ConfigError, match=f"{name}.{key} is .* must be"):
            check_value(f"{name}.{key}", value, kind, knob)


@pytest.mark.parametrize(("name", "key", "knob"), [item for item in KNOBS if item.values[2].low is not None])
def test_just_outside_of_the_bounds_is_refused(name: str, key: str, knob: configuration.Knob) -> None:
    assert knob.low is not None and knob.high is not None
    for value in (knob.low - 1, knob.high + 1):
        with pytest.raises(ConfigError) as caught:
            minimal(f"{name}.{key}={value}")
        assert caught.value.key == f"{name}.{key}"
        assert str(value) in str(caught.value)
        assert f"from {knob.low} to {knob.high}" in str(caught.value)
    for value in (knob.low, knob.high):
        check_value(key, value, "int", knob)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("timing.hartbeat_ms=50", ["unknown key timing.hartbeat_ms", "did you mean timing.heartbeat_ms?"]),
        ("timming.heartbeat_ms=50", ["unknown section timming", "did you mean timing?"]),
        ("limits.zzz=1", ["unknown key limits.zzz"]),
        ('timing.heartbeat_ms="50"', ["timing.heartbeat_ms is '50'", "a whole number"]),
        ("timing.heartbeat_ms=50.5", ["50.5", "a whole number"]),
        ("timing.heartbeat_ms=true", ["True", "a whole number"]),
        ("storage.unsafe=1", ["storage.unsafe is 1", "true or false"]),
        ("storage.mode=sometimes", ["one of auto, direct, buffered"]),
        ("storage.segment_bytes=8388609", ["a multiple of 4096"]),
        ("cluster.replica=3", ["cluster.replica is 3", "3 addresses", "last replica is 2"]),
        ("cluster.id=abc", ["32 hexadecimal digits"]),
        (f"cluster.id={'0' * 32}", ["not all zero"]),
        ("cluster.addresses=[]", ["0 addresses", "from 1 to 6"]),
        ('cluster.addresses=["a:1", "a:1"]', ["a:1"]),
        ('cluster.addresses=["a:7100", "a:8100"]', ["a:8100 is both", "peer port of a:7100"]),
        ('cluster.addresses=["a:7100", "b"]', ["'b' is not host:port"]),
        ('cluster.addresses=["a:7100", 7]', ["a list of strings"]),
        ('cluster.addresses=["a:7100", "b:65000"]', ["peer port of b:65000 would be 66000"]),
        ("timing.heartbeat_ms=200", ["timing.suspect_min_ms is 300", "at least 400", "2 times timing.heartbeat_ms"]),
        ("timing.suspect_max_ms=299", ["timing.suspect_max_ms is 299", "timing.suspect_min_ms, 300"]),
        ("timing.vote_window_ms=150", ["timing.vote_resend_ms"]),
        ("timing.view_change_max_ms=100", ["timing.view_change_ms"]),
        ("limits.event_bytes_max=2097152", ["limits.request_bytes_max is 2097152", "limits.event_bytes_max"]),
        ("limits.request_bytes_max=4194304", ["limits.frame_bytes_max is 4194304", "limits.request_bytes_max"]),
        ("limits.prepare_bytes_max=4194304", ["limits.frame_bytes_max", "limits.prepare_bytes_max"]),
        ("limits.queue_bytes_max=1048576", ["limits.queue_bytes_max", "limits.request_bytes_max"]),
        ("limits.backlog_bytes=2162687", ["limits.backlog_bytes is 2162687", "at least 2162688", "or 0"]),
        ("limits.backlog_bytes=2162688", []),
        ("limits.backlog_bytes=-1", ["limits.backlog_bytes is -1 bytes", "from 0 to"]),
        ("limits.repairs_per_peer_max=257", ["limits.repairs_max is 256"]),
        ("limits.frame_bytes_max=8388608", []),
        ("timing=3", ["'timing=3' is not section.key=value"]),
        ("telemetry.units=seconds", ["one of ms, base"]),
    ],
)
def test_refusals_name_the_key_and_what_is_allowed(override: str, words: list[str]) -> None:
    if not words:
        minimal(override)
        return
    with pytest.raises(ConfigError) as caught:
        minimal(override)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)


def test_a_missing_key_is_named_with_an_example() -> None:
    with pytest.raises(ConfigError, match=r"node.toml: cluster.replica is missing; for example replica = 0"):
        parse(MINIMAL.replace("replica = 1\n", ""), "node.toml")


def test_no_section_at_all() -> None:
    with pytest.raises(ConfigError, match=r"cluster.id is missing"):
        parse("")


def test_a_section_that_is_a_value() -> None:
    with pytest.raises(ConfigError, match=r"timing is 3 but must be a section"):
        parse("timing = 3\n" + MINIMAL)


def test_broken_toml() -> None:
    with pytest.raises(ConfigError, match=r"node\.toml is no valid TOML"):
        parse("[cluster", "node.toml")


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    with pytest.raises(DataMissingError, match="kimberlite format"):
        load(path)
    path.write_text(MINIMAL)
    assert load(path) == minimal()
    assert load(path, ("timing.heartbeat_ms=40",)).timing.heartbeat_ms == 40
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(path)


@st.composite
def configurations(draw: st.DrawFn) -> Config:
    """Valid configurations with a few values of their own."""
    document: dict[str, object] = {
        "cluster": {
            "id": draw(st.binary(min_size=16, max_size=16).filter(any)).hex(),
            "replica": 0,
            "addresses": draw(
                st.lists(
                    st.from_regex(r"[a-z]{1,8}\.x:71[0-9]{2}", fullmatch=True), min_size=1, max_size=6, unique=True
                )
            ),
            "bind": draw(st.text(st.characters(codec="utf-8", exclude_characters=":[]"), max_size=20)),
        },
        "timing": {"heartbeat_ms": draw(st.integers(5, 150))},
        "storage": {"unsafe": draw(st.booleans()), "mode": draw(st.sampled_from(["auto", "direct", "buffered"]))},
        "telemetry": {
            "listen": draw(st.text(st.characters(codec="utf-8", exclude_characters=":[]"), min_size=1)) + ":9471"
        },
    }
    return from_mapping(document)


@given(configurations())
def test_to_toml_and_back(config: Config) -> None:
    text = config.to_toml()
    assert parse(text) == config
    assert text.endswith("\n")


def test_to_toml_leaves_defaults_out() -> None:
    text = minimal("timing.heartbeat_ms=40").to_toml()
    assert "heartbeat_ms = 40" in text
    assert "suspect_min_ms" not in text
    assert "[limits]" not in text


def test_apply_override_readstoml_values_and_bare_words() -> None:
    document: dict[str, object] = {}
    for item in ("a.b=1", "a.c=true", 'a.d="x y"', "a.e=plain", 'a.f=["x", "y"]', "a.g="):
        apply_override(document, item)
    assert document == {"a": {"b": 1, "c": True, "d": "x y", "e": "plain", "f": ["x", "y"], "g": ""}}


@pytest.mark.parametrize(
    ("text", "pair"),
    [("h:1", ("h", 1)), ("127.0.0.1:65535", ("127.0.0.1", 65535)), ("[::1]:7100", ("::1", 7100))],
)
def test_parse_address(text: str, pair: tuple[str, int]) -> None:
    assert parse_address(text) == pair


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":1",
        "host:",
        "host:0",
        "host:65536",
        "host:-1",
        "host:x",
        "::1:7100",
        "[::1:7100",
        "[x]:1",
        "h:\u0661",
    ],
)
def test_parse_address_refuses(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)


def test_telemetry_address() -> None:
    assert minimal('telemetry.listen="0.0.0.0:0"').telemetry_address == ("0.0.0.0", 0)
    for wrong in ("9471", "h:65536", "[::1:1"):
        with pytest.raises(ConfigError, match=r"telemetry\.listen"):
            minimal(f'telemetry.listen="{wrong}"')


def test_telemetry_has_an_address_of_its_own() -> None:
    address = minimal().cluster.addresses[1]
    host, _, port = address.rpartition(":")
    for taken in (address, f"{host}:{int(port) + 1000}"):
        with pytest.raises(ConfigError, match="which is this replica's"):
            minimal(f'telemetry.listen="{taken}"')


def test_parse_addresses() -> None:
    assert parse_addresses("a:1, b:2") == ("a:1", "b:2")
    assert parse_addresses("127.0.0.1:7100,7101,7102") == ("127.0.0.1:7100", "127.0.0.1:7101", "127.0.0.1:7102")
    assert parse_addresses("[::1]:7100,7101") == ("[::1]:7100", "[::1]:7101")
    for wrong in ("", "a:1,", "7100", "a:1,,b:2", "a:1,0"):
        with pytest.raises(ConfigError):
            parse_addresses(wrong)


def test_parse_cluster_id() -> None:
    plain = parse_cluster_id(CLUSTER_ID)
    assert parse_cluster_id("5F0C7B9A-3F6E-4D6A-B2C1-D0E9F8A7B6C5") == plain
    for wrong in ("", "00" * 16, "5f" * 15, "5f" * 17, "zz" * 16):
        with pytest.raises(ConfigError):
            parse_cluster_id(wrong)


# Sections inside of another one


def test_where_metrics_are_sent() -> None:
    document = {
        "cluster": {"id": "ab" * 16, "replica": 0, "addresses": ["127.0.0.1:7100"]},
        "telemetry": {
            "units": "base",
            "otlp": {"endpoint": "http://collector:4318", "interval_s": 30},
            "statsd": {"address": "[::1]:8125", "dialect": "dogstatsd"},
        },
    }
    config = from_mapping(document)
    assert (config.telemetry.units, config.telemetry_otlp.interval_s) == ("base", 30)
    assert config.statsd_address == ("::1", 8125)
    text = config.to_toml()
    assert "[telemetry.otlp]" in text and parse(text) == config
    changed = parse(text, overrides=("telemetry.otlp.temporality=delta", "telemetry.statsd.prefix=a.b"))
    assert (changed.telemetry_otlp.temporality, changed.telemetry_statsd.prefix) == ("delta", "a.b")
    assert changed.telemetry_otlp.endpoint == config.telemetry_otlp.endpoint


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("telemetry.otlp.endpoint=collector:4318", "must be a URL"),
        ("telemetry.otlp.endpiont=x", "did you mean telemetry.otlp.endpoint"),
        ("telemetry.otpl.endpoint=x", "unknown key telemetry.otpl"),
        ("telemetry.otlp=1", "telemetry.otlp is 1 but must be a section"),
        ("telemetry.statsd.address=nowhere", "telemetry.statsd.address: "),
        ("telemetry.statsd.prefix=a:b", "letters, digits, dots"),
        ("telemetry.statsd.dialect=graphite", "one of statsd, dogstatsd"),
        ("telemetry.otlp.interval_s=0", "from 1 to 3600"),
    ],
)
def test_where_metrics_can_not_be_sent(override: str, message: str) -> None:
    text = f'[cluster]\nid = "{"ab" * 16}"\nreplica = 0\naddresses = ["127.0.0.1:7100"]\n'
    with pytest.raises(ConfigError, match=message):
        parse(text, overrides=(override,))
