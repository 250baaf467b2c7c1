# SPDX-License-Identifier: Apache-2.0
"""Events: what has happened, told to whoever subscribes while it happens. Nothing is kept for later."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from google.protobuf.message import Message

from lamella.protocol.proto.types_pb2 import Envelope
from lamella.protocol.wire import packed, timestamp
from lamella.service.grpc.rpc import Call

MAX_WAITING: Final = 10_000
"""Events that a subscriber may be behind; the oldest are dropped beyond that."""


class Bus:
    """Hands events on to subscribers."""

    def __init__(self) -> None:
        self._subscribers: set[_Subscriber] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def subscribers(self) -> int:
        """How many listen."""
        return len(self._subscribers)

    def publish(self, namespace: str, topic: str, event: Message) -> None:
        """Tell of ``event``, which has just happened in ``namespace``."""
        if self._subscribers:
            now = timestamp(time.time_ns())
            self.forward(Envelope(timestamp=now, namespace=namespace, topic=topic, event=packed(event)))

    def forward(self, envelope: Envelope) -> None:
        """Tell of an event as somebody else has told it."""
        with self._lock:
            subscribers = tuple(self._subscribers)
        for subscriber in subscribers:
            subscriber.put(envelope)

    def subscribe(self, call: Call) -> Iterator[Envelope]:
        """What happens from now on, until the client goes or the bus is closed."""
        subscriber = _Subscriber()
        with self._lock:
            if self._closed:
                return iter(())
            self._subscribers.add(subscriber)
        call.when_gone(subscriber.end)
        return self._each(subscriber)

    def close(self) -> None:
        """End all subscriptions."""
        with self._lock:
            self._closed = True
            subscribers = tuple(self._subscribers)
        for subscriber in subscribers:
            subscriber.end()

    def _each(self, subscriber: _Subscriber) -> Iterator[Envelope]:
        try:
            yield from subscriber
        finally:
            with self._lock:
                self._subscribers.discard(subscriber)


class _Subscriber:
    """A queue that never blocks whoever puts something in."""

    def __init__(self) -> None:
        self._waiting: deque[Envelope] = deque(maxlen=MAX_WAITING)
        self._changed = threading.Condition()
        self._ended = False

    def put(self, envelope: Envelope) -> None:
        with self._changed:
            self._waiting.append(envelope)
            self._changed.notify()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()

    def __iter__(self) -> Iterator[Envelope]:
        while True:
            with self._changed:
                while not self._waiting and not self._ended:
                    self._changed.wait()
                if not self._waiting:
                    return
                envelope = self._waiting.popleft()
            yield envelope
