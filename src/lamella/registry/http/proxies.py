# SPDX-License-Identifier: Apache-2.0
"""The proxy for a URL, and TLS to a host through a proxy that is itself reached by TLS."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from typing import Any, Final

from lamella.errors import InvalidInput
from lamella.registry.http.urls import Origin, is_loopback

_RECORDS: Final = 64 << 10
"""Bytes encrypted or received at once."""


class TlsOverTls:
    """A TLS socket inside another one, since `ssl` wraps sockets of the system alone.

    The handshake is done when it is made. Raises SSLError, OSError.
    """

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext, host: str) -> None:
        self._outer = outer
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._inner = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._complete(self._inner.do_handshake)

    def sendall(self, raw: Any) -> None:
        with memoryview(raw).cast("B") as view:
            at = 0
            while at < len(view):
                at += self._complete(self._inner.write, view[at : at + _RECORDS])

    def recv_into(self, buffer: memoryview) -> int:
        try:
            count: int = self._complete(self._inner.read, len(buffer), buffer)
        except ssl.SSLZeroReturnError:
            return 0
        return count

    def fileno(self) -> int:
        return self._outer.fileno()

    def settimeout(self, seconds: float | None) -> None:
        self._outer.settimeout(seconds)

    def close(self) -> None:
        self._outer.close()

    def _complete(self, step: Any, *arguments: Any) -> Any:
        """Repeat ``step``, sending and receiving what TLS needs for it, until it succeeds."""
        while True:
            try:
                result = step(*arguments)
            except ssl.SSLWantReadError:
                self._flush()
                raw = self._outer.recv(_RECORDS)
                if raw:
                    self._incoming.write(raw)
                else:
                    self._incoming.write_eof()
                continue
            self._flush()
            return result

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._outer.sendall(self._outgoing.read())


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
