# SPDX-License-Identifier: Apache-2.0
"""TLS inside of TLS: to a registry, through a proxy that is itself reached by TLS."""

from __future__ import annotations

import ssl
from typing import Any, Final

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
