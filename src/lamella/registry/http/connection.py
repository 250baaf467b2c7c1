# SPDX-License-Identifier: Apache-2.0
"""Connections that look at whom they have reached, and do not wait for ever."""

from __future__ import annotations

import base64
import re
import select
import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlsplit

from msgspec import Struct

from lamella.errors import InvalidInput
from lamella.images.contract import Buffer
from lamella.registry.http.addresses import Origin, origin_of
from lamella.registry.http.response import Answer, BrokenAnswer

if TYPE_CHECKING:
    from ssl import SSLContext

IDLE: Final = 8
"""Idle connections kept to one host; what runs at once is bounded by those who ask."""

_PIECE: Final = 256 << 10
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_SENDABLE: Final = re.compile("[\t\x20-\x7e\x80-\xff]*")

_AS_THEY_ARE: Final = "%/?:@!$&'()*+,;=~[]|^`{}\"<>\\"
"""What is sent of a path and a query as it is, be it right or not; the rest, letters beyond ASCII, is escaped."""


class Unreached(Exception):
    """No connection came about, so that nothing can have been sent; its cause says why.

    Its text says to whom, where that is not the host itself.
    """


class ProxyRefused(OSError):
    """A proxy does not let us through."""


class Way(Struct, frozen=True):
    """How a host is reached. Printing it shows no password of a proxy."""

    connect_timeout: float
    patience: float
    """Seconds that each step of sending and receiving may take."""
    tls: Callable[[], SSLContext]
    """What is trusted at the host; asked for where there is TLS."""
    guard: Callable[[str], None] | None = None
    """Shown the address of the peer before anything is sent; raises where that may not be asked."""
    proxy: str | None = None
    """A URL, perhaps with user and password."""

    def __repr__(self) -> str:
        return f"Way({'through a proxy' if self.proxy is not None else 'directly'})"


class Connection:
    """A connection that stands, for one request at a time."""

    def __init__(self, connected: Any, patience: float) -> None:
        self._connected = connected
        self._patience = patience

    def ask(self, method: str, target: str, headers: Mapping[str, str], body: Buffer | None) -> Answer:
        """Send a request and read status and headers of the answer.

        Raises OSError, BrokenAnswer, and InvalidInput where a header cannot be sent or an answer's not be read.
        """
        request = HTTPConnection("")
        request.sock = self._connected
        try:
            request.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if not _SENDABLE.fullmatch(value):
                    raise InvalidInput(f"the header {name} has letters that cannot be sent")
                request.putheader(name, value)
            if body is not None or method in _WITH_BODY:
                request.putheader("Content-Length", str(len(body or b"")))
            request.endheaders()
            if body is not None:
                # Each piece has its time to be sent, rather than all of them together.
                for at in range(0, len(body), _PIECE):
                    self._connected.sendall(body[at : at + _PIECE])
        except (BrokenPipeError, ConnectionResetError):
            if body is None:
                raise
            # A server may refuse, and hang up, before it has read all: what it says is there to be read.
        return Answer(self._connected, method, self._patience)

    @property
    def idle(self) -> bool:
        """Whether it still stands: who has something to say before it was asked has hung up."""
        poll = select.poll()
        poll.register(self._connected.fileno(), select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close it."""
        self._connected.close()


class Connections:
    """The connections to one host. Usable from several threads."""

    def __init__(self, origin: Origin, way: Way) -> None:
        self._origin = origin
        self._way = way
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False
        # Whoever forgets to close should leave no sockets open.
        weakref.finalize(self, _close_all, self._idle).atexit = False
        proxy = urlsplit(way.proxy) if way.proxy else None
        self._proxy = origin_of(f"{proxy.scheme}://{proxy.netloc.rpartition('@')[2]}") if proxy else None
        self._sign_in: dict[str, str] = {}
        if proxy is not None and proxy.username is not None:
            pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            self._sign_in["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()

    def take(self) -> Connection:
        """A connection that stands and is idle, a new one where there is none.

        Raises Unreached, OSError, ProxyRefused, BrokenAnswer, and what the guard raises.
        """
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return Connection(self._connected(), self._way.patience)
            if connection.idle:
                return connection
            connection.close()

    def give(self, connection: Connection) -> None:
        """Keep a connection whose answer has been read to its end, for another request."""
        with self._lock:
            if not self._closed and len(self._idle) < IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def ask(
        self, connection: Connection, method: str, url: str, headers: Mapping[str, str], body: Buffer | None
    ) -> Answer:
        """Ask for ``url`` as the way there wants it. Raises as `Connection.ask`."""
        parts = urlsplit(url)
        target = quote(f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}", safe=_AS_THEY_ARE)
        headers = {"Host": str(self._origin), **headers}
        if self._proxy is not None and self._origin.scheme == "http":
            target = f"http://{self._origin}{target}"
            headers.update(self._sign_in)
        return connection.ask(method, target, headers, body)

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it is given back."""
        with self._lock:
            self._closed = True
            _close_all(self._idle)

    def _connected(self) -> Any:
        """A socket, or what passes for one, at whose other end is the host."""
        way = self._way
        first = self._proxy or self._origin
        context = way.tls() if self._origin.scheme == "https" else None
        try:
            # As bytes, or it would be taken for a name in letters of all the world.
            connected: Any = socket.create_connection((first.host.encode("ascii"), first.port), way.connect_timeout)  # type: ignore[arg-type]
        except (OSError, ValueError) as problem:
            raise Unreached(f"the proxy {self._proxy}: " if self._proxy else "") from problem
        try:
            if way.guard is not None:
                way.guard(connected.getpeername()[0])
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None or self._proxy is not None:
                with _watched(connected, 2 * way.patience):
                    connected = self._introduced(connected, context)
            connected.settimeout(way.patience)
        except BaseException:
            connected.close()
            raise
        return connected

    def _introduced(self, connected: Any, context: SSLContext | None) -> Any:
        """What comes of the socket when proxy and host have agreed on who speaks with whom."""
        proxy = self._proxy
        if proxy is not None and proxy.scheme == "https":
            import ssl

            connected = ssl.create_default_context().wrap_socket(connected, server_hostname=proxy.host)
        if context is None:
            return connected
        if proxy is not None:
            self._tunnel(connected)
            if proxy.scheme == "https":
                from lamella.registry.http.proxies import LayeredTls

                return LayeredTls(connected, context, self._origin.host)
        return context.wrap_socket(connected, server_hostname=self._origin.host)

    def _tunnel(self, connected: Any) -> None:
        """Have the proxy pass on what comes after this."""
        host = f"[{self._origin.host}]" if ":" in self._origin.host else self._origin.host
        there = f"{host}:{self._origin.port}"
        fields = [f"{name}: {value}\r\n" for name, value in {"Host": there, **self._sign_in}.items()]
        connected.sendall(f"CONNECT {there} HTTP/1.1\r\n{''.join(fields)}\r\n".encode())
        answer = Answer(connected, "CONNECT", self._way.patience)
        if answer.status != 200:
            raise ProxyRefused(f"the proxy {self._proxy} answers with status {answer.status}")
        if not answer.whole:
            raise BrokenAnswer("the proxy says more than was asked")


def _close_all(connections: list[Connection]) -> None:
    while connections:
        connections.pop().close()


@contextmanager
def _watched(connected: Any, seconds: float) -> Iterator[None]:
    """Cut the connection after ``seconds``: the socket's own timeout begins anew with each byte that drips in."""
    watch = threading.Timer(seconds, _cut, [connected])
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _cut(connected: Any) -> None:
    try:
        if connected is not None:
            connected.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
