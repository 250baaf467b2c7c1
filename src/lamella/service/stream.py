# SPDX-License-Identifier: Apache-2.0
"""A call of a connection, and what is on its way to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from typing import Any, Final

from lamella.errors import InvalidInput
from lamella.service import http2
from lamella.service.calls import Call, Method
from lamella.service.http2 import ConnectionBroken
from lamella.service.messages import HEAD, unframed

WINDOW: Final = 4 << 20
"""Bytes that a client may send before it is told that it may send more."""

_WAITING: Final = 4 << 20
"""Cost of messages that a call has not taken yet, in bytes, above which its client may send no more."""

_COST: Final = HEAD + 64
"""Bytes that a message costs besides its own, so that many small ones are not had for nothing."""


class Stream(Call):
    """A call, with the messages that have come and have not been taken yet."""

    __slots__ = (
        *("_arrived", "_flow", "_inbox", "_more", "_owed", "_partial", "_taken", "_wake"),
        *("began", "id", "method", "started", "window"),
    )

    def __init__(
        self,
        number: int,
        method: Method,
        metadata: Mapping[str, str],
        window: int,
        flow: threading.Lock,
        *,
        more: Callable[[bytes], object],
        wake: Callable[[], object],
    ) -> None:
        """``window`` bytes may be sent, and whoever changes that holds ``flow``.

        ``more`` sends the frame that lets the client go on, ``wake`` wakes those who wait to send.
        """
        super().__init__(metadata)
        self.id = number
        self.method = method
        self.began = time.monotonic()
        self.window = window
        """Bytes that may be sent."""
        self.started = False
        """The headers of the answer are sent."""
        self._flow = flow
        self._more = more
        self._wake = wake
        self._partial = bytearray()
        """Of a message that has not arrived as a whole."""
        self._inbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._arrived = 0
        self._taken = 0
        """Cost of the messages that have come, and of those that the call has taken."""
        self._owed = 0
        """Bytes that the client has sent and may send again."""

    # For the thread that reads -------------------------------------------------------------------------------------

    def receive(self, flags: int, payload: memoryview) -> None:
        """Take the messages out of what has come, and let the client go on unless too many wait.

        Raises ConnectionBroken, and Unsupported, Exhausted or InvalidInput for messages that are not taken.
        """
        with self._flow:
            self._owed += len(payload)
        if self._owed > WINDOW:
            raise ConnectionBroken(http2.FLOW_CONTROL_ERROR, "a client that sends more than it may")
        for message in unframed(self._partial, http2.unpadded(flags, payload)):
            if self._arrived and not self.method.takes_many:
                raise InvalidInput(f"more than one request for {self.method.path}, which takes one")
            self._arrived += len(message) + _COST
            self._inbox.put(message)
        if not flags & http2.END_STREAM:
            self._credit()

    def end(self) -> None:
        """The client has said all it will."""
        self.ending = True
        if self.method.takes_many:
            self._inbox.put(None)

    def first(self) -> bytes | None:
        """The message that has come first, None where none has or the call was cancelled."""
        return None if self._inbox.empty() else self._inbox.get()

    # For the call --------------------------------------------------------------------------------------------------

    def requests(self) -> Iterator[Any]:
        """The messages, as they come. Raises Cancelled where the client goes and has not said that they are all."""
        decode = self.method.request
        while True:
            message = self._inbox.get()
            if message is None:
                self.check()
                return
            self._taken += len(message) + _COST
            self._credit()
            yield decode(message)

    def cancel(self) -> None:
        """As the base does, and wakes whoever waits for a message or to send one."""
        if self.cancelled:
            return
        super().cancel()
        self._inbox.put(None)
        self._wake()

    def _credit(self) -> None:
        """Let the client send more of the call's messages, unless too many wait to be taken."""
        if self._owed < WINDOW // 4 or self._arrived - self._taken > _WAITING:
            return
        with self._flow:
            owed, self._owed = self._owed, 0
        if owed and not self.ending:
            self._more(http2.window_update(self.id, owed))
