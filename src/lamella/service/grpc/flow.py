# SPDX-License-Identifier: Apache-2.0
"""What goes to one client: frames in the order in which they are given, and no more data than it takes.

Whoever writes a frame holds the lock for writing, as long as the client takes to make room for it. The thread that
reads from the client never waits for the lock while it reads, but leaves its frames to whoever has it, so that it goes
on while others write. Where nobody has it, that thread writes itself, and waits for room as anybody does. Nobody waits
with the lock held for a window, which grows by what is read.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from lamella.service.grpc import http2
from lamella.service.grpc.counters import Tally
from lamella.service.grpc.http2 import ConnectionBroken
from lamella.service.grpc.stream import Part, Stream

_BURST: Final = 1 << 20
"""Bytes that are written in one go."""

_PENDING: Final = 10_000
"""Frames that may wait for a client that asks much and reads nothing."""

LAST: Final = http2.END_HEADERS | http2.END_STREAM
"""The flags of the headers that end an answer."""


class Sender:
    """Sends to one client, for many threads."""

    def __init__(self, peer: socket.socket, tally: Tally | None) -> None:
        self._socket = peer
        self._tally = tally
        self._turn = threading.Lock()
        self._pending: deque[bytes] = deque()
        self.flow = threading.Lock()
        """Held to change what either side may send."""
        self._grown = threading.Condition(self.flow)
        self._window = http2.DEFAULT_WINDOW
        self.initial_window = http2.DEFAULT_WINDOW
        """Bytes that a new stream may send."""
        self._frame = http2.DEFAULT_FRAME

    # What the client takes -----------------------------------------------------------------------------------------

    def take_frames(self, largest: int) -> None:
        """The client takes payloads of ``largest`` bytes. Raises ConnectionBroken."""
        if not http2.DEFAULT_FRAME <= largest < 1 << 24:
            raise ConnectionBroken(http2.PROTOCOL_ERROR, f"frames of {largest} bytes")
        self._frame = largest

    def take_windows(self, size: int, streams: Iterable[Stream]) -> None:
        """Each stream may begin with ``size`` bytes, ``streams`` too, which have begun. Raises ConnectionBroken."""
        if size > http2.MAX_WINDOW:
            raise ConnectionBroken(http2.FLOW_CONTROL_ERROR, f"a window of {size} bytes")
        with self.flow:
            for stream in streams:
                stream.window += size - self.initial_window
            self.initial_window = size
            self._grown.notify_all()

    def take_more(self, stream: Stream | None, amount: int) -> None:
        """The client takes so many bytes more, of a stream or of all together. Raises ConnectionBroken."""
        with self.flow:
            if stream is None:
                self._window += amount
                if self._window > http2.MAX_WINDOW:
                    raise ConnectionBroken(http2.FLOW_CONTROL_ERROR, "too large a window")
            else:
                stream.window += amount
            self._grown.notify_all()

    def wake(self) -> None:
        """Have those who wait to send look again whether they still should."""
        with self.flow:
            self._grown.notify_all()

    # Answers -------------------------------------------------------------------------------------------------------

    def transmit(self, stream: Stream, parts: Sequence[Part], size: int) -> None:
        """Send messages, as fast as the client takes them. Raises Cancelled where it takes no more."""
        out: list[Part] = []
        if not stream.started:
            out.append(http2.frame(http2.HEADERS, http2.END_HEADERS, stream.id, http2.ANSWER))
            stream.started = True
        waiting = deque(parts)
        while True:
            amount = self._reserve(stream, size)
            self._cut(out, stream.id, waiting, amount)
            self.send(out)
            size -= amount
            if not size:
                return
            out = []

    def answer_at_once(
        self, stream: Stream, parts: Sequence[Part], size: int, trailers: bytes, sending: Callable[[], object]
    ) -> bool:
        """Send a whole answer if the client takes it and nobody else is sending; whether that was so.

        ``sending`` is called before the first byte goes.
        """
        if not self._turn.acquire(blocking=False):
            return False
        try:
            if not self._reserve_at_once(stream, size):
                return False
            out: list[Part] = [http2.frame(http2.HEADERS, http2.END_HEADERS, stream.id, http2.ANSWER)]
            self._cut(out, stream.id, deque(parts), size)
            out.append(http2.frame(http2.HEADERS, LAST, stream.id, trailers))
            sending()
            self._write(out)
            return True
        finally:
            self._turn.release()
            self.flush()

    def _reserve(self, stream: Stream, wanted: int) -> int:
        with self.flow:
            while True:
                stream.check()
                amount = min(wanted, self._window, stream.window, _BURST)
                if amount > 0:
                    self._window -= amount
                    stream.window -= amount
                    return amount
                self._grown.wait()

    def _reserve_at_once(self, stream: Stream, wanted: int) -> bool:
        with self.flow:
            if wanted > min(self._window, stream.window):
                return False
            self._window -= wanted
            stream.window -= wanted
        return True

    def _cut(self, out: list[Part], number: int, parts: deque[Part], amount: int) -> None:
        """Move ``amount`` bytes to ``out``, in frames that the client takes."""
        largest = self._frame
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

    # Frames --------------------------------------------------------------------------------------------------------

    def send(self, out: list[Part]) -> None:
        """Send frames, waiting until others have sent theirs. Raises OSError where the client is gone."""
        with self._turn:
            self._write(out)
        self.flush()

    def control(self, frame: bytes) -> None:
        """Send a frame at once, or have whoever is sending do it. Raises OSError."""
        self._pending.append(frame)
        self.flush()

    def note(self, frame: bytes) -> None:
        """Have a frame sent with the next ones, or by `flush`. Raises ConnectionBroken where too many wait."""
        self._pending.append(frame)
        if len(self._pending) > _PENDING:
            raise ConnectionBroken(http2.ENHANCE_YOUR_CALM, "a client that does not read")

    def offer(self, frame: bytes) -> None:
        """Send a frame if that waits for nothing, else with whatever is sent next. Raises nothing."""
        self._pending.append(frame)
        try:
            ready = select.poll()
            ready.register(self._socket, select.POLLOUT)
            if ready.poll(0):
                self.flush()
        except (OSError, ValueError):  # the client is gone
            pass

    def part(self, frame: bytes, seconds: float) -> None:
        """Send the last frame that is sent, unless the client makes no room for it within ``seconds``, twice at most.

        Raises OSError, also where that is so.
        """
        self._pending.append(frame)
        if self._turn.acquire(timeout=seconds):
            try:
                self._socket.settimeout(seconds)
                self._write([])
            finally:
                self._turn.release()

    def flush(self) -> None:
        """Send what was noted, or have whoever is sending do it. Raises OSError."""
        while self._pending and self._turn.acquire(blocking=False):
            try:
                self._write([])
            finally:
                self._turn.release()

    def close(self) -> None:
        """Close the socket, once nobody sends: nobody is to write to a number that somebody else has been given."""
        with self._turn:
            self._socket.close()

    def _write(self, out: list[Part]) -> None:
        pending = self._pending
        if pending:  # as one part: there may be more of them than a call of the system takes parts
            first = bytearray()
            while pending:
                first += pending.popleft()
            out = [bytes(first), *out]
        if not out:
            return
        left = sum(map(len, out))
        if self._tally is not None:
            self._tally.bytes(left, 0)
        sent = self._socket.sendmsg(out)
        while sent < left:
            left -= sent
            at = 0
            while sent >= len(out[at]):
                sent -= len(out[at])
                at += 1
            out = [memoryview(out[at])[sent:], *out[at + 1 :]]
            sent = self._socket.sendmsg(out)
