# SPDX-License-Identifier: Apache-2.0
"""Connection to a server of containerd's services; gRPC statuses become errors by category."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from lamella.errors import EXIT_STATUS, InvalidInput, LamellaError, Unavailable
from lamella.protocol import MAX_MESSAGE

_CODES: Final[dict[str, type[LamellaError]]] = {
    **{name: category for category, _, name in EXIT_STATUS},
    "OUT_OF_RANGE": InvalidInput,
    "DEADLINE_EXCEEDED": Unavailable,
}
_HINT: Final = "is it running, and may this user talk to it?"
_NO_ANSWER: Final = ("failed to connect", "connection refused", "connections to all backends failing")


class Connection:
    """Calls to the server at a socket, which is connected to at the first call. Safe for use by several threads.

    A failed call raises the category of its status; a server that does not answer is Unavailable.
    """

    def __init__(self, address: str | os.PathLike[str]) -> None:
        path = os.fspath(address).removeprefix("unix://")
        if not path or "\0" in path:
            raise InvalidInput(f"{path!r} is not the path of a socket")
        self.address = path
        self._lock = threading.Lock()
        self._users = 1
        self._closed = False
        self._channel = grpc.insecure_channel(
            f"unix:{os.path.abspath(path)}",
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.default_authority", "localhost"),
                ("grpc.use_local_subchannel_pool", 1),  # close its socket with this channel
            ),
        )

    def share(self) -> None:
        """Keep the connection open after `close`, until a matching `leave`."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Undo `share`. The last user cancels the calls under way."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self._channel.close()

    def close(self) -> None:
        """Close the connection once all that `share` it have left. Further calls do nothing."""
        if not self._closed:
            self._closed = True
            self.leave()

    def ask(self, method: str, request: Message, decode: Callable[[bytes], Any], headers: Headers = ()) -> Any:
        """The answer of ``/containerd.services.METHOD``."""
        call = self._channel.unary_unary(_path(method), _encode, decode)
        with self.translating_errors():
            return call(request, metadata=tuple(headers))

    def stream(self, method: str, request: Message, decode: Callable[[bytes], Any], headers: Headers = ()) -> Any:
        """A call with a stream of answers: iterate within `translating_errors`, or ``cancel`` it."""
        return self._channel.unary_stream(_path(method), _encode, decode)(request, metadata=tuple(headers))

    def exchange(
        self, method: str, requests: Iterable[Message], decode: Callable[[bytes], Any], headers: Headers = ()
    ) -> Any:
        """As `stream`, with a stream of requests."""
        call = self._channel.stream_stream(_path(method), _encode, decode)
        return call(iter(requests), metadata=tuple(headers))

    @contextmanager
    def translating_errors(self) -> Iterator[None]:
        """Raise the errors of calls in the block by the category of their status."""
        try:
            yield
        except grpc.RpcError as problem:
            code, text = problem.code(), problem.details() or ""
            category = _CODES.get(code.name, LamellaError)
            if category is Unavailable and any(words in text.lower() for words in _NO_ANSWER):
                raise Unavailable(f"containerd at {self.address!r} does not answer", hint=_HINT) from problem
            raise category(f"containerd at {self.address!r}: {text or code.name}") from problem


Headers = Sequence[tuple[str, str]]


def _path(method: str) -> str:
    return f"/containerd.services.{method}"


def _encode(message: Message) -> bytes:
    return message.SerializeToString()
