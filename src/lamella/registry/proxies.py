# SPDX-License-Identifier: Apache-2.0
"""Which proxy the environment wants for an address, by the rules that Go programs follow."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from lamella.errors import InvalidInput
from lamella.registry.addresses import Origin, is_loopback


def proxy_for(origin: Origin, environ: Mapping[str, str]) -> str | None:
    """The URL of the proxy to reach ``origin`` by, None to go there directly.

    ``HTTPS_PROXY`` and ``HTTP_PROXY`` by scheme, in lower case too; ``NO_PROXY`` has names (and all below them),
    addresses, networks, ``*``, each perhaps with a port. This machine is never reached by a proxy. Raises InvalidInput.
    """
    name = f"{origin.scheme}_proxy"
    # HTTP_PROXY may come from a header of a request where this runs as a CGI program.
    upper = None if name == "http_proxy" and "REQUEST_METHOD" in environ else environ.get(name.upper())
    proxy = environ.get(name) or upper
    if not proxy or is_loopback(origin.host) or _excepted(origin, environ.get("no_proxy") or environ.get("NO_PROXY")):
        return None
    url = proxy if "://" in proxy else f"http://{proxy}"
    if not url.startswith(("http://", "https://")):
        raise InvalidInput(f"{name.upper()}: the proxy is none that is spoken to by HTTP")
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
