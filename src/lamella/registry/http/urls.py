# SPDX-License-Identifier: Apache-2.0
"""URLs of servers: their origins, their proxies, and the addresses that a server must not send us to."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import urljoin, urlsplit

from msgspec import Struct

from lamella.errors import Denied, InvalidInput

_PORTS: Final = {"http": 80, "https": 443}

_METADATA_SERVICES: Final = frozenset(
    {
        ipaddress.ip_address("fd00:ec2::254"),
        ipaddress.ip_address("fd20:ce::254"),
        ipaddress.ip_address("100.100.100.200"),
        ipaddress.ip_address("168.63.129.16"),
    }
)
"""Metadata services of clouds, which give out credentials, outside of the link-local networks."""


class Origin(Struct, frozen=True):
    """Scheme, host and port of a URL."""

    scheme: str
    host: str
    """In lower case; an IPv6 address has no brackets."""
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_origin(url: str) -> Origin:
    """The origin of an HTTP URL. Raises InvalidInput for other URLs, and for one with a user name."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in _PORTS or not host or not host.isascii():
        raise InvalidInput(f"{redact_url(url)!r} is not an HTTP URL")
    if "@" in parts.netloc:
        raise InvalidInput(f"the URL of {host} has a user name; credentials are not read from URLs")
    if "%" in host or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise InvalidInput(f"the URL of {host[:200]!r} has characters that a URL cannot have")
    return Origin(parts.scheme, host.lower().rstrip(".") or host, port if port is not None else _PORTS[parts.scheme])


def join_url(base: str, location: str) -> str:
    """Resolve ``location`` relative to ``base``. Raises InvalidInput for a malformed one."""
    try:
        return urljoin(base, location)
    except ValueError:
        raise InvalidInput(f"{redact_url(base)} points to {redact_url(location)!r}, which is not a URL") from None


def redact_url(url: str) -> str:
    """``url`` for messages: without user and query, which may hold secrets."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "a malformed URL"
    return f"{parts.scheme}://{host}{parts.path}"[:300]


def check_address(address: str, *, loopback: bool) -> None:
    """Refuse the numeric ``address`` of a server that a registry or a document named.

    Link-local networks, multicast and the metadata services of clouds are refused; loopback addresses too unless
    ``loopback`` allows them. Names other than ``localhost`` pass. Raises Denied.
    """
    try:
        number = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        if address == "localhost" and not loopback:
            raise Denied(f"refused to connect to {address}, an address of the machine's own services") from None
        return
    if isinstance(number, ipaddress.IPv6Address):
        inner = number.ipv4_mapped or number.sixtofour
        if inner is None and number in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
        if inner is not None:
            number = inner
    reserved = number.is_link_local or number in _METADATA_SERVICES or number.is_unspecified or number.is_multicast
    if reserved or (number.is_loopback and not loopback):
        raise Denied(f"refused to connect to {address}, an address of the machine's own services")


def is_loopback(address: str) -> bool:
    """Whether ``address`` is a loopback address or ``localhost``."""
    try:
        number = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address == "localhost"
    if isinstance(number, ipaddress.IPv6Address) and number.ipv4_mapped is not None:
        return number.ipv4_mapped.is_loopback
    return number.is_loopback


def proxy_for(origin: Origin, environ: Mapping[str, str]) -> str | None:
    """The URL of the proxy for ``origin``; None for a direct connection.

    ``HTTPS_PROXY`` and ``HTTP_PROXY``, in lower case too, name proxies by scheme. ``NO_PROXY`` lists domains (with
    their subdomains), addresses, networks or ``*``, each with an optional port. Loopback addresses never use a proxy.
    Raises InvalidInput.
    """
    name = f"{origin.scheme}_proxy"
    # In a CGI program, HTTP_PROXY comes from the client's Proxy header.
    upper = None if name == "http_proxy" and "REQUEST_METHOD" in environ else environ.get(name.upper())
    proxy = environ.get(name) or upper
    if not proxy or is_loopback(origin.host) or _excepted(origin, environ.get("no_proxy") or environ.get("NO_PROXY")):
        return None
    url = proxy if "://" in proxy else f"http://{proxy}"
    if not url.startswith(("http://", "https://")):
        raise InvalidInput(f"{name.upper()}: unsupported proxy scheme {url.partition(':')[0][:20]!r}")
    return url


def _excepted(origin: Origin, exceptions: str | None) -> bool:
    for raw in (exceptions or "").split(","):
        entry = raw.strip().lower()
        if not entry:
            continue
        if entry == "*":
            return True
        host, colon, port = entry.rpartition(":")
        if colon and port.isdecimal() and (host.endswith("]") or ":" not in host):
            if int(port) != origin.port:
                continue
            entry = host
        entry = entry.strip("[]")
        try:
            if ipaddress.ip_address(origin.host) in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            name = entry.removeprefix("*").lstrip(".")
            if origin.host.endswith(f".{name}") or (origin.host == name and not entry.startswith((".", "*."))):
                return True
    return False
