# SPDX-License-Identifier: Apache-2.0
"""A call of a connection, and what is on its way to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Final

from lamella.errors import Exhausted, InvalidInput, Unsupported
from lamella.protocol import MAX_MESSAGE
from lamella.service.grpc import http2
from lamella.service.grpc.http2 import ConnectionBroken
from lamella.service.grpc.rpc import Call, Encoded, Method

HEAD = 5
"""Bytes before each message."""

Part = bytes | memoryview


def framed(answers: Sequence[Any]) -> tuple[list[Part], int]:
    """The parts of messages with what goes before each, and how many bytes that is. Raises Exhausted."""
    parts: list[Part] = []
    total = 0
    for answer in answers:
        if isinstance(answer, Encoded):
            size = sum(map(len, answer.parts))
            parts.append(b"\0" + size.to_bytes(4, "big"))
            parts.extend(answer.parts)
        else:
            encoded = answer.SerializeToString()
            size = len(encoded)
            parts.append(b"\0" + size.to_bytes(4, "big") + encoded)
        if size > MAX_MESSAGE:
            raise Exhausted(f"an answer of {size} bytes, and {MAX_MESSAGE} is the limit", hint="ask with a filter")
        total += size + HEAD
    return parts, total


def unframed(partial: bytearray, payload: memoryview) -> list[bytes]:
    """The messages that are whole with ``payload``, which comes behind ``partial``; what is left is there afterwards.

    Raises Unsupported (compressed), Exhausted (too large).
    """
    size = len(payload) - HEAD
    if not partial and size >= 0 and int.from_bytes(payload[1:HEAD], "big") == size:
        _check(payload[0], size)
        return [bytes(payload[HEAD:])]
    partial += payload
    found = []
    while len(partial) >= HEAD:
        length = int.from_bytes(partial[1:HEAD], "big")
        _check(partial[0], length)
        end = HEAD + length
        if len(partial) < end:
            break
        with memoryview(partial) as whole:
            found.append(bytes(whole[HEAD:end]))
        del partial[:end]
    return found


def _check(compressed: int, length: int) -> None:
    if compressed:
        raise Unsupported("compressed messages are not taken")
    if length > MAX_MESSAGE:
        raise Exhausted(f"a message of {length} bytes, and {MAX_MESSAGE} is the limit")


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
