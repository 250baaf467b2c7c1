# SPDX-License-Identifier: Apache-2.0
"""Event bus: passes events to the subscribers of the moment. Nothing is kept for later ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from google.protobuf.message import Message

from lamella.protocol.proto.types_pb2 import Envelope
from lamella.protocol.wire import packed, timestamp
from lamella.service.grpc.rpc import AnswerQueue, Call

MAX_WAITING: Final = 10_000
"""Events that may wait for a subscriber; beyond that the oldest are dropped."""


class Bus:
    """Publishes events to subscribers. Safe for use by several threads."""

    def __init__(self) -> None:
        self._subscribers: set[AnswerQueue] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def subscribers(self) -> int:
        """Number of subscribers."""
        return len(self._subscribers)

    def publish(self, namespace: str, topic: str, event: Message) -> None:
        """Publish an event that has just happened in ``namespace``."""
        if self._subscribers:
            now = timestamp(time.time_ns())
            self.forward(Envelope(timestamp=now, namespace=namespace, topic=topic, event=packed(event)))

    def forward(self, envelope: Envelope) -> None:
        """Publish an event as another publisher has made it."""
        with self._lock:
            subscribers = tuple(self._subscribers)
        for subscriber in subscribers:
            subscriber.put(envelope)

    def subscribe(self, call: Call, wanted: Callable[[Envelope], bool] | None = None) -> AnswerQueue:
        """The events that are ``wanted``, from now on until the client goes or the bus is closed."""
        subscriber = AnswerQueue(MAX_WAITING, wanted)
        with self._lock:
            if self._closed:
                subscriber.end()
                return subscriber
            self._subscribers.add(subscriber)
        call.when_gone(lambda: self._unsubscribe(subscriber))
        return subscriber

    def close(self) -> None:
        """End all subscriptions, once their waiting events are sent."""
        with self._lock:
            self._closed = True
            subscribers, self._subscribers = self._subscribers, set()
        for subscriber in subscribers:
            subscriber.end()

    def _unsubscribe(self, subscriber: AnswerQueue) -> None:
        with self._lock:
            self._subscribers.discard(subscriber)
