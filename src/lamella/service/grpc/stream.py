# SPDX-License-Identifier: Apache-2.0
"""Calls of a connection, and the length-prefixed messages of gRPC."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final

from lamella.errors import Exhausted, InvalidInput, Unsupported
from lamella.protocol import MAX_MESSAGE
from lamella.service.grpc import http2
from lamella.service.grpc.flow import FlowControl
from lamella.service.grpc.rpc import Call, Encoded, Method

_PREFIX: Final = 5
"""Bytes before each message: the compressed flag and the length."""

_SMALL: Final = 64 << 10
"""Cost of a request below which it is not counted, if its call can begin."""

_COST: Final = _PREFIX + 64
"""Bytes that a waiting message costs besides its own, so that many small ones are not free."""

Part = bytes | memoryview


def encode_messages(answers: Sequence[Any]) -> tuple[list[Part], int]:
    """Messages with their prefixes, in parts, and the bytes of all parts. Raises Exhausted."""
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
            raise Exhausted(f"an answer of {size} bytes exceeds the limit of {MAX_MESSAGE}", hint="ask with a filter")
        total += size + _PREFIX
    return parts, total


def split_messages(partial: bytearray, payload: memoryview) -> list[bytes]:
    """The messages that ``payload`` completes, after the bytes in ``partial``; keeps the remainder there.

    Raises Unsupported (compressed), Exhausted (too large).
    """
    size = len(payload) - _PREFIX
    if not partial and size >= 0 and int.from_bytes(payload[1:_PREFIX], "big") == size:
        _check_prefix(payload[0], size)
        return [bytes(payload[_PREFIX:])]
    partial += payload
    found = []
    while len(partial) >= _PREFIX:
        length = int.from_bytes(partial[1:_PREFIX], "big")
        _check_prefix(partial[0], length)
        end = _PREFIX + length
        if len(partial) < end:
            break
        with memoryview(partial) as whole:
            found.append(bytes(whole[_PREFIX:end]))
        del partial[:end]
    return found


def _check_prefix(compressed: int, length: int) -> None:
    if compressed:
        raise Unsupported("compressed messages are not supported")
    if length > MAX_MESSAGE:
        raise Exhausted(f"a message of {length} bytes exceeds the limit of {MAX_MESSAGE}")


class Stream(Call):
    """A call, and the messages that wait for it."""

    __slots__ = (
        *("_arrived", "_control", "_inbox", "_partial", "_send_control"),
        *("began", "flow", "id", "method", "started"),
    )

    def __init__(
        self,
        number: int,
        method: Method,
        metadata: Mapping[str, str],
        control: FlowControl,
        send_control: Callable[[bytes], object],
    ) -> None:
        """``send_control`` sends a frame at once, or with the next that is sent."""
        super().__init__(metadata)
        self.id = number
        self.method = method
        self.began = time.monotonic()
        self.flow = control.open()
        self.started = False
        """The headers of the answer are sent."""
        self._control = control
        self._send_control = send_control
        self._partial = bytearray()
        """Bytes of the unfinished message."""
        self._inbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._arrived = False

    # For the thread that reads -------------------------------------------------------------------------------------

    def receive(self, flags: int, payload: memoryview) -> None:
        """Queue the messages of a DATA frame, and grant the client further bytes unless too many messages wait.

        Raises ConnectionBroken, and Unsupported, Exhausted or InvalidInput for messages that are refused.
        """
        messages = split_messages(self._partial, http2.unpadded(flags, payload))
        cost = 0
        for message in messages:
            if self._arrived and not self.method.takes_many:
                raise InvalidInput(f"more than one request for {self.method.path}, which takes one")
            self._arrived = True
            cost += len(message) + _COST
        if flags & http2.END_STREAM:
            self.flow.ended = True
            if cost < _SMALL and not self.method.takes_many:
                cost = 0  # the call takes it at once
        granted = self._control.receive_on(self.flow, len(payload), len(self._partial), cost)
        for message in messages:
            self._inbox.put(message)
        if granted:
            self._send_control(http2.window_update(self.id, granted))

    def end(self) -> None:
        """The client has ended the stream."""
        self.ending = self.flow.ended = True
        if self.method.takes_many:
            self._inbox.put(None)

    def first(self) -> bytes | None:
        """The first message; None if none has arrived."""
        return None if self._inbox.empty() else self._inbox.get()

    # For the call --------------------------------------------------------------------------------------------------

    def requests(self) -> Iterator[Any]:
        """The messages, as they arrive. Raises Cancelled if the client goes before it has ended the stream."""
        decode = self.method.request
        while True:
            message = self._inbox.get()
            if message is None:
                self.check()
                return
            granted = self._control.take(self.flow, len(message) + _COST)
            if granted:
                self._send_control(http2.window_update(self.id, granted))
            yield decode(message)

    def cancel(self) -> None:
        if self.cancelled:
            return
        super().cancel()
        self._inbox.put(None)
        self._control.wake()

    def close(self) -> None:
        """The call is over: release its messages."""
        if not self.method.takes_many and not self.flow.partial and not self.flow.queued:
            self.flow.closed = True
            return
        self._control.close(self.flow)
        self._partial = bytearray()
        if self.method.takes_many:
            try:
                while True:
                    self._inbox.get_nowait()
            except Empty:
                self._inbox.put(None)  # for a thread that waits in `requests`
