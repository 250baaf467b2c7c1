# SPDX-License-Identifier: Apache-2.0
"""The Streaming service: streams that clients open before the call that uses them, and bytes over them.

The receiver grants a window of bytes and the sender stays within it, so a client that requests much and reads nothing
cannot fill the memory of the server.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias, TypeVar

from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from lamella.errors import AlreadyExists, Cancelled, Conflict, InvalidInput, NotFound
from lamella.protocol.proto.streaming_pb2 import StreamInit
from lamella.protocol.proto.transfers_pb2 import Data, WindowUpdate
from lamella.protocol.wire import packed, type_name
from lamella.service.grpc.rpc import Call, only

M = TypeVar("M", bound=Message)

CHUNK: Final = 32 << 10
"""Bytes of a Data message at most, on which clients rely."""

WINDOW: Final = 1 << 20
"""Bytes that a client may always send before it waits."""

SOON: Final = 1.0
"""Seconds for a client to receive the last messages."""

_WAITING: Final = 8
"""Messages that wait to be sent, at most."""
_WAITING_UPDATES: Final = 1000
_UPDATES_SIZE: Final = 1 << 20
"""Bytes of waiting messages above which updates are dropped; annotations in them have any size."""


def unpacked(value: Packed, kind: type[M]) -> M:
    """Unpack a message of type ``kind``. Raises InvalidInput, also for another type."""
    wanted = kind.DESCRIPTOR.full_name
    if type_name(value) != wanted:
        raise InvalidInput(f"{value.type_url[:200]!r} is not the expected {wanted}")
    try:
        return kind.FromString(value.value)
    except DecodeError as problem:
        raise InvalidInput(f"malformed {wanted}") from problem


class Exchange:
    """A stream of messages with a client that belongs to another of its calls."""

    def __init__(self, requests: Iterator[Packed], call: Call) -> None:
        self._requests = requests
        self._call = call
        self._outgoing: deque[Packed] = deque()
        self._size = 0
        """Bytes of the waiting messages."""
        self._changed = threading.Condition()
        self._ending = False
        self._sent = False
        call.when_gone(self._wake)

    def receive(self) -> Packed | None:
        """The next message, None at the end. Raises Cancelled if the client is gone."""
        return next(self._requests, None)

    def send(self, message: Message) -> None:
        """Queue a message, once the queue has room. Raises Cancelled if the client is gone."""
        value = packed(message)
        with self._changed:
            while len(self._outgoing) >= _WAITING and not self._call.cancelled:
                self._changed.wait()
            self._call.check()
            self._put(value)

    def tell(self, message: Message) -> None:
        """Queue an optional message, unless the client is far behind. Waits for nothing."""
        value = packed(message)
        with self._changed:
            small = self._size + len(value.value) <= _UPDATES_SIZE and len(self._outgoing) < _WAITING_UPDATES
            if small or not self._outgoing:
                self._put(value)

    def end(self) -> None:
        """End the stream after the waiting messages."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Act as if the client had gone. Further calls do nothing."""
        self._call.cancel()

    def await_sent(self, seconds: float) -> None:
        """Wait until all messages are sent or the client is gone, at most ``seconds``."""
        with self._changed:
            self._changed.wait_for(lambda: self._sent, seconds)

    def outgoing(self) -> Iterator[Packed]:
        """The messages to send, as they are queued."""
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._outgoing or self._ending or self._call.cancelled)
                    if not self._outgoing or self._call.cancelled:
                        return
                    value = self._outgoing.popleft()
                    self._size -= len(value.value)
                    self._changed.notify_all()
                yield value
        finally:
            with self._changed:
                self._sent = True
                self._changed.notify_all()

    def _put(self, value: Packed) -> None:
        self._outgoing.append(value)
        self._size += len(value.value)
        self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


Take: TypeAlias = Callable[[str], Exchange]
"""Gives the stream of a name to the current call."""


class Streaming:
    """The Streaming service: streams by namespace and id."""

    def __init__(self) -> None:
        self._exchanges: dict[tuple[str, str], Exchange] = {}
        self._taken: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def stream(self, requests: Iterator[Packed], call: Call) -> Iterator[Packed]:
        """Open a stream. Raises InvalidInput, AlreadyExists (the id)."""
        name = unpacked(only(requests), StreamInit).id
        if not name:
            raise InvalidInput("a stream without an id")
        key = call.namespace, name
        exchange = Exchange(requests, call)
        with self._lock:
            if key in self._exchanges:
                raise AlreadyExists(f"stream {name[:200]!r} is already open")
            self._exchanges[key] = exchange
        try:
            yield packed(Empty())
            yield from exchange.outgoing()
        finally:
            with self._lock:
                del self._exchanges[key]
                self._taken.discard(key)

    def leave(self) -> None:
        """End the streams without a call: no further calls are served."""
        with self._lock:
            idle = [exchange for key, exchange in self._exchanges.items() if key not in self._taken]
        for exchange in idle:
            exchange.end()

    def take(self, call: Call, name: str) -> Exchange:
        """Give a client's stream to ``call``, and to no other. Raises NotFound, Conflict.

        The end of the client's ``call`` cancels the stream.
        """
        key = call.namespace, name
        with self._lock:
            exchange = self._exchanges.get(key)
            if exchange is None:
                raise NotFound(f"stream {name[:200]!r} is not open")
            if key in self._taken:
                raise Conflict(f"stream {name[:200]!r} is in use")
            self._taken.add(key)
        call.when_gone(exchange.cancel)
        return exchange


def receive_bytes(exchange: Exchange) -> Iterator[bytes]:
    """The bytes that the client sends. Raises Cancelled, InvalidInput (another message, beyond the window)."""
    granted = 0
    while True:
        if granted < WINDOW:
            exchange.send(WindowUpdate(update=WINDOW))
            granted += WINDOW
        message = exchange.receive()
        if message is None:
            return
        data = unpacked(message, Data).data
        granted -= len(data)
        if granted < 0:
            raise InvalidInput("more bytes than the window of the stream")
        yield data


class ByteSender:
    """Sends bytes to a client as fast as it accepts them."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._window = 0
        self._waiting = bytearray()

    def write(self, data: Any) -> None:
        """Send a buffer; the last bytes wait for `flush`. Raises Cancelled, InvalidInput (another message)."""
        view = memoryview(data)
        if self._waiting:
            room = CHUNK - len(self._waiting)
            self._waiting += view[:room]
            view = view[room:]
            if len(self._waiting) < CHUNK:
                return
            self.flush()
        whole = len(view) - len(view) % CHUNK
        self._send(view[:whole])
        self._waiting += view[whole:]

    def flush(self) -> None:
        """Send the waiting bytes."""
        waiting, self._waiting = self._waiting, bytearray()
        self._send(memoryview(waiting))

    def _send(self, view: memoryview) -> None:
        while view:
            while self._window <= 0:
                self._wait()
            size = min(len(view), self._window, CHUNK)
            self._exchange.send(Data(data=bytes(view[:size])))
            self._window -= size
            view = view[size:]

    def _wait(self) -> None:
        message = self._exchange.receive()
        if message is None:
            raise Cancelled("the client has ended the stream")
        update = unpacked(message, WindowUpdate).update
        if update < 0:
            raise InvalidInput(f"a window update of {update} bytes")
        self._window += update
