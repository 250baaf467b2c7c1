# SPDX-License-Identifier: Apache-2.0
"""Connections that look at whom they have reached, and do not wait for ever."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from typing import Any, Final

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from lamella.errors import InvalidInput

_HEADER_TIME: Final = 2.0
"""How many times the longest silence all lines of a header may take together."""


def pool_classes(guard: Callable[[str], None] | None, patience: float) -> dict[str, Any]:
    """Connection pools whose connections show their peer to ``guard`` before anything is sent.

    Asking for the name's address first would not do: it may be another one a moment later. ``patience`` bounds each
    step of sending, for which the library would go by the time that connecting may take.
    """
    header_time = _HEADER_TIME * patience

    def checked(connected: socket.socket) -> socket.socket:
        if guard is not None:
            try:
                guard(connected.getpeername()[0])
            except BaseException:
                connected.close()
                raise
        return connected

    class Answer(HTTPResponse):
        def begin(self) -> None:
            super().begin()
            # Two lengths, or one that is none, are read differently by different programs.
            lengths = {text.strip() for text in self.headers.get_all("Content-Length", ())}
            if len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", text) for text in lengths):
                raise InvalidInput("the answer has a malformed Content-Length")

    class Plain(HTTPConnection):
        response_class = Answer

        def _new_conn(self) -> socket.socket:
            return checked(super()._new_conn())

        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(patience)

        def getresponse(self) -> Any:
            with _watched(self.sock, header_time):
                return super().getresponse()

    class Tls(HTTPSConnection):
        response_class = Answer

        def _new_conn(self) -> socket.socket:
            return checked(super()._new_conn())

        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(patience)

        def getresponse(self) -> Any:
            with _watched(self.sock, header_time):
                return super().getresponse()

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = Tls

        def _validate_conn(self, conn: Any) -> None:
            # As the pool does, without its warning where verification is off: that was asked for.
            if conn.is_closed:
                conn.connect()

    return {"http": PlainPool, "https": TlsPool}


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


def _cut(connected: socket.socket | None) -> None:
    try:
        if connected is not None:
            connected.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
