# SPDX-License-Identifier: Apache-2.0
"""What services are written against: a call, and the table of methods that a transport looks calls up in.

A service is an object with a method for each RPC, named as the RPC in lower case with underscores::

    def info(self, request: InfoRequest, call: Call) -> InfoResponse            # one answer
    def list(self, request: ListRequest, call: Call) -> Iterator[ListResponse]  # a stream of answers
    def write(self, requests: Iterator[WriteRequest], call: Call) -> Iterator[WriteResponse]

It knows nothing of the transport: it raises errors by category, and an iterator of answers is closed when the client
is gone. RPCs that it has no method for are UNIMPLEMENTED.
"""

from __future__ import annotations

import re
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
    """Who calls, and whether they still wait; `check` raises Cancelled when they do not."""

    __slots__ = ("_goodbyes", "ending", "metadata")

    def __init__(self, metadata: Mapping[str, str]) -> None:
        super().__init__()
        self.metadata = metadata
        """The first value of each name."""
        self.ending = False
        """No more requests come: the client has said so, or is gone."""
        self._goodbyes: list[Callable[[], None]] = []

    @property
    def namespace(self) -> str:
        """The namespace that the call is about, not checked. Raises Conflict where it names none."""
        name = self.metadata.get(NAMESPACE, "")
        if not name:
            raise Conflict("namespace is required")
        return name

    @property
    def lease(self) -> str | None:
        """The lease that holds what the call makes."""
        return self.metadata.get(LEASE) or None

    def when_gone(self, goodbye: Callable[[], None]) -> None:
        """Have ``goodbye`` called, in any thread, when the client cancels or goes; at once if it has."""
        self._goodbyes.append(goodbye)
        if self.cancelled:
            goodbye()

    def cancel(self) -> None:
        """The client is gone, or takes no more. May be called again."""
        if self.cancelled:
            return
        self.ending = True
        super().cancel()
        for goodbye in self._goodbyes:
            goodbye()


class Encoded(Struct, frozen=True):
    """An answer that is a message already: its bytes in parts, which are sent before the next one is asked for."""

    parts: tuple[bytes | memoryview, ...]


class Method(Struct, frozen=True):
    """One RPC of a service."""

    path: str
    """As in the ``:path`` of a request."""
    run: Callable[[Any, Call], Any]
    decode: Callable[[bytes], Any]
    takes_many: bool
    gives_many: bool
    quick: Callable[[Any], bool] | None
    """Which requests are answered without waiting for anything, so that they need no thread of their own."""

    def request(self, data: bytes) -> Any:
        """The request that ``data`` encodes. Raises InvalidInput."""
        try:
            return self.decode(data)
        except DecodeError as problem:
            raise InvalidInput(f"malformed request to {self.path}") from problem


def quick(when: Callable[[Any], bool] | None = None) -> Callable[[F], F]:
    """Mark a method that waits for nothing but memory and short reads of the database, or does so ``when`` it holds."""

    def mark(function: F) -> F:
        function.quick = when or _always  # type: ignore[attr-defined]
        return function

    return mark


def _always(request: Any) -> bool:  # noqa: ARG001
    return True


def methods(file: FileDescriptor, service: object, *, name: str = "") -> dict[str, Method]:
    """The methods of ``service``, by path, for the one service that ``file`` describes.

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
    """The first of ``requests``. Raises InvalidInput where there is none."""
    for request in requests:
        return request
    raise InvalidInput("the stream has ended before its first message")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
