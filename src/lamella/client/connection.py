# SPDX-License-Identifier: Apache-2.0
"""Calls to a containerd, or to whatever serves what containerd does, and their statuses as our errors."""

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
    """The services of a server at a socket, which need not be there before it is asked something.

    Usable from several threads. Failures are raised by their status, a server that does not answer as Unavailable.
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
                ("grpc.use_local_subchannel_pool", 1),  # nobody else's socket, which would outlast this one
            ),
        )

    def share(self) -> None:
        """Have it stay after `close` until `leave` is called as often."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Whoever shared it needs it no more. The last one breaks off the calls that are under way."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self._channel.close()

    def close(self) -> None:
        """Let go of it. May be called again."""
        if not self._closed:
            self._closed = True
            self.leave()

    def ask(self, method: str, request: Message, decode: Callable[[bytes], Any], headers: Headers = ()) -> Any:
        """The answer to one call of ``/containerd.services.METHOD``."""
        call = self._channel.unary_unary(_path(method), _encode, decode)
        with self.told():
            return call(request, metadata=tuple(headers))

    def stream(self, method: str, request: Message, decode: Callable[[bytes], Any], headers: Headers = ()) -> Any:
        """A call whose answers are to be taken one by one within `told`; ``cancel`` breaks it off."""
        return self._channel.unary_stream(_path(method), _encode, decode)(request, metadata=tuple(headers))

    def exchange(
        self, method: str, requests: Iterable[Message], decode: Callable[[bytes], Any], headers: Headers = ()
    ) -> Any:
        """As `stream`, of a call that takes requests one by one too."""
        call = self._channel.stream_stream(_path(method), _encode, decode)
        return call(iter(requests), metadata=tuple(headers))

    @contextmanager
    def told(self) -> Iterator[None]:
        """Raise what calls in the block fail with by its status."""
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
