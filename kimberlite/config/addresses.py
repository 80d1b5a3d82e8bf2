"""Addresses and identities, as they are written in node.toml and on command lines.

May import: errors, types.
"""

from __future__ import annotations

import ipaddress

from kimberlite.errors import ConfigError
from kimberlite.types import ZERO16, ClusterId

PORT_MAX = 65535


def parse_address(text: str, port_min: int = 1) -> tuple[str, int]:
    """Split `host:port` or `[ipv6]:port`. Raises ConfigError naming what is wrong."""
    host, colon, port_text = text.rpartition(":")
    if not colon or not host:
        raise ConfigError(f"address {text!r} is not host:port", address=text)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ConfigError(f"address {text!r}: {host!r} is no IPv6 address", address=text) from None
    elif ":" in host:
        raise ConfigError(f"address {text!r}: write an IPv6 address in brackets, [::1]:7100", address=text)
    is_number = port_text.isascii() and port_text.isdigit() and len(port_text) < 10
    if not is_number or not port_min <= int(port_text) <= PORT_MAX:
        raise ConfigError(f"address {text!r}: the port must be a number from {port_min} to {PORT_MAX}", address=text)
    return host, int(port_text)


def parse_host(text: str) -> str:
    """A host name or address alone; the brackets of an IPv6 address may be there. Raises ConfigError."""
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in host or host != text:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ConfigError(f"{text!r} is no host name and no address; it has no port", address=text) from None
    return host


def parse_addresses(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of addresses, checking each.

    `host:7100,7101,7102` is short for the same host with several ports.
    """
    found: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if not part:
            raise ConfigError(f"addresses {text!r}: there is an empty one in the list", addresses=text)
        if part.isdigit() and found:
            part = f"{found[-1].rpartition(':')[0]}:{part}"
        parse_address(part)
        found.append(part)
    return tuple(found)


def parse_cluster_id(text: str) -> ClusterId:
    """16 bytes from 32 hexadecimal digits; the dashes of a UUID are allowed."""
    try:
        cluster = bytes.fromhex(text.replace("-", ""))
    except ValueError:
        cluster = b""
    if len(cluster) != 16 or cluster == ZERO16:
        raise ConfigError(
            f"cluster id {text!r} must be 32 hexadecimal digits, not all zero; a UUID (uuidgen) will do", cluster=text
        )
    return cluster
