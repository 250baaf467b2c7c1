# SPDX-License-Identifier: Apache-2.0
"""Where a request may go: addresses taken apart, and those that a registry may not send us to."""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urljoin, urlsplit

from msgspec import Struct

from lamella.errors import Denied, InvalidInput

_PORTS: Final = {"http": 80, "https": 443}

_METADATA: Final = frozenset(
    {
        ipaddress.ip_address("fd00:ec2::254"),
        ipaddress.ip_address("fd20:ce::254"),
        ipaddress.ip_address("100.100.100.200"),
        ipaddress.ip_address("168.63.129.16"),
    }
)
"""Where clouds answer questions about the machine, credentials included, outside of the link-local networks."""


class Origin(Struct, frozen=True):
    """Who answers for a URL."""

    scheme: str
    host: str
    """In lower case, an IPv6 address without brackets."""
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def origin_of(url: str) -> Origin:
    """The origin of ``url``. Raises InvalidInput for what is no HTTP URL, or has a user in it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in _PORTS or not host or not host.isascii():
        raise InvalidInput(f"{shown(url)!r} is no address of a web server")
    if "@" in parts.netloc:
        raise InvalidInput(f"the address of {host} has a user in it, which is not how one logs in")
    if "%" in host or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise InvalidInput(f"the address of {host[:200]!r} has letters that no address has")
    return Origin(parts.scheme, host.lower().rstrip(".") or host, port if port is not None else _PORTS[parts.scheme])


def joined(base: str, location: str) -> str:
    """The URL that ``location`` means, seen from ``base``. Raises InvalidInput where that is none."""
    try:
        return urljoin(base, location)
    except ValueError:
        raise InvalidInput(f"{shown(base)} points to {shown(location)!r}, which is no address") from None


def shown(url: str) -> str:
    """``url`` as it may be printed: without user and query, in which there may be secrets."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "a malformed address"
    return f"{parts.scheme}://{host}{parts.path}"[:300]


def check_address(address: str, *, loopback: bool) -> None:
    """Refuse the numeric ``address`` of a server that a registry or a document named.

    Networks where a machine's own services answer are out of bounds: link-local ones, with the metadata of clouds,
    and, unless ``loopback`` allows them, this machine. A name that is not an address passes. Raises Denied.
    """
    try:
        number = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        if address == "localhost" and not loopback:
            raise Denied(f"refused to be led to {address}, where this machine's own services are") from None
        return
    if isinstance(number, ipaddress.IPv6Address):
        inner = number.ipv4_mapped or number.sixtofour
        if inner is None and number in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
        if inner is not None:
            number = inner
    outside = number.is_link_local or number in _METADATA or number.is_unspecified or number.is_multicast
    if outside or (number.is_loopback and not loopback):
        raise Denied(f"refused to be led to {address}, where this machine's own services are")


def is_loopback(address: str) -> bool:
    """Whether ``address`` is this machine, by number or as ``localhost``."""
    try:
        number = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address == "localhost"
    if isinstance(number, ipaddress.IPv6Address) and number.ipv4_mapped is not None:
        return number.ipv4_mapped.is_loopback
    return number.is_loopback
