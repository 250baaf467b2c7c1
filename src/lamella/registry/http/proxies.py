# SPDX-License-Identifier: Apache-2.0
"""TLS inside of TLS: to a registry, through a proxy that is itself reached by TLS."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from typing import Any, Final

from lamella.errors import InvalidInput
from lamella.registry.http.addresses import Origin, is_loopback

_PIECE: Final = 64 << 10


class LayeredTls:
    """What a socket of TLS is, over another one: a socket of the system can have one layer alone.

    Made with its handshake done. Raises SSLError, OSError.
    """

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext, host: str) -> None:
        self._outer = outer
        self._arrived = ssl.MemoryBIO()
        self._leaving = ssl.MemoryBIO()
        self._inner = context.wrap_bio(self._arrived, self._leaving, server_hostname=host)
        self._until_done(self._inner.do_handshake)

    def sendall(self, raw: Any) -> None:
        """Send all of it."""
        with memoryview(raw).cast("B") as view:
            at = 0
            while at < len(view):
                at += self._until_done(self._inner.write, view[at : at + _PIECE])

    def recv_into(self, buffer: memoryview) -> int:
        """Receive what has arrived; 0 at the end."""
        try:
            count: int = self._until_done(self._inner.read, len(buffer), buffer)
        except ssl.SSLZeroReturnError:
            return 0
        return count

    def recv(self, amount: int) -> bytes:
        """Receive at most ``amount`` bytes; none at the end."""
        buffer = bytearray(amount)
        return bytes(buffer[: self.recv_into(memoryview(buffer))])

    def fileno(self) -> int:
        """The descriptor that can be waited for."""
        return self._outer.fileno()

    def settimeout(self, seconds: float | None) -> None:
        """How long each step may take."""
        self._outer.settimeout(seconds)

    def close(self) -> None:
        """Close it."""
        self._outer.close()

    def _until_done(self, step: Any, *arguments: Any) -> Any:
        """Take ``step``, moving what it has to say and wants to hear, until it needs no more."""
        while True:
            try:
                done = step(*arguments)
            except ssl.SSLWantReadError:
                self._flush()
                raw = self._outer.recv(_PIECE)
                if raw:
                    self._arrived.write(raw)
                else:
                    self._arrived.write_eof()
                continue
            self._flush()
            return done

    def _flush(self) -> None:
        if self._leaving.pending:
            self._outer.sendall(self._leaving.read())


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
