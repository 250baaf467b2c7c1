# SPDX-License-Identifier: Apache-2.0
"""One client's connection: its frames, and its calls.

One thread reads. It answers quick calls itself and hands the others to threads of their own, which write their answers
(`lamella.service.grpc.flow`).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from lamella.errors import Cancelled, Exhausted, LamellaError
from lamella.service.grpc import http2
from lamella.service.grpc.counters import Tally
from lamella.service.grpc.flow import LAST, Sender
from lamella.service.grpc.http2 import ConnectionBroken
from lamella.service.grpc.rpc import Method
from lamella.service.grpc.status import Code, status_of
from lamella.service.grpc.stream import WINDOW, Part, Stream, framed
from lamella.service.grpc.thread_pool import Workers

LOG = logging.getLogger("lamella.service")

MAX_STREAMS: Final = 1000
_FRAME: Final = 32 << 10
"""Bytes of the largest frame that a client may send."""

_PARTING: Final = 1.0
"""Seconds that a client which breaks the protocol has to read why it is left."""

_WINDOW: Final = 64 << 20
_RESERVED: Final = 0x7FFFFFFF


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
        self._sender = Sender(peer, tally)
        self._owed = 0
        """Bytes that the client has sent, of all streams, and may send again."""

    @property
    def calls(self) -> int:
        """How many are under way."""
        return len(self._streams)

    @property
    def busy(self) -> bool:
        """Whether calls are under way, or a client has yet to be told of the end of one."""
        return bool(self._streams or self._ending)

    # Reading -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve. Raises nothing."""
        try:
            self._read()
        except ConnectionBroken as problem:
            LOG.debug("a client has broken the protocol: %s", problem)
            try:
                self._sender.part(http2.go_away(self._last, problem.code, str(problem)), _PARTING)
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
            self._sender.close()

    def leave(self) -> None:
        """Tell the client that no further calls are served; those under way go on. Waits for nothing."""
        self._leaving = True
        self._sender.offer(http2.go_away(self._last, http2.NO_ERROR))

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
        self._sender.wake()

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
        self._sender.note(http2.settings(ours) + http2.window_update(0, _WINDOW - http2.DEFAULT_WINDOW))
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
            flush()
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
                self._sender.note(http2.frame(http2.PING, http2.ACK, 0, bytes(payload)))
        elif kind == http2.SETTINGS:
            if not flags & http2.ACK:
                self._settings(payload)
                self._sender.note(http2.frame(http2.SETTINGS, http2.ACK, 0))
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
                self._sender.take_windows(value, tuple(self._streams.values()))
            elif name == http2.MAX_FRAME_SIZE:
                self._sender.take_frames(value)

    def _update(self, number: int, amount: int) -> None:
        if not amount:
            raise ConnectionBroken(http2.PROTOCOL_ERROR, "a window that grows by nothing")
        stream = self._streams.get(number) if number else None
        if stream is not None or not number:
            self._sender.take_more(stream, amount)

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
            self._sender.note(http2.reset(number, http2.REFUSED_STREAM))
            return
        path = headers.get(":path", "")
        method = self._methods.get(path)
        if method is None or not headers.get("content-type", "").startswith("application/grpc"):
            block = http2.ANSWER + http2.trailers(Code.UNIMPLEMENTED, f"unknown method {path[:200]}")
            answer = http2.frame(http2.HEADERS, LAST, number, block)
            if not flags & http2.END_STREAM:
                answer += http2.reset(number, http2.NO_ERROR)
            self._sender.note(answer)
            return
        sender = self._sender
        stream = self._streams[number] = Stream(
            number, method, headers, sender.initial_window, sender.flow, more=sender.control, wake=sender.wake
        )
        if method.takes_many:
            self._hand_over(stream, lambda: self._answer(stream, stream.requests()))
        if flags & http2.END_STREAM:
            self._ended(stream)

    def _data(self, flags: int, number: int, payload: memoryview) -> None:
        size = len(payload)
        self._owed += size
        if self._owed >= _WINDOW // 4:
            self._sender.note(http2.window_update(0, self._owed))
            self._owed = 0
        stream = self._streams.get(number)
        if stream is None:
            if not number or number > self._last:
                raise ConnectionBroken(http2.PROTOCOL_ERROR, "data of a stream that has not begun")
            return
        try:
            stream.receive(flags, payload)
        except LamellaError as problem:
            self._refuse(stream, *status_of(problem, stream.method.path))
            stream.cancel()
            return
        if flags & http2.END_STREAM:
            self._ended(stream)

    def _ended(self, stream: Stream) -> None:
        """The client has said all it will."""
        if stream.ending:
            return
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
            self._quick(stream, data, quick)
        else:
            self._hand_over(stream, lambda: self._answer_one(stream, data))

    # Answering -----------------------------------------------------------------------------------------------------

    def _hand_over(self, stream: Stream, work: Callable[[], None]) -> None:
        try:
            self._workers.run(work)
        except Exhausted as problem:
            self._refuse(stream, *status_of(problem, stream.method.path))

    def _quick(self, stream: Stream, data: bytes, quick: Callable[[Any], bool]) -> None:
        method = stream.method
        try:
            request = method.request(data)
            if not quick(request):
                self._hand_over(stream, lambda: self._answer(stream, request))
                return
            result = method.run(request, stream)
            answers = result if method.gives_many else (result,)
            if not isinstance(answers, (tuple, list)):
                self._hand_over(stream, lambda: self._stream(stream, answers))
                return
            parts, size = framed(answers)
        except Exception as problem:  # noqa: BLE001 whatever it is, the client gets a status
            self._refuse(stream, *status_of(problem, method.path))
            return
        with _Ending(self._ending):
            if self._sender.answer_at_once(
                stream, parts, size, http2.trailers(Code.OK, ""), lambda: self._forget(stream.id, Code.OK)
            ):
                return
        kept = [bytes(part) for part in parts]  # the buffers may be used again before these are sent
        self._hand_over(stream, lambda: self._sent(stream, kept, size))

    def _answer_one(self, stream: Stream, data: bytes) -> None:
        try:
            request = stream.method.request(data)
        except LamellaError as problem:
            self._failed(stream, problem)
            return
        self._answer(stream, request)

    def _answer(self, stream: Stream, request: Any) -> None:
        """Of a method that takes a stream, ``request`` is an iterator of them."""
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

    def _whole(self, stream: Stream, answer: Any) -> None:
        try:
            parts, size = framed((answer,))
        except Exception as problem:  # noqa: BLE001 whatever it is, the client gets a status
            self._failed(stream, problem)
            return
        self._sent(stream, parts, size)

    def _sent(self, stream: Stream, parts: Sequence[Part], size: int) -> None:
        try:
            self._sender.transmit(stream, parts, size)
        except (Cancelled, OSError):
            return
        self._finish(stream, Code.OK, "")

    def _stream(self, stream: Stream, answers: Iterator[Any]) -> None:
        try:
            try:
                for answer in answers:
                    parts, size = framed((answer,))
                    self._sender.transmit(stream, parts, size)
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
        """Forget the call, and send the status once others have sent theirs. Not for the thread that reads."""
        with _Ending(self._ending):
            if self._forget(stream.id, code) is None:
                return
            try:
                self._sender.send([_status(stream, code, message)])
            except OSError:
                pass

    def _refuse(self, stream: Stream, code: Code, message: str) -> None:
        """As `_finish`, for the thread that reads. Raises OSError, ConnectionBroken."""
        with _Ending(self._ending):
            if self._forget(stream.id, code) is None:
                return
            self._sender.note(_status(stream, code, message))
            self._sender.flush()

    def _forget(self, number: int, code: Code) -> Stream | None:
        """The call that was under way and has ended with ``code``."""
        stream = self._streams.pop(number, None)
        if stream is not None and self._tally is not None:
            self._tally.call(stream.method.path, code, stream.began)
        return stream


def _status(stream: Stream, code: Code, message: str) -> bytes:
    """The frames that end a call's answer."""
    block = http2.trailers(code, message)
    found = http2.frame(http2.HEADERS, LAST, stream.id, block if stream.started else http2.ANSWER + block)
    return found if stream.ending else found + http2.reset(stream.id, http2.NO_ERROR)


class _Ending:
    """In this block a call is forgotten and its client is told: the connection is busy until it ends."""

    __slots__ = ("_all",)

    def __init__(self, all_of_them: set[object]) -> None:
        self._all = all_of_them

    def __enter__(self) -> None:
        self._all.add(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._all.discard(self)
