# SPDX-License-Identifier: Apache-2.0
"""HTTP to one host and to where it sends us: connections, TLS, redirects, and bounds on all that an answer may do."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NameResolutionError, NewConnectionError
from urllib3.exceptions import TimeoutError as TooLate

from lamella import errors
from lamella.errors import Denied, Exhausted, InvalidInput, LamellaError, Unavailable
from lamella.oci.documents import MAX_DOCUMENT
from lamella.registry.addresses import Origin, check_address, is_loopback, joined, origin_of, shown
from lamella.registry.connections import pool_classes
from lamella.registry.proxies import proxy_for

if TYPE_CHECKING:
    from lamella.images.options import RegistryOptions
    from lamella.registry.hosts import HostConfig

Buffer: TypeAlias = bytes | bytearray | memoryview

MAX_REDIRECTS: Final = 5
CONNECTIONS: Final = 8
"""Idle connections kept to one host; what runs at once is bounded by those who ask."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_SEND_SIZE: Final = 256 << 10


class Interrupted(Unavailable):
    """The answer did not come, or not to its end. ``sent`` is False where the request cannot have arrived."""

    def __init__(self, message: str, *, sent: bool = True, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.sent = sent


class Response:
    """An answer whose body has not been read yet; close it, or read it to its end, to free the connection."""

    def __init__(self, raw: urllib3.BaseHTTPResponse, url: str, options: RegistryOptions) -> None:
        self._raw = raw
        self._options = options
        self._waited = 0.0
        self._got = 0
        self.status = raw.status
        self.headers: Mapping[str, str] = raw.headers
        self.url = url

    @property
    def length(self) -> int | None:
        """Bytes of the body as the header has it."""
        text = self.headers.get("Content-Length")
        return None if text is None else int(text.partition(",")[0])  # the same twice is well-formed

    def read(self, amount: int) -> bytes:
        """What has arrived, at most ``amount`` bytes; empty at the end of the body alone.

        Raises Interrupted where the body is cut, or comes slower than a working network brings it.
        """
        start = time.monotonic()
        try:
            piece = self._raw.read1(amount)
        except (HTTPError, OSError, ValueError) as problem:
            self._raw.close()
            raise Interrupted(f"{shown(self.url)}: the answer was cut: {_reason(problem)}") from None
        self._waited += time.monotonic() - start
        self._got += len(piece)
        if self._waited > self._options.rate_window:
            if piece and self._got < self._waited * self._options.slowest_rate:
                self._raw.close()
                raise Interrupted(
                    f"{shown(self.url)}: only {self._got} bytes came in {self._waited:.0f} seconds",
                    hint="the network or the registry is too slow; try again later",
                )
            self._waited, self._got = 0.0, 0
        return piece

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
        self._raw.close()
        self._raw.release_conn()


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
        self._managers: dict[tuple[bool, str | None, bool], urllib3.PoolManager] = {}
        self._lock = threading.Lock()

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
            managers, self._managers = list(self._managers.values()), {}
        for manager in managers:
            for key in manager.pools.keys():  # noqa: SIM118 it cannot be iterated itself
                pool = manager.pools.get(key)
                if pool is not None:
                    pool.close()
            manager.clear()

    def _check(self, origin: Origin) -> None:
        if origin.host != self.origin.host or not self._chosen:
            self._check_peer(origin.host)

    def _once(self, method: str, url: str, origin: Origin, headers: Mapping[str, str], body: Buffer | None) -> Response:
        options = self._options
        connect = self._host.connect_timeout or options.connect_timeout
        manager = self._manager(origin)
        pieces: Iterable[Buffer] | None = None
        if body is not None:
            view = memoryview(body)
            headers = {**headers, "Content-Length": str(len(view))}
            # Each piece has its time to be sent, rather than all of them together.
            pieces = (view[at : at + _SEND_SIZE] for at in range(0, len(view), _SEND_SIZE))
        try:
            raw = manager.urlopen(
                method,
                url,
                body=pieces,
                headers=headers,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=connect, read=options.read_timeout),
            )
        except InvalidInput as problem:
            raise InvalidInput(f"{shown(url)}: {problem}") from None
        except LamellaError:
            raise
        except (HTTPError, OSError, ValueError) as problem:
            raise _failure(problem, url) from None
        return Response(raw, url, options)

    def _manager(self, origin: Origin) -> urllib3.PoolManager:
        own = origin.host == self.origin.host
        proxy = proxy_for(origin, self._environ)
        tls = origin.scheme == "https" or (proxy is not None and proxy.startswith("https:"))
        with self._lock:
            manager = self._managers.get((own, proxy, tls))
            if manager is None:
                manager = self._managers[own, proxy, tls] = self._new_manager(own, proxy, tls)
        return manager

    def _new_manager(self, own: bool, proxy: str | None, tls: bool) -> urllib3.PoolManager:
        settings: dict[str, Any] = {"num_pools": 16, "maxsize": CONNECTIONS, "blocksize": 1 << 20}
        if tls:  # what is trusted takes a while to load
            settings["ssl_context"] = self._tls(own)
        if own and self._host.skip_verify:
            settings.update(assert_hostname=False, cert_reqs="CERT_NONE")
        manager: urllib3.PoolManager
        if proxy is None:
            manager = urllib3.PoolManager(**settings)
        else:
            parsed = urllib3.util.parse_url(proxy)
            sign_in = urllib3.make_headers(proxy_basic_auth=parsed.auth) if parsed.auth else None
            manager = urllib3.ProxyManager(proxy, proxy_headers=sign_in, **settings)
        guard = None if (own and self._chosen) or proxy else self._check_peer
        manager.pool_classes_by_scheme = pool_classes(guard, self._options.read_timeout)
        return manager

    def _check_peer(self, peer: str) -> None:
        check_address(peer, loopback=self._local)

    def _tls(self, own: bool) -> ssl.SSLContext:
        """What is trusted; exceptions and certificates of ours are for the host itself."""
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
        try:
            yield
        except ssl.SSLError as problem:
            why = (problem.reason or "malformed").replace("_", " ").lower()
            raise InvalidInput(f"{path}: the certificate for {self.origin} cannot be read: {why}") from None
        except OSError as problem:
            raise errors.from_os(problem, f"read {str(path)!r}, a certificate for {self.origin}") from None


def _failure(problem: Exception, url: str) -> LamellaError:
    """The error for a request that got no answer."""
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
        seen = seen.__cause__ or seen.__context__ or _inner(seen)
    if isinstance(problem, NameResolutionError):
        return Interrupted(f"{where}: there is no such host", sent=False)
    sent = not isinstance(problem, (NewConnectionError, ConnectTimeoutError))
    return Interrupted(f"{where}: {_reason(problem)}", sent=sent)


def _inner(problem: BaseException) -> BaseException | None:
    """What an error of the library was made from, which it keeps among its arguments."""
    return next((one for one in problem.args if isinstance(one, BaseException)), None)


def _reason(problem: BaseException) -> str:
    """Why, in the system's words; the library's have the whole URL in them."""
    if not isinstance(problem, NewConnectionError) and isinstance(problem, (TooLate, TimeoutError)):
        return "no answer in time"
    seen: BaseException | None = problem
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror.lower()
        seen = seen.__cause__ or seen.__context__ or _inner(seen)
    return "the connection was closed"
