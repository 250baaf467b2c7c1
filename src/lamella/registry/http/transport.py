# SPDX-License-Identifier: Apache-2.0
"""HTTP to one host and to where it sends us: connections, TLS, redirects, and bounds on all that an answer may do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from socket import gaierror
from typing import TYPE_CHECKING, Final, TypeAlias

from lamella import errors
from lamella.errors import Denied, Exhausted, InvalidInput, LamellaError, Unavailable
from lamella.oci.documents import MAX_DOCUMENT
from lamella.registry.http.addresses import Origin, check_address, is_loopback, joined, origin_of, shown
from lamella.registry.http.connection import Connection, Connections, ProxyRefused, Unreached, Way
from lamella.registry.http.proxies import proxy_for
from lamella.registry.http.response import Answer, BrokenAnswer

if TYPE_CHECKING:
    import ssl

    from lamella.images.options import RegistryOptions
    from lamella.registry.hosts import HostConfig

_ASKED: Final = frozenset(
    {"accept", "accept-encoding", "content-length", "content-range", "content-type", "range", "user-agent"}
)
"""Headers of requests that are shown with their values; others prove who we are, or are from somebody's settings."""

_SECRET: Final = frozenset({"set-cookie", "set-cookie2", "authorization", "proxy-authorization"})
_ADDRESSES: Final = frozenset({"location", "content-location"})
_HIDDEN: Final = "(not shown)"


def request_text(method: str, url: str, headers: Mapping[str, str]) -> str:
    """The head of a request, with a blank line at its end; the address is without its query, as all are."""
    lines = (f"{name}: {value if name.lower() in _ASKED else _HIDDEN}" for name, value in headers.items())
    return "\n".join((f"{method} {shown(url)} HTTP/1.1", *lines, "", ""))


def answer_text(method: str, url: str, status: int, headers: Mapping[str, str]) -> str:
    """The head of the answer to a request, with a blank line at its end."""
    return "\n".join((f"HTTP {status} for {method} {shown(url)}", *_answered(headers), "", ""))


def _answered(headers: Mapping[str, str]) -> Iterator[str]:
    for name, value in headers.items():
        if name.lower() in _SECRET:
            yield f"{name}: {_HIDDEN}"
        elif name.lower() in _ADDRESSES:
            yield f"{name}: {shown(value)}"
        else:
            yield f"{name}: {value}"


Buffer: TypeAlias = bytes | bytearray | memoryview

MAX_REDIRECTS: Final = 5
HOSTS: Final = 16
"""Hosts, ours and those that it sends us to, to which idle connections are kept."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class Interrupted(Unavailable):
    """The answer did not come, or not to its end. ``sent`` is False where the request cannot have arrived."""

    def __init__(self, message: str, *, sent: bool = True, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.sent = sent


class Response:
    """An answer whose body has not been read yet; close it, or read it to its end, to free the connection."""

    def __init__(
        self, answer: Answer, connection: Connection, pool: Connections, url: str, options: RegistryOptions
    ) -> None:
        self._answer = answer
        self._connection: Connection | None = connection
        self._pool = pool
        self._options = options
        self._waited = 0.0
        self._got = 0
        self.status = answer.status
        self.headers: Mapping[str, str] = answer.headers
        self.url = url

    @property
    def length(self) -> int | None:
        """Bytes of the body as the header has it."""
        text = self.headers.get("Content-Length")
        return None if text is None else int(text.partition(",")[0])  # the same twice is well-formed

    def readinto(self, view: memoryview) -> int:
        """Fill the start of ``view`` with what has arrived, and say how much that is; 0 at the end of the body alone.

        Raises Interrupted where the body is cut, or comes slower than a working network brings it.
        """
        start = time.monotonic()
        try:
            count = self._answer.readinto(view)
        except (BrokenAnswer, OSError, ValueError) as problem:
            self.close()
            raise Interrupted(f"{shown(self.url)}: the answer was cut: {_reason(problem)}") from None
        self._waited += time.monotonic() - start
        self._got += count
        if self._waited > self._options.rate_window:
            if count and self._got < self._waited * self._options.slowest_rate:
                self.close()
                raise Interrupted(
                    f"{shown(self.url)}: only {self._got} bytes came in {self._waited:.0f} seconds",
                    hint="the network or the registry is too slow; try again later",
                )
            self._waited, self._got = 0.0, 0
        return count

    def read(self, amount: int) -> bytes:
        """What has arrived, at most ``amount`` bytes; empty at the end of the body. Raises as `readinto`."""
        buffer = bytearray(amount)
        return bytes(memoryview(buffer)[: self.readinto(memoryview(buffer))])

    def document(self, limit: int = MAX_DOCUMENT) -> bytes:
        """The whole body. Raises Exhausted beyond ``limit`` bytes."""
        pieces: list[bytes] = []
        try:
            size = self.length or 0
            if size <= limit:
                size = 0
                while size <= limit and (piece := self.read(64 << 10)):
                    pieces.append(piece)
                    size += len(piece)
        finally:
            self.close()
        if size > limit:
            raise Exhausted(f"{shown(self.url)}: the answer has more than the {limit} bytes that it may have")
        return b"".join(pieces)

    def drop(self) -> None:
        """Be done with the answer; the connection stays good where little of the body is left."""
        try:
            if self.length is not None and self.length <= 64 << 10:
                while self.read(64 << 10):
                    pass
        except LamellaError:
            pass
        self.close()

    def close(self) -> None:
        """Let go of the connection, for good where the body has not been read to its end."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._answer.whole:
            self._pool.give(connection)
        else:
            connection.close()


class Transport:
    """Sends requests to one host, and to those it redirects to. Usable from several threads.

    A redirect is followed five times at most, never from TLS to plain HTTP, and never into networks where a machine's
    own services answer; nothing that proves who we are goes with it to another host or port. Servers of this machine
    are reached from a registry that is on it itself. The host may be anywhere where a person has named it; where a
    document did, which came from ``near``, it is checked as the target of a redirect is.
    """

    def __init__(
        self,
        host: HostConfig,
        options: RegistryOptions,
        *,
        near: Origin | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.origin = origin_of(host.url)
        self._chosen = near is None
        self._host = host
        self._options = options
        self._environ = os.environ if environ is None else environ
        self._local = is_loopback((near or self.origin).host)
        self._pools: dict[Origin, Connections] = {}
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
        """The answer to one request, whatever its status; redirects are followed where that is safe.

        ``authorization`` goes to the origin of ``url`` alone. Only requests without a body are repeated elsewhere.
        Raises Interrupted, Denied and InvalidInput for a redirect that is not to be followed.
        """
        first = origin_of(url)
        for _ in range(MAX_REDIRECTS + 1):
            origin = origin_of(url)
            self._check(origin)
            sent = {"User-Agent": "lamella", "Accept-Encoding": "identity", **headers}
            if origin == self.origin:
                sent.update(self._host.headers)
            if authorization is not None and origin == first:
                sent["Authorization"] = authorization
            response = self._once(method, url, origin, sent, body)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not follow or location is None:
                return response
            response.drop()
            if body is not None or method not in ("GET", "HEAD"):
                raise errors.Unsupported(f"{shown(url)}: the registry wants a {method} request to be sent elsewhere")
            target = joined(url, location)
            if origin.scheme == "https" and origin_of(target).scheme != "https":
                raise Denied(f"{shown(url)}: refused to be redirected from TLS to plain HTTP, {shown(target)}")
            url = target
        raise Denied(f"{shown(url)}: more than {MAX_REDIRECTS} redirects")

    def close(self) -> None:
        """Close the connections that are idle; answers that are open stay so."""
        with self._lock:
            pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            pool.close()

    def _check(self, origin: Origin) -> None:
        if origin.host != self.origin.host or not self._chosen:
            self._check_peer(origin.host)

    def _once(self, method: str, url: str, origin: Origin, headers: Mapping[str, str], body: Buffer | None) -> Response:
        pool = self._pool(origin)
        connection: Connection | None = None
        said = self._options.said
        if said is not None:
            said(request_text(method, url, headers))
        try:
            connection = pool.take()
            answer = pool.ask(connection, method, url, headers, None if body is None else memoryview(body))
        except BaseException as problem:
            if connection is not None:
                connection.close()
            if isinstance(problem, InvalidInput):
                raise InvalidInput(f"{shown(url)}: {problem}") from None
            if isinstance(problem, (Unreached, BrokenAnswer, OSError, ValueError)):
                raise _failure(problem, url) from None
            raise
        if said is not None:
            said(answer_text(method, url, answer.status, answer.headers))
        return Response(answer, connection, pool, url, self._options)

    def _pool(self, origin: Origin) -> Connections:
        with self._lock:
            pool = self._pools.pop(origin, None) or self._new_pool(origin)
            self._pools[origin] = pool
            oldest = self._pools.pop(next(iter(self._pools))) if len(self._pools) > HOSTS else None
        if oldest is not None:
            oldest.close()
        return pool

    def _new_pool(self, origin: Origin) -> Connections:
        own = origin.host == self.origin.host
        proxy = proxy_for(origin, self._environ)
        options = self._options
        way = Way(
            connect_timeout=self._host.connect_timeout or options.connect_timeout,
            patience=options.read_timeout,
            tls=lambda: self._tls(own),
            guard=None if (own and self._chosen) or proxy else self._check_peer,
            proxy=proxy,
        )
        return Connections(origin, way)

    def _check_peer(self, peer: str) -> None:
        check_address(peer, loopback=self._local)

    def _tls(self, own: bool) -> ssl.SSLContext:
        """What is trusted, which takes a while to load; exceptions and certificates of ours are for the host itself."""
        with self._lock:
            if own not in self._contexts:
                self._contexts[own] = self._new_tls(own)
            return self._contexts[own]

    def _new_tls(self, own: bool) -> ssl.SSLContext:
        import ssl

        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for path in self._host.ca:
            with self._named(path):
                context.load_verify_locations(path)
        for certificate, key in self._host.client if own else ():
            with self._named(certificate):
                context.load_cert_chain(certificate, key, password="")  # or OpenSSL would ask for one
        if own and self._host.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    @contextmanager
    def _named(self, path: Path) -> Iterator[None]:
        """Errors that say which of the files in the settings is meant, as OpenSSL does not."""
        import ssl

        try:
            yield
        except ssl.SSLError as problem:
            why = (problem.reason or "malformed").replace("_", " ").lower()
            raise InvalidInput(f"{path}: the certificate for {self.origin} cannot be read: {why}") from None
        except OSError as problem:
            raise errors.from_os(problem, f"read {str(path)!r}, a certificate for {self.origin}") from None


def _failure(problem: Exception, url: str) -> LamellaError:
    """The error for a request that got no answer."""
    import ssl

    where = origin_of(url)
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
            hint = "the registry may be one without TLS (--plain-http)" if plain else None
            return Unavailable(f"{where}: TLS failed: {seen.reason or 'no reason is known'}", hint=hint)
        seen = seen.__cause__ or seen.__context__
    if isinstance(problem, Unreached):
        return Interrupted(f"{where}: {problem}{_reason(problem)}", sent=False)
    if isinstance(problem, ProxyRefused):
        return Interrupted(f"{where}: {problem}")
    return Interrupted(f"{where}: {_reason(problem)}")


def _reason(problem: BaseException) -> str:
    """Why, in the system's words or ours."""
    seen: BaseException | None = problem
    while seen is not None:
        if isinstance(seen, TimeoutError):
            return "no answer in time"
        if isinstance(seen, (gaierror, UnicodeError)):
            return "there is no such host"
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror.lower()
        if isinstance(seen, BrokenAnswer):
            return str(seen)
        seen = seen.__cause__ or seen.__context__
    return "the connection was closed"
