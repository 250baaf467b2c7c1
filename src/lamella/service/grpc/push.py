# SPDX-License-Identifier: Apache-2.0
"""Sending the answers that other threads produce: one thread for all such calls of a connection."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from lamella.errors import Cancelled, Exhausted
from lamella.service.grpc.quota import Quota
from lamella.service.grpc.rpc import AnswerQueue
from lamella.service.grpc.send import Sender
from lamella.service.grpc.stream import Part, Stream, encode_messages
from lamella.service.grpc.thread_pool import ThreadPool

LOG: Final = logging.getLogger("lamella.service")

Finish: TypeAlias = Callable[[Stream, Exception | None], None]
"""Ends a call whose answers are sent, or which has failed."""


class _Push:
    """A call answered from a queue, and the rest of the message that is being sent."""

    __slots__ = ("answers", "finish", "parts", "size", "stream")

    def __init__(self, stream: Stream, answers: AnswerQueue, finish: Finish) -> None:
        self.stream = stream
        self.answers = answers
        self.finish = finish
        self.parts: deque[Part] = deque()
        self.size = 0


class Pusher:
    """Sends the answers of a connection's queues, by a thread that lasts while there are any.

    A call whose client accepts no bytes is set aside until a window grows, so that it holds up no other call.
    """

    def __init__(self, sender: Sender, pool: ThreadPool, quota: Quota) -> None:
        self._sender = sender
        self._pool = pool
        self._quota = quota
        self._lock = threading.Lock()
        self._pushes: dict[int, _Push] = {}
        self._ready: deque[_Push] = deque()
        self._blocked: set[_Push] = set()
        self._running = False

    def add(self, stream: Stream, answers: AnswerQueue, finish: Finish) -> None:
        """Send the answers of a call from now on, until `forget`."""
        push = self._pushes[stream.id] = _Push(stream, answers, finish)
        if stream.cancelled:
            self.forget(stream.id)
            return
        answers.attach(lambda: self._resume((push,)))

    def forget(self, number: int) -> None:
        """The call of this stream is over."""
        push = self._pushes.pop(number, None)
        if push is not None:
            push.answers.detach()
            self._unblock(push)

    def window_grown(self) -> None:
        """Resume the calls whose clients accepted no bytes."""
        if self._blocked:
            with self._lock:
                blocked, self._blocked = self._blocked, set()
            self._resume(tuple(blocked))

    def _resume(self, pushes: Sequence[_Push]) -> None:
        with self._lock:
            self._ready.extend(pushes)
            if self._running:
                return
            self._running = True
        try:
            self._pool.run(self._run, self._quota, force=True)  # one thread, whatever the connection's share
        except Exhausted as problem:
            LOG.error("a connection ends: %s", problem)
            self._sender.shut_down()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._ready:
                    self._running = False
                    return
                push = self._ready.popleft()
            try:
                if self._send(push):
                    self._finish(push, None)
            except Exception as problem:  # noqa: BLE001 whatever it is, the client gets a status
                self._finish(push, problem)
            del push

    def _send(self, push: _Push) -> bool:
        """Send what the client accepts; returns whether the answers have ended."""
        stream = push.stream
        while True:
            if stream.cancelled:
                raise Cancelled("the client is gone")
            if not push.size:
                answer = push.answers.take()
                if answer is None:
                    return push.answers.ended
                parts, push.size = encode_messages((answer,))
                push.parts = deque(parts)
            amount = self._sender.try_transmit(stream, push.parts, push.size)
            if not amount:
                with self._lock:  # before another look, else a window that grows meanwhile resumes nothing
                    self._blocked.add(push)
                amount = self._sender.try_transmit(stream, push.parts, push.size)
                if not amount and not stream.cancelled:
                    return False
                self._unblock(push)
            push.size -= amount

    def _finish(self, push: _Push, problem: Exception | None) -> None:
        push.finish(push.stream, problem)
        self.forget(push.stream.id)

    def _unblock(self, push: _Push) -> None:
        with self._lock:
            self._blocked.discard(push)
