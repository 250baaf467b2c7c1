# SPDX-License-Identifier: Apache-2.0
"""Connection of one client: its frames and its calls.

One thread reads. It answers quick calls itself and gives the others a thread each (`lamella.service.grpc.thread_pool`),
which writes the answer (`lamella.service.grpc.send`).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from lamella.errors import Cancelled, Exhausted, LamellaError
from lamella.service.grpc import http2
from lamella.service.grpc.counters import Counters
from lamella.service.grpc.flow import CONNECTION_WINDOW, WINDOW, FlowControl
from lamella.service.grpc.http2 import ConnectionBroken
from lamella.service.grpc.push import Pusher
from lamella.service.grpc.quota import Quota, SharedLimit
from lamella.service.grpc.rpc import AnswerQueue, Method
from lamella.service.grpc.send import LAST, Sender
from lamella.service.grpc.status import Code, status_of
from lamella.service.grpc.stream import Part, Stream, encode_messages
from lamella.service.grpc.thread_pool import ThreadPool

LOG = logging.getLogger("lamella.service")

MAX_STREAMS: Final = 1000
"""Calls of one connection at once."""

_FRAME: Final = 32 << 10
"""Bytes of a client's frame at most."""

_LAST_FRAME: Final = 1.0
"""Seconds to wait for a client to read why its connection ends."""

_NUMBER: Final = 0x7FFFFFFF
"""Mask of stream numbers and window sizes: the highest bit is reserved."""


class Connection:
    """Serves a client until it goes, or `close` is called. `run` is for the thread that reads."""

    def __init__(
        self,
        peer: socket.socket,
        methods: Mapping[str, Method],
        pool: ThreadPool,
        memory: SharedLimit,
        counters: Counters | None = None,
    ) -> None:
        """``memory`` is the limit of the bytes of requests, for all connections."""
        self._socket = peer
        self._methods = methods
        self._pool = pool
        self._threads = Quota(pool.limit)
        self._counters = counters
        self._streams: dict[int, Stream] = {}
        self._ending: set[object] = set()
        """Finished calls whose trailers are still in flight."""
        self._last = 0
        self._leaving = False
        self._blocks = http2.HeaderBlocks()
        self._block: tuple[int, int, bytearray] | None = None
        """Stream, flags and first bytes of a header block that continues in the next frame."""
        self._flow = FlowControl(Quota(memory))
        self._sender = Sender(peer, self._flow, counters)
        self._pusher = Pusher(self._sender, pool, self._threads)

    @property
    def calls(self) -> int:
        """Calls under way."""
        return len(self._streams)

    @property
    def busy(self) -> bool:
        """Whether calls are under way, or trailers of finished ones in flight."""
        return bool(self._streams or self._ending)

    # Reading -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve. Raises nothing."""
        try:
            self._read()
        except ConnectionBroken as problem:
            LOG.debug("a client has broken the protocol: %s", problem)
            try:
                self._sender.send_last(http2.go_away(self._last, problem.code, str(problem)), _LAST_FRAME)
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
            self._flow.end()
            self._sender.close()

    def leave(self) -> None:
        """Announce that no further calls are served; those under way go on. Waits for nothing."""
        self._leaving = True
        self._sender.offer(http2.go_away(self._last, http2.NO_ERROR))

    def cancel(self) -> None:
        """Cancel the calls under way. Waits for a client that does not read, until `close` is called."""
        for stream in tuple(self._streams.values()):
            self._finish(stream, Code.UNAVAILABLE, "the service is being stopped")
            stream.cancel()

    def close(self) -> None:
        """End `run`."""
        self._sender.shut_down()
        self._flow.wake()

    def _read(self) -> None:
        receive = self._socket.recv_into
        flush = self._sender.flush
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
            http2.INITIAL_WINDOW_SIZE: WINDOW,
            http2.MAX_FRAME_SIZE: _FRAME,
            http2.MAX_HEADER_LIST_SIZE: http2.MAX_BLOCK,
        }
        further = CONNECTION_WINDOW - http2.DEFAULT_WINDOW
        self._sender.queue(http2.settings(ours) + http2.window_update(0, further))
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
                self._handle(kind, flags, number & _NUMBER, view[start + http2.HEAD_SIZE : stop])
                start = stop
            if start == end:
                start = end = 0
            elif start and len(buffer) - start < _FRAME + http2.HEAD_SIZE:
                view[: end - start] = bytes(view[start:end])
                start, end = 0, end - start
            flush()
            got = receive(view[end:])
            if not got:
                return
            if self._counters is not None:
                self._counters.bytes(0, got)
            end += got

    def _handle(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        if self._block is not None and (kind != http2.CONTINUATION or number != self._block[0]):
            raise ConnectionBroken(http2.PROTOCOL_ERROR, "a frame within a header block")
        if kind == http2.DATA:
            self._data(flags, number, payload)
        elif kind == http2.HEADERS:
            block = http2.unpadded(flags, payload)
            if flags & http2.PRIORITIZED:
                block = http2.without_priority(number, block)
            if flags & http2.END_HEADERS:
                self._headers(flags, number, bytes(block))
            else:
                self._block = number, flags, bytearray(block)
        elif kind == http2.WINDOW_UPDATE:
            self._window_update(number, http2.number(payload) & _NUMBER)
        elif kind == http2.RST_STREAM:
            http2.number(payload)
            self._check_begun(number)
            stream = self._forget(number, Code.CANCELLED)
            if stream is not None:
                stream.cancel()
        elif kind == http2.CONTINUATION:
            self._continuation(flags, payload)
        elif kind == http2.PUSH_PROMISE:
            raise ConnectionBroken(http2.PROTOCOL_ERROR, "a client pushes")
        elif kind == http2.PRIORITY:
            if len(payload) != 5:
                raise ConnectionBroken(http2.FRAME_SIZE_ERROR, f"a priority of {len(payload)} bytes")
            http2.without_priority(number, payload)
            if not number:
                raise ConnectionBroken(http2.PROTOCOL_ERROR, "a priority of the connection")
        elif kind in (http2.SETTINGS, http2.PING, http2.GOAWAY):
            if number:
                raise ConnectionBroken(http2.PROTOCOL_ERROR, f"a frame of kind {kind} on a stream")
            self._connection_frame(kind, flags, payload)

    def _connection_frame(self, kind: int, flags: int, payload: memoryview) -> None:
        if kind == http2.SETTINGS:
            if not flags & http2.ACK:
                self._settings(payload)
            elif payload:
                raise ConnectionBroken(http2.FRAME_SIZE_ERROR, "an acknowledgement with settings")
        elif kind == http2.PING:
            if len(payload) != 8:
                raise ConnectionBroken(http2.FRAME_SIZE_ERROR, f"a ping of {len(payload)} bytes")
            if not flags & http2.ACK:
                self._sender.queue(http2.frame(http2.PING, http2.ACK, 0, bytes(payload)))
        elif len(payload) < 8:
            raise ConnectionBroken(http2.FRAME_SIZE_ERROR, f"a GOAWAY of {len(payload)} bytes")

    def _settings(self, payload: memoryview) -> None:
        with self._flow.lock:  # until they are acknowledged
            for name, value in http2.parse_settings(payload):
                if name == http2.INITIAL_WINDOW_SIZE:
                    self._flow.set_initial_window(value, [stream.flow for stream in tuple(self._streams.values())])
                elif name == http2.MAX_FRAME_SIZE:
                    self._sender.set_frame_size(value)
                elif name == http2.ENABLE_PUSH and value > 1:
                    raise ConnectionBroken(http2.PROTOCOL_ERROR, f"ENABLE_PUSH is {value}")
            self._sender.queue(http2.frame(http2.SETTINGS, http2.ACK, 0))
        self._pusher.window_grown()

    def _window_update(self, number: int, amount: int) -> None:
        if not amount:
            raise ConnectionBroken(http2.PROTOCOL_ERROR, "a window update of 0 bytes")
        stream = None
        if number:
            self._check_begun(number)
            stream = self._streams.get(number)
            if stream is None:
                return
        if not self._flow.grow(None if stream is None else stream.flow, amount):
            if stream is None:
                raise ConnectionBroken(http2.FLOW_CONTROL_ERROR, "the window of the connection exceeds 2^31-1 bytes")
            self._sender.queue(http2.reset(number, http2.FLOW_CONTROL_ERROR))
            self._forget(number, Code.CANCELLED)
            stream.cancel()
        self._pusher.window_grown()

    def _check_begun(self, number: int) -> None:
        if not number & 1 or number > self._last:
            raise ConnectionBroken(http2.PROTOCOL_ERROR, f"a frame of stream {number}, which has not begun")

    def _continuation(self, flags: int, payload: memoryview) -> None:
        if self._block is None:
            raise ConnectionBroken(http2.PROTOCOL_ERROR, "a continuation of no header block")
        number, first, block = self._block
        block += payload
        if len(block) > http2.MAX_BLOCK or not (payload or flags & http2.END_HEADERS):
            raise ConnectionBroken(http2.ENHANCE_YOUR_CALM, "a header block is too long")
        if flags & http2.END_HEADERS:
            self._block = None
            self._headers(first, number, bytes(block))

    def _headers(self, flags: int, number: int, block: bytes) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            self._trailers(stream, flags, block)
            return
        if not number & 1:
            raise ConnectionBroken(http2.PROTOCOL_ERROR, f"stream {number} cannot be a client's")
        if number <= self._last:  # trailers of a call that is over
            self._blocks.read(block)
            return
        headers = self._blocks.read(block, http2.check_request)
        self._last = number
        if self._leaving or len(self._streams) >= MAX_STREAMS:
            self._sender.queue(http2.reset(number, http2.REFUSED_STREAM))
            return
        path = headers.get(":path", "")
        method = self._methods.get(path)
        if method is None or not headers.get("content-type", "").startswith("application/grpc"):
            block = http2.ANSWER + http2.trailers(Code.UNIMPLEMENTED, f"unknown method {path[:200]}")
            answer = http2.frame(http2.HEADERS, LAST, number, block)
            if not flags & http2.END_STREAM:
                answer += http2.reset(number, http2.NO_ERROR)
            self._sender.queue(answer)
            return
        stream = self._streams[number] = Stream(number, method, headers, self._flow, self._sender.control)
        if method.takes_many:
            self._run(stream, lambda: self._answer(stream, stream.requests()))
        if flags & http2.END_STREAM:
            self._ended(stream)

    def _trailers(self, stream: Stream, flags: int, block: bytes) -> None:
        """The trailers of a request, which have no meaning in gRPC."""
        self._blocks.read(block, http2.check_trailers)
        if stream.flow.ended:
            raise ConnectionBroken(http2.STREAM_CLOSED, f"headers after the end of stream {stream.id}")
        if not flags & http2.END_STREAM:
            raise ConnectionBroken(http2.PROTOCOL_ERROR, "trailers that do not end the stream")
        self._ended(stream)

    def _data(self, flags: int, number: int, payload: memoryview) -> None:
        granted = self._flow.receive(len(payload))
        if granted:
            self._sender.queue(http2.window_update(0, granted))
        stream = self._streams.get(number)
        if stream is None:
            self._check_begun(number)
            return
        if stream.flow.ended:
            raise ConnectionBroken(http2.STREAM_CLOSED, f"data after the end of stream {number}")
        try:
            stream.receive(flags, payload)
        except LamellaError as problem:
            self._refuse(stream, *status_of(problem, stream.method.path))
            stream.cancel()
            return
        if flags & http2.END_STREAM:
            self._ended(stream)

    def _ended(self, stream: Stream) -> None:
        """The client has ended the stream."""
        stream.end()
        if stream.method.takes_many:
            return
        data = stream.first()
        if data is None:
            if not stream.cancelled:
                self._refuse(stream, Code.INVALID_ARGUMENT, "the request is missing")
            return
        quick = stream.method.quick
        if quick is not None:
            self._answer_quick(stream, data, quick)
        else:
            self._run(stream, lambda: self._answer_one(stream, data))

    # Answering -----------------------------------------------------------------------------------------------------

    def _run(self, stream: Stream, work: Callable[[], None]) -> None:
        """Run ``work`` in a thread, or refuse the call."""
        try:
            self._pool.run(work, self._threads)
        except Exhausted as problem:
            self._refuse(stream, *status_of(problem, stream.method.path))

    def _answer_quick(self, stream: Stream, data: bytes, quick: Callable[[Any], bool]) -> None:
        method = stream.method
        try:
            request = method.request(data)
            if not quick(request):
                self._run(stream, lambda: self._answer(stream, request))
                return
            result = method.run(request, stream)
            if isinstance(result, AnswerQueue):
                self._pusher.add(stream, result, self._pushed)
                return
            answers = result if method.gives_many else (result,)
            if not isinstance(answers, (tuple, list)):
                self._run(stream, lambda: self._send_all(stream, answers))
                return
            parts, size = encode_messages(answers)
        except Exception as problem:  # noqa: BLE001 whatever it is, the client gets a status
            self._refuse(stream, *status_of(problem, method.path))
            return
        with _Ending(self._ending):
            if self._sender.answer_at_once(
                stream, parts, size, http2.trailers(Code.OK, ""), lambda: self._forget(stream.id, Code.OK)
            ):
                return
        kept = [bytes(part) for part in parts]  # their buffers may be reused before these are sent
        self._run(stream, lambda: self._send(stream, kept, size))

    def _answer_one(self, stream: Stream, data: bytes) -> None:
        try:
            request = stream.method.request(data)
        except LamellaError as problem:
            self._fail(stream, problem)
            return
        self._answer(stream, request)

    def _answer(self, stream: Stream, request: Any) -> None:
        """Call the method and send its answers; ``request`` is an iterator if the method takes a stream."""
        method = stream.method
        try:
            result = method.run(request, stream)
            if isinstance(result, AnswerQueue):
                self._pusher.add(stream, result, self._pushed)
                return
            encoded = None if method.gives_many else encode_messages((result,))
        except Exception as problem:  # noqa: BLE001 whatever it is, the client gets a status
            self._fail(stream, problem)
            return
        if encoded is None:
            self._send_all(stream, result)
        else:
            self._send(stream, *encoded)

    def _send(self, stream: Stream, parts: Sequence[Part], size: int) -> None:
        try:
            self._sender.transmit(stream, parts, size)
        except (Cancelled, OSError):
            return
        self._finish(stream, Code.OK, "")

    def _send_all(self, stream: Stream, answers: Iterator[Any]) -> None:
        try:
            try:
                for answer in answers:
                    parts, size = encode_messages((answer,))
                    self._sender.transmit(stream, parts, size)
            finally:
                if isinstance(answers, Generator):
                    answers.close()
        except Exception as problem:  # noqa: BLE001 whatever it is, the client gets a status
            self._fail(stream, problem)
            return
        self._finish(stream, Code.OK, "")

    def _pushed(self, stream: Stream, problem: Exception | None) -> None:
        if problem is None:
            self._finish(stream, Code.OK, "")
        else:
            self._fail(stream, problem)

    def _fail(self, stream: Stream, problem: Exception) -> None:
        if stream.cancelled or isinstance(problem, ConnectionError):
            LOG.debug("%s: the client is gone", stream.method.path)
            self._forget(stream.id, Code.CANCELLED)
            stream.cancel()
            return
        self._finish(stream, *status_of(problem, stream.method.path))

    def _finish(self, stream: Stream, code: Code, message: str) -> None:
        """Forget the call, and send its status once other threads have written. Not for the thread that reads."""
        with _Ending(self._ending):
            if self._forget(stream.id, code) is None:
                return
            try:
                self._sender.send([_status(stream, code, message)])
            except OSError:
                pass

    def _refuse(self, stream: Stream, code: Code, message: str) -> None:
        """Forget the call, and send its status: for the thread that reads. Raises OSError, ConnectionBroken."""
        with _Ending(self._ending):
            if self._forget(stream.id, code) is None:
                return
            self._sender.queue(_status(stream, code, message))
            self._sender.flush()

    def _forget(self, number: int, code: Code) -> Stream | None:
        """Remove a call that ends with ``code``; None if it has ended before."""
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.close()
            self._pusher.forget(number)
            if self._counters is not None:
                self._counters.call(stream.method.path, code, stream.began)
        return stream


def _status(stream: Stream, code: Code, message: str) -> bytes:
    """The frames that end a call."""
    block = http2.trailers(code, message)
    found = http2.frame(http2.HEADERS, LAST, stream.id, block if stream.started else http2.ANSWER + block)
    return found if stream.ending else found + http2.reset(stream.id, http2.NO_ERROR)


class _Ending:
    """A block in which a call is forgotten and its trailers are sent: the connection is busy until its end."""

    __slots__ = ("_all",)

    def __init__(self, ending: set[object]) -> None:
        self._all = ending

    def __enter__(self) -> None:
        self._all.add(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._all.discard(self)
