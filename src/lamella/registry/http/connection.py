# SPDX-License-Identifier: Apache-2.0
"""Connections to one host, direct or through a proxy, with a guard on the peer's address and timeouts on each step."""

from __future__ import annotations

import base64
import re
import select
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from msgspec import Struct

from lamella.errors import InvalidInput
from lamella.images.contract import Buffer
from lamella.registry.http.response import MalformedResponse, RawResponse
from lamella.registry.http.urls import Origin, parse_origin

MAX_IDLE: Final = 8
"""Idle connections kept to one host; callers bound how many are in use at once."""

_SEND_SIZE: Final = 256 << 10
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_RECORDS: Final = 64 << 10
"""Bytes encrypted or received at once."""

_FIELD_VALUE: Final = re.compile("[\t\x20-\x7e\x80-\xff]*")

_UNESCAPED: Final = "%/?:@!$&'()*+,;=~[]|^`{}\"<>\\"
"""Characters of a path and query that are sent unchanged; others, such as those beyond ASCII, are escaped."""


class ConnectFailed(Exception):
    """No connection was made, so nothing was sent; the cause says why, the message names a proxy in between."""


class ProxyRefused(OSError):
    """A proxy refused to open a tunnel."""


class Route(Struct, frozen=True):
    """How to reach a host. Its repr shows no password of a proxy."""

    connect_timeout: float
    """Seconds."""
    timeout: float
    """Seconds for each step of sending and receiving."""
    tls: Callable[[], ssl.SSLContext]
    """Gives the context for TLS to the host; called only where the host has TLS."""
    guard: Callable[[str], None] | None = None
    """Called with the peer's address before anything is sent; raises to refuse it."""
    proxy: str | None = None
    """URL of a proxy, with user and password if it needs them."""

    def __repr__(self) -> str:
        return f"Route({'through a proxy' if self.proxy is not None else 'direct'})"


class Connection:
    """An open connection, for one request at a time."""

    def __init__(self, sock: Any, timeout: float) -> None:
        self._socket = sock
        self._timeout = timeout

    def request(self, method: str, target: str, headers: Mapping[str, str], body: Buffer | None) -> RawResponse:
        """Send a request and read the head of the response.

        Raises OSError, MalformedResponse, and InvalidInput for a header field that is malformed on either side.
        """
        request = HTTPConnection("")
        request.sock = self._socket
        try:
            request.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if not _FIELD_VALUE.fullmatch(value):
                    raise InvalidInput(f"the header {name} has a control character or one beyond Latin-1")
                request.putheader(name, value)
            if body is not None or method in _WITH_BODY:
                request.putheader("Content-Length", str(len(body or b"")))
            request.endheaders()
            if body is not None:
                # The timeout counts for each of these pieces, not for the whole body.
                for at in range(0, len(body), _SEND_SIZE):
                    self._socket.sendall(body[at : at + _SEND_SIZE])
        except (BrokenPipeError, ConnectionResetError):
            if body is None:
                raise
            # A server may refuse a request, and close, before it has read the body: read what it answered.
        return RawResponse(self._socket, method, self._timeout)

    @property
    def reusable(self) -> bool:
        """Whether it is still open; input before the next request means that the server has closed it."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class ConnectionPool:
    """The connections to one host. Thread-safe."""

    def __init__(self, origin: Origin, route: Route) -> None:
        self._origin = origin
        self._route = route
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False
        weakref.finalize(self, _close_all, self._idle).atexit = False  # a pool that is never closed leaks no sockets
        proxy = urlsplit(route.proxy) if route.proxy else None
        self._proxy = parse_origin(f"{proxy.scheme}://{proxy.netloc.rpartition('@')[2]}") if proxy else None
        self._proxy_headers: dict[str, str] = {}
        if proxy is not None and proxy.username is not None:
            pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            self._proxy_headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()

    def acquire(self) -> Connection:
        """Take an idle connection, or open one.

        Raises ConnectFailed, OSError, ProxyRefused, MalformedResponse, and what the guard raises.
        """
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return Connection(self._connect(), self._route.timeout)
            if connection.reusable:
                return connection
            connection.close()

    def release(self, connection: Connection) -> None:
        """Keep a connection, whose last response has been read to its end, for another request."""
        with self._lock:
            if not self._closed and len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def request(
        self, connection: Connection, method: str, url: str, headers: Mapping[str, str], body: Buffer | None
    ) -> RawResponse:
        """Send a request for ``url``, in the form that the route wants. Raises as `Connection.request`."""
        parts = urlsplit(url)
        target = quote(f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}", safe=_UNESCAPED)
        headers = {"Host": str(self._origin), **headers}
        if self._proxy is not None and self._origin.scheme == "http":
            target = f"http://{self._origin}{target}"
            headers.update(self._proxy_headers)
        return connection.request(method, target, headers, body)

    def close(self) -> None:
        """Close idle connections; those in use are closed when they are released."""
        with self._lock:
            self._closed = True
            _close_all(self._idle)

    def _connect(self) -> Any:
        """Open a socket, or an object like one, whose peer is the host."""
        route = self._route
        first = self._proxy or self._origin
        context = route.tls() if self._origin.scheme == "https" else None
        try:
            # Bytes, since text would be encoded as an internationalised name first.
            sock: Any = socket.create_connection((first.host.encode("ascii"), first.port), route.connect_timeout)  # type: ignore[arg-type]
        except (OSError, ValueError) as problem:
            raise ConnectFailed(f"the proxy {self._proxy}: " if self._proxy else "") from problem
        try:
            if route.guard is not None:
                route.guard(sock.getpeername()[0])
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None or self._proxy is not None:
                with _shut_down_after(sock, 2 * route.timeout):
                    sock = self._handshake(sock, context)
            sock.settimeout(route.timeout)
        except BaseException:
            sock.close()
            raise
        return sock

    def _handshake(self, sock: Any, context: ssl.SSLContext | None) -> Any:
        """Set up TLS to the proxy, the tunnel through it, and TLS to the host, as needed."""
        proxy = self._proxy
        if proxy is not None and proxy.scheme == "https":
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=proxy.host)
        if context is None:
            return sock
        if proxy is not None:
            self._open_tunnel(sock)
            if proxy.scheme == "https":
                return TlsOverTls(sock, context, self._origin.host)
        return context.wrap_socket(sock, server_hostname=self._origin.host)

    def _open_tunnel(self, sock: Any) -> None:
        host = f"[{self._origin.host}]" if ":" in self._origin.host else self._origin.host
        target = f"{host}:{self._origin.port}"
        fields = [f"{name}: {value}\r\n" for name, value in {"Host": target, **self._proxy_headers}.items()]
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\n{''.join(fields)}\r\n".encode())
        response = RawResponse(sock, "CONNECT", self._route.timeout)
        if response.status != 200:
            raise ProxyRefused(f"the proxy {self._proxy} answers with status {response.status}")
        if not response.reusable:
            raise MalformedResponse("the proxy sent data before the tunnel was used")


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


def _close_all(connections: list[Connection]) -> None:
    while connections:
        connections.pop().close()


@contextmanager
def _shut_down_after(sock: Any, seconds: float) -> Iterator[None]:
    """Bound the time of the block: the socket's own timeout starts again with each byte."""
    timer = threading.Timer(seconds, _shut_down, [sock])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _shut_down(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
