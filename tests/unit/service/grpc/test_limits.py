# SPDX-License-Identifier: Apache-2.0
"""Shares of one client in the server's memory and threads, through the wire."""

from __future__ import annotations

import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.service.grpc.test_http2 import CHAT, ECHO, Peer, Service, message, peer
from tests.unit.service.serving import running

from lamella.service.grpc import http2
from lamella.service.grpc.connection import MAX_STREAMS
from lamella.service.grpc.quota import Quota
from lamella.service.grpc.rpc import AnswerQueue, Call, Encoded, Method
from lamella.service.grpc.server import Server
from lamella.service.grpc.status import Code
from lamella.service.grpc.thread_pool import ThreadPool

FRAME = 16_000
WAIT = "/test/Wait"
EXHAUSTED = str(int(Code.RESOURCE_EXHAUSTED))


def unfinished(stream: int, size: int) -> Iterator[bytes]:
    """Frames of a message of ``size`` bytes, without its last one."""
    yield http2.frame(http2.DATA, 0, stream, struct.pack(">BI", 0, size) + bytes(FRAME))
    for _ in range(size // FRAME - 2):
        yield http2.frame(http2.DATA, 0, stream, bytes(FRAME))


def reach(wanted: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.01)


class TestMemory:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[Server]:
        with running(tmp_path / "s", Service().methods(), max_held=32 << 20) as server:
            yield server

    @pytest.mark.parametrize("path", [ECHO, CHAT])
    def test_unfinished_messages_beyond_the_share_are_refused(self, server: Server, tmp_path: Path, path: str) -> None:
        with peer(tmp_path / "s") as one:
            for stream in (1, 3, 5):
                one.send(one.open(stream, path), *unfinished(stream, 7 << 20))
            refused = one.answer(5)[1]
            assert (refused["grpc-status"], "share" in refused["grpc-message"]) == (EXHAUSTED, True)
            assert server.memory.used <= 16 << 20
            with peer(tmp_path / "s") as other:
                other.send(other.request(1, ECHO, b"abc"))
                assert other.answer(1)[0] == [b"abc!"]
        reach(lambda: server.memory.used == 0)

    def test_messages_that_wait_for_their_call_count_too(self, server: Server, tmp_path: Path) -> None:
        with peer(tmp_path / "s", INITIAL_WINDOW_SIZE=0) as one:  # nothing can be answered, so that nothing is taken
            for stream in range(1, 17, 2):
                one.send(one.open(stream, CHAT))
                for _ in range(3 << 6):
                    one.send(http2.frame(http2.DATA, 0, stream, message(bytes(FRAME))))
            one.send(http2.frame(http2.PING, 0, 0, bytes(8)))
            frames = one.frames(lambda frame: frame[:2] == (http2.PING, http2.ACK))
            ended = [number for kind, flags, number, _ in frames if kind == http2.HEADERS and flags & http2.END_STREAM]
            assert 0 < len(ended) < 8
            assert server.memory.used <= 16 << 20

    def test_a_message_that_is_finished_or_cancelled_gives_its_memory_back(
        self, server: Server, tmp_path: Path
    ) -> None:
        with peer(tmp_path / "s", INITIAL_WINDOW_SIZE=http2.MAX_WINDOW) as one:
            one.send(http2.window_update(0, 1 << 30))
            size = 7 << 20
            rest = size - (size // FRAME - 1) * FRAME
            for stream in range(1, 13, 2):
                one.send(one.open(stream, CHAT), *unfinished(stream, size))
                if stream % 4 == 1:
                    one.send(http2.frame(http2.DATA, http2.END_STREAM, stream, bytes(rest)))
                    assert [len(data) for data in one.answer(stream)[0]] == [size + 2]
                else:
                    one.send(http2.reset(stream, 8))
            one.send(http2.frame(http2.PING, 0, 0, bytes(8)))
            one.frames(lambda frame: frame[:2] == (http2.PING, http2.ACK))
            assert server.memory.used <= 2 << 20

    def test_an_idle_thread_keeps_no_request(self) -> None:
        class Job:
            def __call__(self) -> None: ...

        pool = ThreadPool(2)
        job = Job()
        kept = weakref.ref(job)
        pool.run(job, Quota(pool.limit))
        del job
        reach(lambda: kept() is None)


def test_64_mib_up_one_connection_are_granted_once(tmp_path: Path) -> None:
    """The window updates of the stream, and those of the connection, are never more than what was sent."""
    size, sent = 64 << 20, 0
    windows = {0: http2.DEFAULT_WINDOW, 1: 0}
    with (
        running(tmp_path / "s", Service().methods()),
        peer(tmp_path / "s", INITIAL_WINDOW_SIZE=http2.MAX_WINDOW) as one,
    ):
        one.send(http2.window_update(0, 1 << 30), one.open(1, CHAT))
        frames = one.frames(lambda frame: frame[0] == http2.SETTINGS)
        windows[1] = dict(struct.iter_unpack(">HI", frames[-1][3]))[http2.INITIAL_WINDOW_SIZE]
        kind, _, number, payload = one.frames(lambda frame: frame[0] == http2.WINDOW_UPDATE)[-1]
        windows[number] += struct.unpack(">I", payload)[0]
        first = dict(windows)
        piece = http2.frame(http2.DATA, 0, 1, message(bytes(FRAME - 5)))
        granted = {0: 0, 1: 0}
        while sent < size:
            while sent < size and sent + FRAME <= min(first[number] + granted[number] for number in (0, 1)):
                one.send(piece)
                sent += FRAME
            kind, _, number, payload = one.frames(lambda frame: frame[0] in (http2.DATA, http2.WINDOW_UPDATE))[-1]
            if kind == http2.WINDOW_UPDATE:
                granted[number] += struct.unpack(">I", payload)[0]
                assert granted[number] <= sent
        one.send(http2.frame(http2.DATA, http2.END_STREAM, 1))
        assert one.answer(1)[1]["grpc-status"] == "0"


class Waiting(Service):
    """A method whose answers come when the test gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.queues: list[AnswerQueue] = []

    def wait(self, request: bytes, call: Call) -> AnswerQueue:
        self.calls.append(call)
        self.queues.append(AnswerQueue(10))
        return self.queues[-1]

    def methods(self) -> dict[str, Method]:
        return {**super().methods(), WAIT: Method(WAIT, self.wait, bytes, False, True, lambda request: True)}


class TestThreads:
    @pytest.fixture
    def service(self) -> Waiting:
        return Waiting()

    @pytest.fixture
    def server(self, tmp_path: Path, service: Waiting) -> Iterator[Server]:
        with running(tmp_path / "s", service.methods(), max_threads=32) as server:
            yield server

    def test_calls_that_wait_take_no_thread(self, server: Server, service: Waiting, tmp_path: Path) -> None:
        before = threading.active_count()
        with peer(tmp_path / "s") as one:
            one.send(*(one.request(stream, WAIT, b"") for stream in range(1, 2 * MAX_STREAMS, 2)))
            reach(lambda: len(service.queues) == MAX_STREAMS)
            assert threading.active_count() <= before + 2
            for queue in service.queues:
                queue.put(Encoded((b"now",)))
                queue.end()
            ended: set[int] = set()
            while len(ended) < MAX_STREAMS:
                _, flags, number, _ = one.frames(lambda frame: frame[0] == http2.HEADERS)[-1]
                ended |= {number} if flags & http2.END_STREAM else set()
            assert threading.active_count() <= before + 2

    def test_answers_that_others_produce_arrive_in_order(
        self, server: Server, service: Waiting, tmp_path: Path
    ) -> None:
        with peer(tmp_path / "s") as one:
            one.send(one.request(1, WAIT, b""))
            reach(lambda: len(service.queues) == 1)
            for number in range(5):
                service.queues[0].put(Encoded((bytes((number,)),)))
                time.sleep(0.01 * (number % 2))
            service.queues[0].end()
            found, headers = one.answer(1)
        assert (found, headers["grpc-status"]) == ([bytes((number,)) for number in range(5)], "0")

    def test_a_call_whose_client_accepts_nothing_holds_up_no_other(
        self, server: Server, service: Waiting, tmp_path: Path
    ) -> None:
        with peer(tmp_path / "s", INITIAL_WINDOW_SIZE=10) as one:
            one.send(one.request(1, WAIT, b""), one.request(3, WAIT, b""))
            reach(lambda: len(service.queues) == 2)
            service.queues[0].put(Encoded((b"x" * 20,)))
            one.frames(lambda frame: frame[0] == http2.DATA)
            service.queues[1].put(Encoded((b"y",)))
            assert one.frames(lambda frame: frame[0] == http2.DATA)[-1][2:] == (3, message(b"y"))
            one.send(http2.window_update(1, 100))
            assert one.frames(lambda frame: frame[0] == http2.DATA)[-1][2:] == (1, message(b"x" * 20)[10:])

    def test_a_client_with_many_calls_leaves_threads_to_the_others(self, server: Server, tmp_path: Path) -> None:
        greedy = [Peer(tmp_path / "s") for _ in range(3)]
        try:
            for one in greedy:
                one.send(*(one.open(stream, CHAT) for stream in range(1, 200, 2)))
                refused = one.answer(199)[1]
                assert (refused["grpc-status"], "share" in refused["grpc-message"]) == (EXHAUSTED, True)
            with peer(tmp_path / "s") as other:
                other.send(other.request(1, ECHO, b"abc"))
                assert other.answer(1)[0] == [b"abc!"]
        finally:
            for one in greedy:
                one.close()
        with peer(tmp_path / "s") as other:
            reach(lambda: server.calls == 0)
            other.send(*(other.request(stream, CHAT, b"abc") for stream in range(1, 21, 2)))
            assert other.answer(19)[0] == [b"<abc>"]


def test_the_stream_after_the_last_allowed_one_is_refused(tmp_path: Path) -> None:
    service = Waiting()
    with running(tmp_path / "s", service.methods()), peer(tmp_path / "s") as one:
        one.send(*(one.request(stream, WAIT, b"") for stream in range(1, 2 * MAX_STREAMS + 2, 2)))
        kind, _, stream, payload = one.frames(lambda frame: frame[0] in (http2.HEADERS, http2.RST_STREAM))[-1]
        assert (kind, stream, http2.number(memoryview(payload))) == (http2.RST_STREAM, 2001, http2.REFUSED_STREAM)
        one.send(http2.reset(1, 8), one.request(2003, ECHO, b"abc"))
        assert one.answer(2003)[0] == [b"abc!"]


def test_a_subscription_ends_with_its_client(tmp_path: Path) -> None:
    service = Waiting()
    with running(tmp_path / "s", service.methods()) as server:
        with peer(tmp_path / "s") as one:
            one.send(one.request(1, WAIT, b""))
            reach(lambda: len(service.queues) == 1)
            one.socket.shutdown(socket.SHUT_RDWR)
        reach(lambda: server.connections == 0)
        service.queues[0].put(Encoded((b"late",)))
        assert service.calls[0].cancelled


def test_the_oldest_answers_are_dropped_beyond_the_limits_and_the_last_one_is_kept() -> None:
    def left(queue: AnswerQueue) -> list[object]:
        return list(iter(queue.take, None))

    queue = AnswerQueue(max_answers=3, max_bytes=100)
    for number in range(5):
        queue.put(number, 10)
    assert left(queue) == [2, 3, 4]
    for number in range(5):
        queue.put(number, 40)
    assert left(queue) == [3, 4]
    queue.put("large", 1000)
    assert left(queue) == ["large"]
