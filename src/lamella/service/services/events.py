# SPDX-License-Identifier: Apache-2.0
"""The event bus, and the Events service over it. No event is stored."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from lamella.errors import InvalidInput
from lamella.protocol.proto import events_pb2 as pb
from lamella.protocol.proto.types_pb2 import Envelope
from lamella.protocol.wire import packed, timestamp, type_name
from lamella.service.grpc.rpc import AnswerQueue, Call, quick
from lamella.store.metadata.filters import Path, parse_filters
from lamella.store.metadata.labels import MAX_NAMESPACE, check_namespace

MAX_WAITING: Final = 10_000
"""Events that may wait for a subscriber; beyond that the oldest are dropped."""

MAX_WAITING_BYTES: Final = 16 << 20
"""Bytes of these events, of which one may be larger."""

_NAME: Final = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")


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
        size = len(envelope.event.value)
        for subscriber in subscribers:
            subscriber.put(envelope, size)

    def subscribe(self, call: Call, wanted: Callable[[Envelope], bool] | None = None) -> AnswerQueue:
        """The events that are ``wanted``, from now on until the client goes or the bus is closed."""
        subscriber = AnswerQueue(MAX_WAITING, MAX_WAITING_BYTES, wanted)
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


class Events:
    """The Events service."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def publish(self, request: pb.PublishRequest, call: Call) -> Empty:
        """Publish an event in the call's namespace."""
        namespace = check_namespace(call.namespace)
        _check_topic(request.topic)
        now = timestamp(time.time_ns())
        self._bus.forward(Envelope(timestamp=now, namespace=namespace, topic=request.topic, event=request.event))
        return Empty()

    def forward(self, request: pb.ForwardRequest, call: Call) -> Empty:  # noqa: ARG002
        """Publish an event of another publisher."""
        envelope = request.envelope
        check_namespace(envelope.namespace)
        _check_topic(envelope.topic)
        if not envelope.HasField("timestamp"):
            raise InvalidInput("an event without a timestamp")
        self._bus.forward(envelope)
        return Empty()

    @quick()
    def subscribe(self, request: pb.SubscribeRequest, call: Call) -> AnswerQueue:
        """The events of all namespaces that pass the filters, from now on until the client goes."""
        filters = parse_filters(tuple(request.filters))
        if filters.everything:
            return self._bus.subscribe(call)
        return self._bus.subscribe(call, lambda envelope: filters.matches(_fields(envelope)))


def _check_topic(topic: str) -> None:
    parts = topic.split("/")
    if len(parts) < 2 or parts[0]:
        raise InvalidInput(f"the topic {topic[:200]!r} must start with a slash")
    for part in parts[1:]:
        if len(part) > MAX_NAMESPACE or not _NAME.fullmatch(part):
            raise InvalidInput(f"the topic {topic[:200]!r} has a malformed part {part[:100]!r}")


def _fields(envelope: Envelope) -> Callable[[Path], str | None]:
    """Looks up the fields of an event that filters may name."""

    def look(path: Path) -> str | None:
        match path:
            case ("namespace",):
                return envelope.namespace or None
            case ("topic",):
                return envelope.topic or None
            case ("event", *rest) if rest:
                return _inside(envelope.event, tuple(rest))
            case _:
                return None

    return look


def _inside(event: Any, path: Path) -> str | None:
    """A field inside an event of a known type, if it is a string or a label."""
    try:
        described = Default().FindMessageTypeByName(type_name(event))
        message: Message = GetMessageClass(described).FromString(event.value)
    except (KeyError, DecodeError):
        return None
    field = described.fields_by_name.get(path[0])
    if field is None:
        return None
    value = getattr(message, field.name)
    if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated and len(path) == 1:
        return str(value) or None
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        found = value.get(".".join(path[1:]))
        return None if found is None else str(found)
    return None
