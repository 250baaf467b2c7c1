# SPDX-License-Identifier: Apache-2.0
"""Flow control of one connection: windows in both directions (RFC 9113, section 5.2), and the memory of requests.

A stream's window is granted again unless too many of its messages are queued for the call, so that a slow call delays
only its own stream. An unfinished message does not hold the window back, since it may be larger than the window.
Unfinished and queued messages count against the connection's share of memory: beyond it, calls fail with
RESOURCE_EXHAUSTED. The connection's window is always granted again.

*Owed* bytes were received and not granted again. *Held* bytes are in memory. *Leased* bytes were acquired from the
connection's quota, in steps, to cover the held ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final

from lamella.errors import Exhausted
from lamella.service.grpc.http2 import DEFAULT_WINDOW, FLOW_CONTROL_ERROR, MAX_WINDOW, ConnectionBroken
from lamella.service.grpc.quota import Quota

WINDOW: Final = 4 << 20
"""Receive window of a stream, in bytes."""

CONNECTION_WINDOW: Final = 64 << 20
"""Receive window of a connection, in bytes."""

MAX_HELD: Final = 512 << 20
"""Limit of the bytes of requests in memory, for all connections together."""

_WAITING: Final = 4 << 20
"""Cost of a stream's queued messages above which the stream gets no further window, in bytes."""

_SCARCE: Final = 64 << 20
"""Bytes held for a connection above which only streams without queued messages get further windows."""

_STEP: Final = 1 << 20
"""Granularity of leases, in bytes."""


class StreamFlow:
    """Counters of one stream, which its connection's `FlowControl` alone changes."""

    __slots__ = ("closed", "ended", "owed", "partial", "queued", "send")

    def __init__(self, send: int) -> None:
        self.send = send
        """Bytes that the server may send."""
        self.owed = 0
        """Bytes received and not granted again by WINDOW_UPDATE."""
        self.partial = 0
        """Bytes of the unfinished message."""
        self.queued = 0
        """Cost of the messages that the call has not taken yet, in bytes."""
        self.ended = False
        """The client has ended the stream."""
        self.closed = False
        """The call is over."""


class FlowControl:
    """Windows of a connection and its streams. One thread receives; any number of threads send and take messages."""

    def __init__(self, memory: Quota) -> None:
        """``memory`` is the connection's quota of `MAX_HELD`."""
        self._memory = memory
        self.lock = threading.Lock()
        """Held to change the windows, and to read them together with the settings that they follow."""
        self._grown = threading.Condition(self.lock)
        self._send = DEFAULT_WINDOW
        """Bytes that the server may send on the connection."""
        self._initial = DEFAULT_WINDOW
        """Send window of a new stream."""
        self._owed = 0
        self._held = 0
        self._leased = 0

    def open(self) -> StreamFlow:
        """The counters of a new stream."""
        return StreamFlow(self._initial)

    def close(self, stream: StreamFlow) -> None:
        """End a call: release the memory of its messages."""
        with self.lock:
            stream.closed = True
            self._release(stream.partial + stream.queued)
            stream.partial = stream.queued = 0

    def end(self) -> None:
        """End the connection, after all its streams: return the leased memory to the quota."""
        with self.lock:
            self._memory.release(self._leased)
            self._leased = 0

    # Sending -------------------------------------------------------------------------------------------------------

    def set_initial_window(self, size: int, streams: Iterable[StreamFlow]) -> None:
        """Apply SETTINGS_INITIAL_WINDOW_SIZE, to the open ``streams`` too. Hold `lock`. Raises ConnectionBroken."""
        if size > MAX_WINDOW:
            raise ConnectionBroken(FLOW_CONTROL_ERROR, f"an initial window of {size} bytes")
        for stream in streams:
            stream.send += size - self._initial
            if stream.send > MAX_WINDOW:
                raise ConnectionBroken(FLOW_CONTROL_ERROR, "the window of a stream exceeds 2^31-1 bytes")
        self._initial = size
        self._grown.notify_all()

    def grow(self, stream: StreamFlow | None, amount: int) -> bool:
        """Apply a WINDOW_UPDATE of a stream, or of the connection; False if the window exceeds 2^31-1 bytes."""
        with self.lock:
            if stream is None:
                self._send += amount
                window = self._send
            else:
                stream.send += amount
                window = stream.send
            self._grown.notify_all()
        return window <= MAX_WINDOW

    def reserve(self, stream: StreamFlow, wanted: int, least: int) -> int:
        """Take up to ``wanted`` bytes off both send windows; 0 if they have fewer than ``least``. Hold `lock`."""
        amount = min(wanted, self._send, stream.send)
        if amount < least:
            return 0
        self._send -= amount
        stream.send -= amount
        return amount

    def wait(self, stream: StreamFlow, check: Callable[[], None]) -> None:
        """Wait until both send windows have bytes. ``check`` runs after each `wake`; its exceptions end the wait."""
        with self.lock:
            while min(self._send, stream.send) <= 0:
                check()
                self._grown.wait()

    def wake(self) -> None:
        """Make every thread in `wait` call its check."""
        with self.lock:
            self._grown.notify_all()

    # Receiving -----------------------------------------------------------------------------------------------------

    def receive(self, size: int) -> int:
        """Count ``size`` bytes of DATA on the connection; return the bytes of a WINDOW_UPDATE for it, or 0."""
        self._owed += size
        if self._owed < CONNECTION_WINDOW // 4:
            return 0
        owed, self._owed = self._owed, 0
        return owed

    def receive_on(self, stream: StreamFlow, size: int, partial: int, queued: int) -> int:
        """Count ``size`` bytes of DATA on a stream; return the bytes of a WINDOW_UPDATE for it, or 0.

        ``partial`` is the new total of bytes of the unfinished message; ``queued`` is the cost of the messages that
        these bytes completed, which are added to the queue.
        Raises ConnectionBroken beyond the window, Exhausted beyond the share of memory.
        """
        with self.lock:
            if stream.closed:
                return 0
            stream.owed += size
            if stream.owed > WINDOW:
                raise ConnectionBroken(FLOW_CONTROL_ERROR, "more bytes than the window of the stream")
            self._held += partial - stream.partial + queued
            stream.partial = partial
            stream.queued += queued
            if self._held > self._leased:
                self._lease()
            return self._grant(stream)

    def take(self, stream: StreamFlow, cost: int) -> int:
        """Count a message of ``cost`` bytes as taken by its call; return the bytes of a WINDOW_UPDATE, or 0."""
        with self.lock:
            cost = min(cost, stream.queued)  # a call that is over has none
            stream.queued -= cost
            self._release(cost)
            return self._grant(stream)

    def _grant(self, stream: StreamFlow) -> int:
        if stream.owed < WINDOW // 4 or stream.ended or stream.closed:
            return 0
        if stream.queued > (_WAITING if self._held < _SCARCE else 0):
            return 0
        owed, stream.owed = stream.owed, 0
        return owed

    def _lease(self) -> None:
        wanted = -(-(self._held - self._leased) // _STEP) * _STEP
        if not self._memory.acquire(wanted):
            raise Exhausted(
                f"requests of this client take {self._held} bytes of memory, which is its share",
                hint="send fewer messages at once",
            )
        self._leased += wanted

    def _release(self, amount: int) -> None:
        self._held -= amount
        spare = (self._leased - self._held) // _STEP * _STEP
        if spare > _STEP:
            self._leased -= spare
            self._memory.release(spare)
