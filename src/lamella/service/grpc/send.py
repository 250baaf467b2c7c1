# SPDX-License-Identifier: Apache-2.0
"""Writing to one client: frames in the order in which they are given, for many threads.

The thread that writes a frame holds the write lock until the client has made room for it. The thread that reads from
the client never waits for that lock while it reads: it leaves its frames to the thread that holds it. If no thread
does, it writes itself, and may wait for room. No thread waits for a flow-control window with the lock held, because
windows grow by what is read.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from lamella.service.grpc import http2
from lamella.service.grpc.counters import Counters
from lamella.service.grpc.flow import FlowControl
from lamella.service.grpc.http2 import ConnectionBroken
from lamella.service.grpc.stream import Part, Stream

_PENDING: Final = 10_000
"""Frames that may wait for a client that sends much and reads nothing."""

_BURST: Final = 1 << 20
"""Bytes of data written at once at most."""

LAST: Final = http2.END_HEADERS | http2.END_STREAM
"""The flags of trailers."""


class Sender:
    """Writes frames and answers to one client."""

    def __init__(self, peer: socket.socket, flow: FlowControl, counters: Counters | None) -> None:
        self._socket = peer
        self._flow = flow
        self._counters = counters
        self._lock = threading.Lock()
        self._pending: deque[bytes] = deque()
        self._frame = http2.DEFAULT_FRAME

    def set_frame_size(self, largest: int) -> None:
        """Apply SETTINGS_MAX_FRAME_SIZE. Hold the lock of the flow control. Raises ConnectionBroken."""
        if not http2.DEFAULT_FRAME <= largest < 1 << 24:
            raise ConnectionBroken(http2.PROTOCOL_ERROR, f"a maximum frame size of {largest} bytes")
        self._frame = largest

    # Answers -------------------------------------------------------------------------------------------------------

    def transmit(self, stream: Stream, parts: Sequence[Part], size: int) -> None:
        """Send messages of ``size`` bytes as fast as the client accepts them. Raises Cancelled, OSError."""
        waiting = deque(parts)
        while size:
            stream.check()
            amount = self.try_transmit(stream, waiting, size)
            if not amount:
                self._flow.wait(stream.flow, stream.check)
            size -= amount

    def try_transmit(self, stream: Stream, parts: deque[Part], size: int) -> int:
        """Send as many of ``size`` bytes as the client accepts now, out of ``parts``; returns how many were sent."""
        with self._lock:
            amount = self._send_data(stream, parts, min(size, _BURST), 1)
        self.flush()
        return amount

    def answer_at_once(
        self, stream: Stream, parts: Sequence[Part], size: int, trailers: bytes, sending: Callable[[], object]
    ) -> bool:
        """Send a whole answer if the client accepts it now and no other thread writes; returns whether it was sent.

        ``sending`` is called before the first byte is written.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            last = http2.frame(http2.HEADERS, LAST, stream.id, trailers)
            return self._send_data(stream, deque(parts), size, size, last, sending) > 0
        finally:
            self._lock.release()
            self.flush()

    def _send_data(
        self,
        stream: Stream,
        parts: deque[Part],
        size: int,
        least: int,
        last: bytes = b"",
        sending: Callable[[], object] | None = None,
    ) -> int:
        """Write at least ``least`` of ``size`` bytes, unless the windows have fewer, and the frame ``last``.

        Queued frames go first: an acknowledgement of settings precedes the data that follow these settings, and
        comes after the data that do not.
        """
        with self._flow.lock:
            amount = self._flow.reserve(stream.flow, size, least)
            if not amount:
                return 0
            out: list[Part] = self._take_pending()
            largest = self._frame
        if not stream.started:
            out.append(http2.frame(http2.HEADERS, http2.END_HEADERS, stream.id, http2.ANSWER))
            stream.started = True
        _cut(out, stream.id, parts, amount, largest)
        if last:
            out.append(last)
        if sending is not None:
            sending()
        self._write(out)
        return amount

    # Frames --------------------------------------------------------------------------------------------------------

    def send(self, out: list[Part]) -> None:
        """Send frames after those of other threads. Raises OSError when the client is gone."""
        with self._lock:
            self._write([*self._take_pending(), *out])
        self.flush()

    def control(self, frame: bytes) -> None:
        """Send a frame at once, or leave it to the thread that writes. Raises OSError."""
        self._pending.append(frame)
        self.flush()

    def queue(self, frame: bytes) -> None:
        """Send a frame with the next ones, or at `flush`. Raises ConnectionBroken if too many wait."""
        self._pending.append(frame)
        if len(self._pending) > _PENDING:
            raise ConnectionBroken(http2.ENHANCE_YOUR_CALM, "the client sends and does not read")

    def offer(self, frame: bytes) -> None:
        """Send a frame if that takes no waiting, else with the next ones. Raises nothing."""
        self._pending.append(frame)
        try:
            ready = select.poll()
            ready.register(self._socket, select.POLLOUT)
            if ready.poll(0):
                self.flush()
        except (OSError, ValueError):  # the client is gone
            pass

    def send_last(self, frame: bytes, seconds: float) -> None:
        """Send the connection's last frame. Raises OSError, also if the client makes no room in twice ``seconds``."""
        self._pending.append(frame)
        if self._lock.acquire(timeout=seconds):
            try:
                self._socket.settimeout(seconds)
                self._write(self._take_pending())
            finally:
                self._lock.release()

    def flush(self) -> None:
        """Send the queued frames, or leave them to the thread that writes. Raises OSError."""
        while self._pending and self._lock.acquire(blocking=False):
            try:
                self._write(self._take_pending())
            finally:
                self._lock.release()

    def shut_down(self) -> None:
        """End the connection: reading and writing fail from now on. Raises nothing."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """Close the socket once no thread writes: its number may be another file's then."""
        with self._lock:
            self._socket.close()

    def _take_pending(self) -> list[Part]:
        """The queued frames as one part, since sendmsg takes at most 1,024."""
        pending = self._pending
        if not pending:
            return []
        found = bytearray()
        while pending:
            found += pending.popleft()
        return [bytes(found)]

    def _write(self, out: list[Part]) -> None:
        left = sum(map(len, out))
        if self._counters is not None:
            self._counters.bytes(left, 0)
        while left:
            sent = self._socket.sendmsg(out)
            left -= sent
            if left:
                at = 0
                while sent >= len(out[at]):
                    sent -= len(out[at])
                    at += 1
                out = [memoryview(out[at])[sent:], *out[at + 1 :]]


def _cut(out: list[Part], number: int, parts: deque[Part], amount: int, largest: int) -> None:
    """Move ``amount`` bytes from ``parts`` to ``out``, in frames of at most ``largest`` bytes."""
    while amount:
        length = min(amount, largest)
        amount -= length
        out.append(http2.frame_head(length, http2.DATA, 0, number))
        while length:
            part = parts[0]
            size = len(part)
            if size <= length:
                out.append(part)
                parts.popleft()
                length -= size
            else:
                view = memoryview(part)
                out.append(view[:length])
                parts[0] = view[length:]
                length = 0
