# SPDX-License-Identifier: Apache-2.0
"""One client's connection: its frames, its calls, and how much each side may send.

One thread reads. It answers quick calls itself and hands the others to threads of their own, which write their
answers. Whoever writes a frame holds the lock for writing; the reader never waits for it with frames of its own, but
leaves them to whoever has the lock, so that it always comes to read what lets the writers go on.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Final

from lamella.errors import Cancelled, Exhausted, LamellaError, Unsupported
from lamella.protocol import MAX_MESSAGE
from lamella.service import http2
from lamella.service.calls import Call, Encoded, Method
from lamella.service.http2 import ConnectionBroken
from lamella.service.status import Code, status_of
from lamella.service.tally import Tally
from lamella.service.workers import Workers

LOG = logging.getLogger("lamella.service")

MAX_STREAMS: Final = 1000
_FRAME: Final = 32 << 10
"""Bytes of the largest frame that a client may send."""

_STREAM_WINDOW: Final = 4 << 20
_WINDOW: Final = 64 << 20
_WAITING: Final = 4 << 20
"""Bytes of messages that a call has not taken yet, above which its client may send no more."""

_BURST: Final = 1 << 20
"""Bytes that are written in one go."""

_RESERVED: Final = 0x7FFFFFFF
_LAST: Final = http2.END_HEADERS | http2.END_STREAM
_PENDING: Final = 10_000
"""Frames that may wait for a client that asks much and reads nothing."""

Part = bytes | memoryview


class Stream(Call):
    """A call of a connection, and what is on its way."""

    __slots__ = (
        *("arrived", "began", "connection", "id", "inbox", "method", "owed"),
        *("partial", "started", "taken", "window"),
    )

    def __init__(self, connection: Connection, number: int, method: Method, metadata: Mapping[str, str]) -> None:
        super().__init__(metadata)
        self.connection = connection
        self.id = number
        self.method = method
        self.began = time.monotonic()
        self.window = connection.initial_window
        """Bytes that may be sent."""
        self.partial = bytearray()
        """Of messages that have not arrived as a whole."""
        self.inbox: SimpleQueue[bytes | None] = SimpleQueue()
        self.arrived = 0
        self.taken = 0
        """Bytes of messages that have come, and those that the call has taken."""
        self.owed = 0
        """Bytes that the client has sent and may send again."""
        self.started = False
        """The headers of the answer are sent."""

    def cancel(self) -> None:
        """As the base does, and wakes whoever waits for a message or to send one."""
        if self.cancelled:
            return
        super().cancel()
        self.inbox.put(None)
        self.connection.wake()

    def requests(self) -> Iterator[Any]:
        """The messages, as they come. Raises Cancelled where the client goes and has not said that they are all."""
        decode = self.method.request
        while True:
            message = self.inbox.get()
            if message is None:
                self.check()
                return
            self.taken += len(message)
            self.connection.credit(self)
            yield decode(message)


class Connection:
    """Serves a client until it goes, or `close` is called. `run` is for the thread that reads."""

    def __init__(
        self, peer: socket.socket, methods: Mapping[str, Method], workers: Workers, tally: Tally | None = None
    ) -> None:
        """``tally`` counts what is done, where somebody wants to know."""
        self._socket = peer
        self._methods = methods
        self._workers = workers
        self._tally = tally
        self._streams: dict[int, Stream] = {}
        self._ending: set[object] = set()
        """One for each call that is under way no more and whose end is still being sent."""
        self._last = 0
        self._leaving = False
        self._blocks = http2.HeaderBlocks()
        self._block: tuple[int, int, bytearray] | None = None
        """Stream, flags and what has come of a block of headers that goes on in the next frame."""
        self._sending = threading.Lock()
        self._pending: deque[bytes] = deque()
        self._flow = threading.Lock()
        self._grown = threading.Condition(self._flow)
        self._window = http2.DEFAULT_WINDOW
        self.initial_window = http2.DEFAULT_WINDOW
        self._frame = http2.DEFAULT_FRAME
        self._owed = 0

    @property
    def calls(self) -> int:
        """How many are under way, up to the last byte that their clients get."""
        return len(self._streams) + len(self._ending)

    # Reading -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve. Raises nothing."""
        try:
            self._read()
        except ConnectionBroken as problem:
            LOG.debug("a client has broken the protocol: %s", problem)
            try:
                self._send([http2.go_away(self._last, problem.code, str(problem))])
            except OSError:
                pass
        except OSError as problem:
            LOG.debug("a client is gone: %s", problem)
        except Exception:
            LOG.exception("a connection failed: this is a bug")
        finally:
            self.close()
            for stream in tuple(self._streams.values()):
                self._forget(stream.id, Code.CANCELLED)
                stream.cancel()
            with self._sending:  # nobody is to write to a number that somebody else has been given
                self._socket.close()

    def leave(self) -> None:
        """Tell the client that no further calls are served; those under way go on. Waits for nothing."""
        self._leaving = True
        self._pending.append(http2.go_away(self._last, http2.NO_ERROR))
        try:
            if select.select((), (self._socket,), (), 0)[1]:  # else it goes with whatever is sent next
                self._flush()
        except (OSError, ValueError):  # the client is gone
            pass

    def cancel(self) -> None:
        """Break off the calls that are under way. Waits for a client that does not read, until `close` is called."""
        for stream in tuple(self._streams.values()):
            self._finish(stream, Code.UNAVAILABLE, "the service is being stopped")
            stream.cancel()

    def close(self) -> None:
        """Have `run` come to its end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.wake()

    def _read(self) -> None:
        receive = self._socket.recv_into
        buffer = bytearray(2 * (_FRAME + http2.HEAD_SIZE))
        view = memoryview(buffer)
        end = 0
        while end < len(http2.PREFACE):
            got = receive(view[end:])
            end += got
            if not http2.PREFACE.startswith(buffer[: min(end, len(http2.PREFACE))]) or not got:
                return
        start = len(http2.PREFACE)
        ours = {
            http2.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            http2.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
            http2.MAX_FRAME_SIZE: _FRAME,
            http2.MAX_HEADER_LIST_SIZE: http2.MAX_BLOCK,
        }
        self._send([http2.settings(ours), http2.window_update(0, _WINDOW - http2.DEFAULT_WINDOW)])
        unpack = http2.HEAD.unpack_from
        while True:
            while end - start >= http2.HEAD_SIZE:
                high, low, kind, flags, number = unpack(buffer, start)
                length = high << 8 | low
                if length > _FRAME:
                    raise ConnectionBroken(http2.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
                stop = start + http2.HEAD_SIZE + length
                if stop > end:
                    break
                self._take(kind, flags, number & _RESERVED, view[start + http2.HEAD_SIZE : stop])
                start = stop
            if start == end:
                start = end = 0
            elif start and len(buffer) - start < _FRAME + http2.HEAD_SIZE:
                view[: end - start] = bytes(view[start:end])
                start, end = 0, end - start
            if self._pending:
                self._flush()
            got = receive(view[end:])
            if not got:
                return
            if self._tally is not None:
                self._tally.bytes(0, got)
            end += got

    def _take(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        if self._block is not None and (kind != http2.CONTINUATION or number != self._block[0]):
            raise ConnectionBroken(http2.PROTOCOL_ERROR, "a frame within a block of headers")
        if kind == http2.DATA:
            self._data(flags, number, payload)
        elif kind == http2.HEADERS:
            block = http2.unpadded(flags, payload)
            if flags & http2.PRIORITIZED:
                block = block[5:]
            if flags & http2.END_HEADERS:
                self._headers(flags, number, bytes(block))
            else:
                self._block = number, flags, bytearray(block)
        elif kind == http2.WINDOW_UPDATE:
            self._update(number, http2.number(payload) & _RESERVED)
        elif kind == http2.PING:
            if len(payload) != 8:
                raise ConnectionBroken(http2.FRAME_SIZE_ERROR, "a ping of a wrong size")
            if not flags & http2.ACK:
                self._note(http2.frame(http2.PING, http2.ACK, 0, bytes(payload)))
        elif kind == http2.SETTINGS:
            if not flags & http2.ACK:
                self._settings(payload)
                self._note(http2.frame(http2.SETTINGS, http2.ACK, 0))
        elif kind == http2.RST_STREAM:
            http2.number(payload)
            stream = self._forget(number, Code.CANCELLED)
            if stream is not None:
                stream.cancel()
        elif kind == http2.CONTINUATION:
            self._continuation(flags, payload)
        elif kind == http2.PUSH_PROMISE:
            raise ConnectionBroken(http2.PROTOCOL_ERROR, "a promise from a client")

    def _settings(self, payload: memoryview) -> None:
        for name, value in http2.parse_settings(payload):
            if name == http2.INITIAL_WINDOW_SIZE:
                if value > http2.MAX_WINDOW:
                    raise ConnectionBroken(http2.FLOW_CONTROL_ERROR, f"a window of {value} bytes")
                with self._flow:
                    for stream in tuple(self._streams.values()):
                        stream.window += value - self.initial_window
                    self.initial_window = value
                    self._grown.notify_all()
            elif name == http2.MAX_FRAME_SIZE:
                if not http2.DEFAULT_FRAME <= value < 1 << 24:
                    raise ConnectionBroken(http2.PROTOCOL_ERROR, f"frames of {value} bytes")
                self._frame = value

    def _update(self, number: int, amount: int) -> None:
        if not amount:
            raise ConnectionBroken(http2.PROTOCOL_ERROR, "a window that grows by nothing")
        with self._flow:
            if not number:
                self._window += amount
                if self._window > http2.MAX_WINDOW:
                    raise ConnectionBroken(http2.FLOW_CONTROL_ERROR, "too large a window")
            else:
                stream = self._streams.get(number)
                if stream is None:
                    return
                stream.window += amount
            self._grown.notify_all()

    def _continuation(self, flags: int, payload: memoryview) -> None:
        if self._block is None:
            raise ConnectionBroken(http2.PROTOCOL_ERROR, "headers go on that have not begun")
        number, first, block = self._block
        block += payload
        if len(block) > http2.MAX_BLOCK:
            raise ConnectionBroken(http2.ENHANCE_YOUR_CALM, "too many headers")
        if flags & http2.END_HEADERS:
            self._block = None
            self._headers(first, number, bytes(block))

    def _headers(self, flags: int, number: int, block: bytes) -> None:
        headers = self._blocks.read(block)
        stream = self._streams.get(number)
        if stream is not None:  # trailers, which mean nothing here
            if flags & http2.END_STREAM:
                self._ended(stream)
            return
        if not number & 1 or number <= self._last:
            if number & 1:
                return  # for a stream that is done
            raise ConnectionBroken(http2.PROTOCOL_ERROR, f"stream {number} cannot be a client's")
        self._last = number
        if self._leaving or len(self._streams) >= MAX_STREAMS:
            self._note(http2.reset(number, http2.REFUSED_STREAM))
            return
        path = headers.get(":path", "")
        method = self._methods.get(path)
        if method is None or not headers.get("content-type", "").startswith("application/grpc"):
            block = http2.ANSWER + http2.trailers(Code.UNIMPLEMENTED, f"unknown method {path[:200]}")
            answer = http2.frame(http2.HEADERS, _LAST, number, block)
            if not flags & http2.END_STREAM:
                answer += http2.reset(number, http2.NO_ERROR)
            self._note(answer)
            return
        stream = self._streams[number] = Stream(self, number, method, headers)
        if method.takes_many:
            self._hand_over(stream, lambda: self._answer(stream, stream.requests()))
        if flags & http2.END_STREAM:
            self._ended(stream)

    def _data(self, flags: int, number: int, payload: memoryview) -> None:
        size = len(payload)
        self._owed += size
        if self._owed >= _WINDOW // 4:
            self._note(http2.window_update(0, self._owed))
            self._owed = 0
        stream = self._streams.get(number)
        if stream is None:
            if not number or number > self._last:
                raise ConnectionBroken(http2.PROTOCOL_ERROR, "data of a stream that has not begun")
            return
        with self._flow:
            stream.owed += size
        if stream.owed > _STREAM_WINDOW:
            raise ConnectionBroken(http2.FLOW_CONTROL_ERROR, "a client that sends more than it may")
        try:
            self._feed(stream, http2.unpadded(flags, payload))
        except LamellaError as problem:
            self._finish(stream, *status_of(problem, stream.method.path))
            stream.cancel()
            return
        if flags & http2.END_STREAM:
            self._ended(stream)
        else:
            self.credit(stream)

    def _feed(self, stream: Stream, payload: memoryview) -> None:
        """Cut the messages out of what has come (gRPC over HTTP/2, "Length-Prefixed-Message")."""
        partial = stream.partial
        size = len(payload)
        if not partial and size >= 5 and int.from_bytes(payload[1:5], "big") == size - 5:
            _check_message(payload[0], size - 5)
            stream.arrived += size - 5
            stream.inbox.put(bytes(payload[5:]))
            return
        partial += payload
        while len(partial) >= 5:
            length = int.from_bytes(partial[1:5], "big")
            _check_message(partial[0], length)
            if len(partial) < length + 5:
                return
            with memoryview(partial) as whole:
                message = bytes(whole[5 : 5 + length])
            del partial[: 5 + length]
            stream.arrived += length
            stream.inbox.put(message)

    def _ended(self, stream: Stream) -> None:
        """The client has said all it will."""
        if stream.ending:
            return
        stream.ending = True
        if stream.method.takes_many:
            stream.inbox.put(None)
            return
        if stream.inbox.empty():
            self._finish(stream, Code.INVALID_ARGUMENT, "the request is missing")
            return
        data = stream.inbox.get()
        if data is None:
            return
        quick = stream.method.quick
        if quick is not None:
            self._quick(stream, data, quick)
        else:
            self._hand_over(stream, lambda: self._answer_one(stream, data))

    def credit(self, stream: Stream) -> None:
        """Let the client send more of the call's messages, unless too many wait to be taken."""
        if stream.owed < _STREAM_WINDOW // 4 or stream.arrived - stream.taken > _WAITING:
            return
        with self._flow:
            owed, stream.owed = stream.owed, 0
        if owed and not stream.ending:
            self._control(http2.window_update(stream.id, owed))

    # Answering -----------------------------------------------------------------------------------------------------

    def _hand_over(self, stream: Stream, work: Callable[[], None]) -> None:
        try:
            self._workers.run(work)
        except Exhausted as problem:
            self._finish(stream, *status_of(problem, stream.method.path))

    def _quick(self, stream: Stream, data: bytes, quick: Callable[[Any], bool]) -> None:
        method = stream.method
        try:
            request = method.request(data)
            if not quick(request):
                self._hand_over(stream, lambda: self._answer_request(stream, request))
                return
            result = method.run(request, stream)
            answers = result if method.gives_many else (result,)
            if not isinstance(answers, (tuple, list)):
                self._hand_over(stream, lambda: self._stream(stream, answers))
                return
            parts, size = _messages(answers)
        except Exception as problem:  # noqa: BLE001 whatever it is, the client gets a status
            self._finish(stream, *status_of(problem, method.path))
            return
        if self._sending.acquire(blocking=False):
            try:
                if self._reserve_at_once(stream, size):
                    out: list[Part] = [http2.frame(http2.HEADERS, http2.END_HEADERS, stream.id, http2.ANSWER)]
                    self._cut(out, stream.id, deque(parts), size)
                    out.append(http2.frame(http2.HEADERS, _LAST, stream.id, http2.trailers(Code.OK, "")))
                    with self._end_of_call():
                        self._forget(stream.id, Code.OK)
                        self._write(out)
                    return
            finally:
                self._sending.release()
                self._flush()
        kept = [bytes(part) for part in parts]  # the buffers may be used again before these are sent
        self._hand_over(stream, lambda: self._sent(stream, kept, size))

    def _answer_one(self, stream: Stream, data: bytes) -> None:
        try:
            request = stream.method.request(data)
        except LamellaError as problem:
            self._failed(stream, problem)
            return
        self._answer_request(stream, request)

    def _answer_request(self, stream: Stream, request: Any) -> None:
        method = stream.method
        try:
            result = method.run(request, stream)
        except Exception as problem:  # noqa: BLE001 whatever it is, the client gets a status
            self._failed(stream, problem)
            return
        if method.gives_many:
            self._stream(stream, result)
        else:
            self._whole(stream, result)

    def _answer(self, stream: Stream, requests: Iterator[Any]) -> None:
        """Of a method that takes a stream."""
        try:
            result = stream.method.run(requests, stream)
        except Exception as problem:  # noqa: BLE001 whatever it is, the client gets a status
            self._failed(stream, problem)
            return
        if stream.method.gives_many:
            self._stream(stream, result)
        else:
            self._whole(stream, result)

    def _whole(self, stream: Stream, answer: Any) -> None:
        try:
            parts, size = _messages((answer,))
        except Exception as problem:  # noqa: BLE001 whatever it is, the client gets a status
            self._failed(stream, problem)
            return
        self._sent(stream, parts, size)

    def _sent(self, stream: Stream, parts: Sequence[Part], size: int) -> None:
        try:
            self._transmit(stream, parts, size)
        except (Cancelled, OSError):
            return
        self._finish(stream, Code.OK, "")

    def _stream(self, stream: Stream, answers: Iterator[Any]) -> None:
        try:
            try:
                for answer in answers:
                    parts, size = _messages((answer,))
                    self._transmit(stream, parts, size)
            finally:
                close = getattr(answers, "close", None)
                if close is not None:
                    close()
        except Exception as problem:  # noqa: BLE001 whatever it is, the client gets a status
            self._failed(stream, problem)
            return
        self._finish(stream, Code.OK, "")

    def _failed(self, stream: Stream, problem: Exception) -> None:
        if stream.cancelled or isinstance(problem, ConnectionError):
            LOG.debug("%s: the client is gone", stream.method.path)
            self._forget(stream.id, Code.CANCELLED)
            stream.cancel()
            return
        self._finish(stream, *status_of(problem, stream.method.path))

    def _finish(self, stream: Stream, code: Code, message: str) -> None:
        """Send the status, and forget the call."""
        with self._end_of_call():
            if self._forget(stream.id, code) is None:
                return
            out: list[Part] = []
            block = http2.trailers(code, message)
            if stream.started:
                out.append(http2.frame(http2.HEADERS, _LAST, stream.id, block))
            else:
                out.append(http2.frame(http2.HEADERS, _LAST, stream.id, http2.ANSWER + block))
            if not stream.ending:
                out.append(http2.reset(stream.id, http2.NO_ERROR))
            try:
                self._send(out)
            except OSError:
                pass

    @contextmanager
    def _end_of_call(self) -> Iterator[None]:
        """A call is forgotten in this block, and is among `calls` until it ends: until the client has been told."""
        token = object()
        self._ending.add(token)
        try:
            yield
        finally:
            self._ending.discard(token)

    def _forget(self, number: int, code: Code) -> Stream | None:
        """The call that was under way and has ended with ``code``."""
        stream = self._streams.pop(number, None)
        if stream is not None and self._tally is not None:
            self._tally.call(stream.method.path, code, stream.began)
        return stream

    # Writing -------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have those who wait to send look again whether they still should."""
        with self._flow:
            self._grown.notify_all()

    def _transmit(self, stream: Stream, parts: Sequence[Part], size: int) -> None:
        """Send messages, as fast as the client takes them. Raises Cancelled where it takes no more."""
        out: list[Part] = []
        if not stream.started:
            out.append(http2.frame(http2.HEADERS, http2.END_HEADERS, stream.id, http2.ANSWER))
            stream.started = True
        waiting = deque(parts)
        while True:
            amount = self._reserve(stream, size)
            self._cut(out, stream.id, waiting, amount)
            self._send(out)
            size -= amount
            if not size:
                return
            out = []

    def _reserve(self, stream: Stream, wanted: int) -> int:
        with self._flow:
            while True:
                stream.check()
                amount = min(wanted, self._window, stream.window, _BURST)
                if amount > 0:
                    self._window -= amount
                    stream.window -= amount
                    return amount
                self._grown.wait()

    def _reserve_at_once(self, stream: Stream, wanted: int) -> bool:
        with self._flow:
            if wanted > min(self._window, stream.window):
                return False
            self._window -= wanted
            stream.window -= wanted
        return True

    def _cut(self, out: list[Part], number: int, parts: deque[Part], amount: int) -> None:
        """Move ``amount`` bytes to ``out``, in frames that the client takes."""
        largest = self._frame
        while amount:
            length = min(amount, largest)
            amount -= length
            out.append(http2.frame_head(length, http2.DATA, 0, number))
            while length:
                part = parts[0]
                size = len(part)
                if size <= length:
                    out.append(part)
                    parts.popleft()
                    length -= size
                else:
                    view = memoryview(part)
                    out.append(view[:length])
                    parts[0] = view[length:]
                    length = 0

    def _note(self, frame: bytes) -> None:
        """Have a frame sent with the next ones: the reader sees to it before it waits."""
        self._pending.append(frame)
        if len(self._pending) > _PENDING:
            raise ConnectionBroken(http2.ENHANCE_YOUR_CALM, "a client that does not read")

    def _control(self, frame: bytes) -> None:
        """Send a frame at once, or have whoever is sending do it."""
        self._pending.append(frame)
        self._flush()

    def _flush(self) -> None:
        while self._pending and self._sending.acquire(blocking=False):
            try:
                self._write([])
            finally:
                self._sending.release()

    def _send(self, out: list[Part]) -> None:
        with self._sending:
            self._write(out)
        if self._pending:
            self._flush()

    def _write(self, out: list[Part]) -> None:
        pending = self._pending
        if pending:
            first: list[Part] = []
            while pending:
                first.append(pending.popleft())
            out = first + out
        if not out:
            return
        left = sum(map(len, out))
        if self._tally is not None:
            self._tally.bytes(left, 0)
        sent = self._socket.sendmsg(out)
        while sent < left:
            left -= sent
            at = 0
            while sent >= len(out[at]):
                sent -= len(out[at])
                at += 1
            out = [memoryview(out[at])[sent:], *out[at + 1 :]]
            sent = self._socket.sendmsg(out)


def _messages(answers: Sequence[Any]) -> tuple[list[Part], int]:
    """The parts of messages with what goes before each, and how many bytes that is. Raises Exhausted."""
    parts: list[Part] = []
    total = 0
    for answer in answers:
        if isinstance(answer, Encoded):
            size = sum(map(len, answer.parts))
            parts.append(b"\0" + size.to_bytes(4, "big"))
            parts.extend(answer.parts)
        else:
            encoded = answer.SerializeToString()
            size = len(encoded)
            parts.append(b"\0" + size.to_bytes(4, "big") + encoded)
        if size > MAX_MESSAGE:
            raise Exhausted(f"an answer of {size} bytes, and {MAX_MESSAGE} is the limit", hint="ask with a filter")
        total += size + 5
    return parts, total


def _check_message(compressed: int, length: int) -> None:
    if compressed:
        raise Unsupported("compressed messages are not taken")
    if length > MAX_MESSAGE:
        raise Exhausted(f"a message of {length} bytes, and {MAX_MESSAGE} is the limit")
