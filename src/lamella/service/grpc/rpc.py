# SPDX-License-Identifier: Apache-2.0
"""Interface between services and the transport: calls, answers, and the table of methods.

A service is an object with a method for each RPC, named as the RPC in lower case with underscores::

    def info(self, request: InfoRequest, call: Call) -> InfoResponse            # one answer
    def list(self, request: ListRequest, call: Call) -> Iterator[ListResponse]  # a stream of answers
    def write(self, requests: Iterator[WriteRequest], call: Call) -> Iterator[WriteResponse]

It raises errors by category. A stream of answers is an iterator, which is closed when the client is gone, or an
`AnswerQueue`, which takes no thread while it waits. RPCs without a method are UNIMPLEMENTED.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from msgspec import Struct

from lamella.errors import Conflict, InvalidInput
from lamella.progress import Cancellation
from lamella.protocol import LEASE, NAMESPACE

F = TypeVar("F", bound=Callable[..., Any])


class Call(Cancellation):
    """A call of a client, cancelled when the client cancels it or is gone."""

    __slots__ = ("_goodbyes", "ending", "metadata")

    def __init__(self, metadata: Mapping[str, str]) -> None:
        super().__init__()
        self.metadata = metadata
        """The first value of each name."""
        self.ending = False
        """No more requests arrive: the client has ended the stream, or is gone."""
        self._goodbyes: list[Callable[[], None]] = []

    @property
    def namespace(self) -> str:
        """The namespace that the call names, unchecked. Raises Conflict if it names none."""
        name = self.metadata.get(NAMESPACE, "")
        if not name:
            raise Conflict("namespace is required")
        return name

    @property
    def lease(self) -> str | None:
        """The lease that holds the objects which the call creates."""
        return self.metadata.get(LEASE) or None

    def when_gone(self, goodbye: Callable[[], None]) -> None:
        """Call ``goodbye``, in any thread, when the call is cancelled; at once if it is already."""
        self._goodbyes.append(goodbye)
        if self.cancelled:
            goodbye()

    def cancel(self) -> None:
        """The client is gone, or accepts no more answers. Further calls do nothing."""
        if self.cancelled:
            return
        self.ending = True
        super().cancel()
        for goodbye in self._goodbyes:
            goodbye()


class Encoded(Struct, frozen=True):
    """An encoded message, in parts, which are sent before the next answer is asked for: their buffers may be reused."""

    parts: tuple[bytes | memoryview, ...]


class AnswerQueue:
    """Answers of one call that other threads put in; the call takes no thread while it waits for them."""

    def __init__(
        self,
        max_answers: int | None = None,
        max_bytes: int | None = None,
        wanted: Callable[[Any], bool] | None = None,
    ) -> None:
        """Beyond ``max_answers`` or ``max_bytes`` the oldest are dropped. Only answers that are ``wanted`` are sent."""
        self._answers: deque[tuple[Any, int]] = deque()
        self._bytes = 0
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._wanted = wanted
        self._lock = threading.Lock()
        self._ready: Callable[[], None] | None = None
        self._idle = False
        self._ended = False

    def put(self, answer: Any, size: int = 0) -> None:
        """Send ``answer``, of ``size`` bytes, after those before it. Waits for nothing; no effect after `end`."""
        with self._lock:
            if self._ended:
                return
            self._answers.append((answer, size))
            self._bytes += size
            while self._is_over_full():
                self._bytes -= self._answers.popleft()[1]
            ready = self._wake()
        if ready is not None:
            ready()

    def end(self) -> None:
        """End the call once the queued answers are sent."""
        with self._lock:
            self._ended = True
            ready = self._wake()
        if ready is not None:
            ready()

    # For the transport ---------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether no answer is queued and none follows."""
        return self._ended and not self._answers

    def attach(self, ready: Callable[[], None]) -> None:
        """Call ``ready`` when there may be answers to `take`, or the queue has ended; at once if so already."""
        with self._lock:
            self._ready = ready
            self._idle = not self._answers and not self._ended
            waiting = self._idle
        if not waiting:
            ready()

    def detach(self) -> None:
        """The call is over: drop all answers."""
        with self._lock:
            self._ready = None
            self._ended = True
            self._answers.clear()

    def take(self) -> Any | None:
        """The next answer. None if there is none now: then ``ready`` is called for the next one."""
        while True:
            with self._lock:
                if not self._answers:
                    self._idle = True
                    return None
                answer, size = self._answers.popleft()
                self._bytes -= size
            if self._wanted is None or self._wanted(answer):
                return answer

    def _is_over_full(self) -> bool:
        count = len(self._answers)
        if self._max_answers is not None and count > self._max_answers:
            return True
        return self._max_bytes is not None and self._bytes > self._max_bytes and count > 1

    def _wake(self) -> Callable[[], None] | None:
        idle, self._idle = self._idle, False
        return self._ready if idle else None


class Method(Struct, frozen=True):
    """One RPC of a service."""

    path: str
    """As in the ``:path`` of a request."""
    run: Callable[[Any, Call], Any]
    decode: Callable[[bytes], Any]
    takes_many: bool
    gives_many: bool
    quick: Callable[[Any], bool] | None
    """Which requests are answered without blocking, so that the thread that reads answers them."""

    def request(self, data: bytes) -> Any:
        """The request that ``data`` encodes. Raises InvalidInput."""
        try:
            return self.decode(data)
        except DecodeError as problem:
            raise InvalidInput(f"malformed request to {self.path}") from problem


def quick(when: Callable[[Any], bool] | None = None) -> Callable[[F], F]:
    """Mark a method that does not block beyond short reads of the database, for all requests or ``when`` it holds."""

    def mark(function: F) -> F:
        function.quick = when or _always  # type: ignore[attr-defined]
        return function

    return mark


def _always(request: Any) -> bool:  # noqa: ARG001
    return True


def methods(file: FileDescriptor, service: object, *, name: str = "") -> dict[str, Method]:
    """The methods of ``service``, by path, for the only service that ``file`` describes.

    ``name`` replaces the service's full name in the paths.
    """
    (described,) = file.services_by_name.values()
    found = {}
    for method in described.methods:
        run = getattr(service, _snake(method.name), None)
        if run is None:
            continue
        path = f"/{name or described.full_name}/{method.name}"
        request: type[Message] = GetMessageClass(method.input_type)
        found[path] = Method(
            path, run, request.FromString, method.client_streaming, method.server_streaming, getattr(run, "quick", None)
        )
    return found


def only(requests: Iterator[Any]) -> Any:
    """The first of ``requests``. Raises InvalidInput if there is none."""
    for request in requests:
        return request
    raise InvalidInput("the stream has ended before its first message")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
