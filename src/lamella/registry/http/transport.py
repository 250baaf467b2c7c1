# SPDX-License-Identifier: Apache-2.0
"""HTTP to one host and to the hosts that it redirects to: connections, TLS, redirects, bounds on responses."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from socket import gaierror
from typing import TYPE_CHECKING, Final

from lamella import errors
from lamella.errors import Denied, Exhausted, InvalidInput, LamellaError, Unavailable
from lamella.images.contract import Buffer
from lamella.oci.documents import MAX_DOCUMENT
from lamella.registry.http.connection import ConnectFailed, Connection, ConnectionPool, ProxyRefused, Route
from lamella.registry.http.response import MalformedResponse, RawResponse
from lamella.registry.http.urls import Origin, check_address, is_loopback, join_url, parse_origin, proxy_for, redact_url

if TYPE_CHECKING:
    from lamella.images.options import RegistryOptions
    from lamella.registry.hosts import HostConfig

MAX_REDIRECTS: Final = 5
MAX_HOSTS: Final = 16
"""Hosts, redirect targets included, to which idle connections are kept."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_SMALL: Final = 64 << 10
"""Bytes of an unwanted body that are read so that the connection can be reused."""

_PUBLIC_HEADERS: Final = frozenset(
    {"accept", "accept-encoding", "content-length", "content-range", "content-type", "range", "user-agent"}
)
"""Request headers that a trace shows with their values; others may hold credentials."""

_SECRET_HEADERS: Final = frozenset({"set-cookie", "set-cookie2", "authorization", "proxy-authorization"})
_URL_HEADERS: Final = frozenset({"location", "content-location"})
_REDACTED: Final = "(not shown)"


def request_text(method: str, url: str, headers: Mapping[str, str]) -> str:
    """The head of a request for a trace, with a blank line at its end; no query and no credentials are shown."""
    lines = (f"{name}: {value if name.lower() in _PUBLIC_HEADERS else _REDACTED}" for name, value in headers.items())
    return "\n".join((f"{method} {redact_url(url)} HTTP/1.1", *lines, "", ""))


def response_text(method: str, url: str, status: int, headers: Mapping[str, str]) -> str:
    """The head of the response to a request for a trace, with a blank line at its end."""
    return "\n".join((f"HTTP {status} for {method} {redact_url(url)}", *_redacted_lines(headers), "", ""))


def _redacted_lines(headers: Mapping[str, str]) -> Iterator[str]:
    for name, value in headers.items():
        if name.lower() in _SECRET_HEADERS:
            yield f"{name}: {_REDACTED}"
        elif name.lower() in _URL_HEADERS:
            yield f"{name}: {redact_url(value)}"
        else:
            yield f"{name}: {value}"


class Interrupted(Unavailable):
    """No response came, or a part of one. ``sent`` is False if the request cannot have reached the server."""

    def __init__(self, message: str, *, sent: bool = True, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.sent = sent


class Response:
    """A response whose body has not been read; reading it to its end, or closing it, frees the connection."""

    def __init__(
        self, raw: RawResponse, connection: Connection, pool: ConnectionPool, url: str, options: RegistryOptions
    ) -> None:
        self._raw = raw
        self._connection: Connection | None = connection
        self._pool = pool
        self._options = options
        self._waited = 0.0
        self._received = 0
        self.status = raw.status
        self.headers: Mapping[str, str] = raw.headers
        self.url = url

    @property
    def length(self) -> int | None:
        """The body's ``Content-Length`` in bytes."""
        text = self.headers.get("Content-Length")
        return None if text is None else int(text.partition(",")[0])  # repeated fields are equal

    def readinto(self, view: memoryview) -> int:
        """Fill the start of ``view`` with the bytes that have arrived and return their number; 0 at the end only.

        Raises Interrupted for a body that is cut, or slower than ``options.slowest_rate``.
        """
        start = time.monotonic()
        try:
            count = self._raw.readinto(view)
        except (MalformedResponse, OSError, ValueError) as problem:
            self.close()
            raise Interrupted(f"{redact_url(self.url)}: the response was cut: {_reason(problem)}") from None
        self._waited += time.monotonic() - start
        self._received += count
        if self._waited > self._options.rate_window:
            if count and self._received < self._waited * self._options.slowest_rate:
                self.close()
                raise Interrupted(
                    f"{redact_url(self.url)}: received only {self._received} bytes in {self._waited:.0f} seconds",
                    hint="the network or the registry is too slow; try again later",
                )
            self._waited, self._received = 0.0, 0
        return count

    def read(self, amount: int) -> bytes:
        """Return what has arrived, at most ``amount`` bytes; empty at the end only. Raises as `readinto`."""
        buffer = bytearray(amount)
        return bytes(memoryview(buffer)[: self.readinto(memoryview(buffer))])

    def document(self, limit: int = MAX_DOCUMENT) -> bytes:
        """Return the whole body and close the response. Raises Exhausted beyond ``limit`` bytes."""
        pieces: list[bytes] = []
        try:
            size = self.length or 0
            if size <= limit:
                size = 0
                while size <= limit and (piece := self.read(_SMALL)):
                    pieces.append(piece)
                    size += len(piece)
        finally:
            self.close()
        if size > limit:
            raise Exhausted(f"{redact_url(self.url)}: the response has more than {limit} bytes")
        return b"".join(pieces)

    def discard(self) -> None:
        """Close the response; a small body is read first, so that the connection can be reused."""
        try:
            if self.length is not None and self.length <= _SMALL:
                while self.read(_SMALL):
                    pass
        except LamellaError:
            pass
        self.close()

    def close(self) -> None:
        """Give the connection back, or close it if the body has not been read to its end."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._raw.reusable:
            self._pool.release(connection)
        else:
            connection.close()


class Transport:
    """Sends requests to one host, and to the hosts that it redirects to. Thread-safe.

    At most five redirects are followed, never from TLS to plain HTTP, and never to addresses of a machine's own
    services (see `check_address`); credentials, client certificates and a disabled verification of certificates stay
    with the host. Loopback addresses are reached from a registry on a loopback address only.

    A host that the user named may have any address at first, but not move to such an address later (DNS rebinding). A
    host that a document from ``near`` named is checked as the target of a redirect is.
    """

    def __init__(
        self,
        host: HostConfig,
        options: RegistryOptions,
        *,
        near: Origin | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.origin = parse_origin(host.url)
        self._named_by_user = near is None
        self._host = host
        self._options = options
        self._environ = os.environ if environ is None else environ
        self._loopback = is_loopback((near or self.origin).host)
        self._first_peer: str | None = None
        self._pools: dict[Origin, ConnectionPool] = {}
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._lock = threading.RLock()

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        authorization: str | None = None,
        body: Buffer | None = None,
        follow: bool = True,
    ) -> Response:
        """Send one request, follow safe redirects, and return the response, whatever its status.

        ``authorization`` goes to the origin of ``url`` only. Only requests without a body are redirected. Raises
        Interrupted, and Denied, InvalidInput or Unsupported for a redirect that must not be followed.
        """
        first = parse_origin(url)
        for _ in range(MAX_REDIRECTS + 1):
            origin = parse_origin(url)
            if origin.host != self.origin.host or not self._named_by_user:
                self._check_peer(origin.host)
            sent = {"User-Agent": "lamella", "Accept-Encoding": "identity", **headers}
            if origin == self.origin:
                sent.update(self._host.headers)
            if authorization is not None and origin == first:
                sent["Authorization"] = authorization
            response = self._send_once(method, url, origin, sent, body)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not follow or location is None:
                return response
            response.discard()
            if body is not None or method not in ("GET", "HEAD"):
                raise errors.Unsupported(f"{redact_url(url)}: the registry redirects a {method} request")
            target = join_url(url, location)
            if origin.scheme == "https" and parse_origin(target).scheme != "https":
                raise Denied(f"{redact_url(url)}: refused the redirect from TLS to plain HTTP, {redact_url(target)}")
            url = target
        raise Denied(f"{redact_url(url)}: more than {MAX_REDIRECTS} redirects")

    def close(self) -> None:
        """Close idle connections; open responses stay open."""
        with self._lock:
            pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            pool.close()

    def _send_once(
        self, method: str, url: str, origin: Origin, headers: Mapping[str, str], body: Buffer | None
    ) -> Response:
        pool = self._pool(origin)
        connection: Connection | None = None
        trace = self._options.trace
        if trace is not None:
            trace(request_text(method, url, headers))
        try:
            connection = pool.acquire()
            raw = pool.request(connection, method, url, headers, None if body is None else memoryview(body))
        except BaseException as problem:
            if connection is not None:
                connection.close()
            if isinstance(problem, InvalidInput):
                raise InvalidInput(f"{redact_url(url)}: {problem}") from None
            if isinstance(problem, (ConnectFailed, MalformedResponse, OSError, ValueError)):
                raise _failure(problem, url) from None
            raise
        if trace is not None:
            trace(response_text(method, url, raw.status, raw.headers))
        return Response(raw, connection, pool, url, self._options)

    def _pool(self, origin: Origin) -> ConnectionPool:
        with self._lock:
            pool = self._pools.pop(origin, None) or self._new_pool(origin)
            self._pools[origin] = pool
            oldest = self._pools.pop(next(iter(self._pools))) if len(self._pools) > MAX_HOSTS else None
        if oldest is not None:
            oldest.close()
        return pool

    def _new_pool(self, origin: Origin) -> ConnectionPool:
        own = origin.host == self.origin.host
        proxy = proxy_for(origin, self._environ)
        guard = self._check_own_peer if own and self._named_by_user else self._check_peer
        route = Route(
            connect_timeout=self._host.connect_timeout or self._options.connect_timeout,
            timeout=self._options.read_timeout,
            tls=lambda: self._tls(own),
            guard=None if proxy else guard,
            proxy=proxy,
        )
        return ConnectionPool(origin, route)

    def _check_peer(self, peer: str) -> None:
        check_address(peer, loopback=self._loopback)

    def _check_own_peer(self, peer: str) -> None:
        """Let the host that the user named answer from any address, but not move to a forbidden one afterwards."""
        with self._lock:
            first = self._first_peer = self._first_peer or peer
        if peer == first:
            return
        try:
            check_address(first, loopback=True)
        except Denied:
            return  # the user chose a forbidden network
        check_address(peer, loopback=is_loopback(first))

    def _tls(self, own: bool) -> ssl.SSLContext:
        """The context for the host itself or for others; made on demand, since loading authorities takes a while."""
        with self._lock:
            if own not in self._contexts:
                self._contexts[own] = self._new_tls(own)
            return self._contexts[own]

    def _new_tls(self, own: bool) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for path in self._host.ca:
            with self._named(path):
                context.load_verify_locations(path)
        for certificate, key in self._host.client if own else ():
            with self._named(certificate):
                context.load_cert_chain(certificate, key, password="")  # keeps OpenSSL from prompting
        if own and self._host.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    @contextmanager
    def _named(self, path: Path) -> Iterator[None]:
        """Name the file in errors, which OpenSSL's messages do not."""
        try:
            yield
        except ssl.SSLError as problem:
            why = (problem.reason or "malformed").replace("_", " ").lower()
            raise InvalidInput(f"{path}: malformed certificate for {self.origin}: {why}") from None
        except OSError as problem:
            raise errors.from_os(problem, f"read {str(path)!r}, a certificate for {self.origin}") from None


def _failure(problem: Exception, url: str) -> LamellaError:
    """The error for a request without a response."""
    where = parse_origin(url)
    seen: BaseException | None = problem
    while seen is not None:
        if isinstance(seen, LamellaError):
            return seen
        if isinstance(seen, ssl.SSLCertVerificationError):
            return Unavailable(
                f"{where}: the certificate cannot be verified: {seen.verify_message}",
                hint="name its authority in certs.d/HOST/hosts.toml ('ca')",
            )
        if isinstance(seen, ssl.SSLError) and not isinstance(seen, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            plain = seen.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")
            hint = "the registry may have no TLS (--plain-http)" if plain else None
            return Unavailable(f"{where}: TLS failed: {seen.reason or 'unknown reason'}", hint=hint)
        seen = seen.__cause__ or seen.__context__
    if isinstance(problem, ConnectFailed):
        return Interrupted(f"{where}: {problem}{_reason(problem)}", sent=False)
    if isinstance(problem, ProxyRefused):
        return Interrupted(f"{where}: {problem}")
    return Interrupted(f"{where}: {_reason(problem)}")


def _reason(problem: BaseException) -> str:
    """The reason for a message, in the system's words where it has any."""
    seen: BaseException | None = problem
    while seen is not None:
        if isinstance(seen, TimeoutError):
            return "timed out"
        if isinstance(seen, (gaierror, UnicodeError)):
            return "no such host"
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror.lower()
        if isinstance(seen, MalformedResponse):
            return str(seen)
        seen = seen.__cause__ or seen.__context__
    return "the connection was closed"
