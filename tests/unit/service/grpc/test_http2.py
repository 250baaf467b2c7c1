# SPDX-License-Identifier: Apache-2.0
"""The server's HTTP/2, frame by frame: what clients may do, and what broken ones do."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.service.serving import running

from lamella.service.grpc import http2
from lamella.service.grpc.rpc import Call, Encoded, Method
from lamella.service.grpc.send import Sender
from lamella.service.grpc.status import Code

ECHO = "/test/Echo"
PIECES = "/test/Pieces"
CHAT = "/test/Chat"
QUICK = "/test/Quick"
FLOOD = "/test/Flood"


class Service:
    """Methods that do simple things to bytes."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.calls: list[Call] = []
        self.flooded = 0

    def echo(self, request: bytes, call: Call) -> Encoded:
        self.calls.append(call)
        return Encoded((request, b"!"))

    def pieces(self, request: bytes, call: Call) -> Iterator[Encoded]:
        self.calls.append(call)
        try:
            for _ in range(3):
                yield Encoded((request,))
        finally:
            self.ended.set()

    def quick(self, request: bytes, call: Call) -> tuple[Encoded, ...]:
        self.calls.append(call)
        return (Encoded((request,)),) * 2

    def chat(self, requests: Iterator[bytes], call: Call) -> Iterator[Encoded]:
        self.calls.append(call)
        try:
            for request in requests:
                yield Encoded((b"<", request, b">"))
        finally:
            self.ended.set()

    def flood(self, request: bytes, call: Call) -> Iterator[Encoded]:
        self.calls.append(call)
        try:
            while True:
                self.flooded += 1
                yield Encoded((bytes(1 << 20),))
        finally:
            self.ended.set()

    def methods(self) -> dict[str, Method]:
        return {
            FLOOD: Method(FLOOD, self.flood, bytes, False, True, None),
            ECHO: Method(ECHO, self.echo, bytes, False, False, None),
            PIECES: Method(PIECES, self.pieces, bytes, False, True, None),
            QUICK: Method(QUICK, self.quick, bytes, False, True, lambda request: len(request) < 1000),
            CHAT: Method(CHAT, self.chat, bytes, True, True, None),
        }


Frame = tuple[int, int, int, bytes]


class Peer:
    """A client that sends any bytes."""

    def __init__(self, address: Path, *, preface: bool = True, **settings: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        self.socket.connect(str(address))
        self._left = b""
        self._encoder = Encoder()
        self._decoder = Decoder()
        if preface:
            values = {getattr(http2, name): value for name, value in settings.items()}
            self.send(http2.PREFACE + http2.settings(values))

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def block(self, path: str, *more: tuple[str, str], **fields: str) -> bytes:
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("content-type", fields.get("type", "application/grpc")),
            *more,
        ]
        return self._encoder.encode(headers)

    def open(self, stream: int, path: str, *more: tuple[str, str]) -> bytes:
        return http2.frame(http2.HEADERS, http2.END_HEADERS, stream, self.block(path, *more))

    def request(self, stream: int, path: str, data: bytes) -> bytes:
        return self.open(stream, path) + http2.frame(http2.DATA, http2.END_STREAM, stream, message(data))

    def frame(self) -> Frame | None:
        """The next frame; None at the end."""
        head = self._take(9)
        if head is None:
            return None
        high, low, kind, flags, stream = http2.HEAD.unpack(head)
        payload = self._take(high << 8 | low)
        assert payload is not None
        return kind, flags, stream, payload

    def frames(self, until: Callable[[Frame], bool]) -> list[Frame]:
        """The frames until one that is wanted, which is the last."""
        found = []
        while (frame := self.frame()) is not None:
            found.append(frame)
            if until(frame):
                return found
        raise AssertionError(f"the connection has ended: {found}")

    def answer(self, stream: int) -> tuple[list[bytes], dict[str, str]]:
        """The messages of a stream, and what it ended with."""
        data = b""
        headers: dict[str, str] = {}
        frames = self.frames(lambda frame: frame[2] == stream and frame[0] in (1, 3) and bool(frame[1] & 1))
        for kind, _, number, payload in frames:
            if number == stream and kind == http2.DATA:
                data += payload
            elif number == stream and kind == http2.HEADERS:
                headers.update((str(name), str(value)) for name, value in self._decoder.decode(payload))
        return messages(data), headers

    def goodbye(self) -> int:
        """The code that the connection ends with."""
        code = -1
        while (frame := self.frame()) is not None:
            if frame[0] == http2.GOAWAY:
                code = struct.unpack(">II", frame[3][:8])[1]
        return code

    def close(self) -> None:
        self.socket.close()

    def _take(self, size: int) -> bytes | None:
        while len(self._left) < size:
            try:
                got = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not got:
                return None
            self._left += got
        found, self._left = self._left[:size], self._left[size:]
        return found


def message(data: bytes, compressed: int = 0) -> bytes:
    return struct.pack(">BI", compressed, len(data)) + data


def messages(data: bytes) -> list[bytes]:
    found = []
    while data:
        _, size = struct.unpack(">BI", data[:5])
        found.append(data[5 : 5 + size])
        data = data[5 + size :]
    return found


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def address(tmp_path: Path, service: Service, caplog: pytest.LogCaptureFixture) -> Iterator[Path]:
    """Return where the service is served; whatever a test sends, nothing may be logged as a failure of ours."""
    with running(tmp_path / "socket", service.methods()):
        yield tmp_path / "socket"
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@contextmanager
def peer(address: Path, **settings: Any) -> Iterator[Peer]:
    found = Peer(address, **settings)
    try:
        yield found
    finally:
        found.close()


@pytest.mark.parametrize(
    ("path", "expected"),
    [(ECHO, [b"abc!"]), (PIECES, [b"abc"] * 3), (QUICK, [b"abc"] * 2), (CHAT, [b"<abc>"])],
)
def test_a_request_is_answered(address: Path, path: str, expected: list[bytes]) -> None:
    with peer(address) as one:
        one.send(one.request(1, path, b"abc"))
        found, headers = one.answer(1)
    assert found == expected
    assert headers == {":status": "200", "content-type": "application/grpc", "grpc-status": "0"}


def test_a_request_may_come_byte_by_byte(address: Path) -> None:
    with peer(address, preface=False) as one:
        whole = http2.PREFACE + http2.settings({}) + one.request(1, ECHO, b"abc")
        for byte in whole:
            one.send(bytes((byte,)))
        assert one.answer(1)[0] == [b"abc!"]


def test_messages_may_be_cut_anywhere_and_come_together(address: Path) -> None:
    whole = message(b"first") + message(b"") + message(b"x" * 40_000) + message(b"last")
    with peer(address) as one:
        one.send(one.open(1, CHAT))
        cuts = [0, 3, 5, 7, 10, 11, 16, 30_000, len(whole) - 1, len(whole)]
        for start, stop in pairwise(cuts):
            one.send(http2.frame(http2.DATA, 0, 1, whole[start:stop]))
        one.send(http2.frame(http2.DATA, http2.END_STREAM, 1))
        assert one.answer(1)[0] == [b"<first>", b"<>", b"<" + b"x" * 40_000 + b">", b"<last>"]


def test_headers_may_be_padded_prioritized_and_continued(address: Path) -> None:
    with peer(address) as one:
        block = one.block(ECHO)
        first = b"\x03" + struct.pack(">IB", 0, 16) + block[:7] + bytes(3)
        flags = http2.PADDED | http2.PRIORITIZED
        one.send(
            http2.frame(http2.HEADERS, flags, 1, first),
            http2.frame(http2.CONTINUATION, 0, 1, block[7:9]),
            http2.frame(http2.CONTINUATION, http2.END_HEADERS, 1, block[9:]),
            http2.frame(http2.DATA, http2.PADDED | http2.END_STREAM, 1, b"\x05" + message(b"abc") + bytes(5)),
        )
        assert one.answer(1)[0] == [b"abc!"]


def test_metadata_is_the_first_value_of_each_name(address: Path, service: Service) -> None:
    with peer(address) as one:
        one.send(one.open(1, ECHO, ("containerd-namespace", "a"), ("containerd-namespace", "b"), ("x", "1")))
        one.send(http2.frame(http2.DATA, http2.END_STREAM, 1, message(b"")))
        one.answer(1)
    assert (service.calls[0].namespace, service.calls[0].metadata["x"], service.calls[0].lease) == ("a", "1", None)


def test_no_more_is_sent_than_the_client_takes(address: Path) -> None:
    with peer(address, INITIAL_WINDOW_SIZE=10) as one:
        one.send(one.request(1, PIECES, b"x" * 20))
        seen = 0
        while seen < 75:
            frames = one.frames(lambda frame: frame[0] == http2.DATA)
            assert len(frames[-1][3]) <= 10
            seen += len(frames[-1][3])
            one.send(http2.window_update(1, len(frames[-1][3])))
        assert one.answer(1)[1]["grpc-status"] == "0"


@pytest.mark.parametrize("path", [PIECES, QUICK])
def test_a_window_may_shrink_below_nothing_and_grow_again(address: Path, path: str) -> None:
    with peer(address, INITIAL_WINDOW_SIZE=7) as one:
        one.send(one.request(1, path, b"x" * 20))
        one.frames(lambda frame: frame[0] == http2.DATA)
        one.send(http2.settings({http2.INITIAL_WINDOW_SIZE: 0}), http2.window_update(1, 3))
        one.send(http2.frame(http2.PING, 0, 0, b"12345678"))
        frames = one.frames(lambda frame: frame[0] == http2.PING)
        assert [frame for frame in frames if frame[0] == http2.DATA] == []
        one.send(http2.settings({http2.INITIAL_WINDOW_SIZE: 1000}))
        assert one.answer(1)[1]["grpc-status"] == "0"


def test_a_call_that_waits_to_send_ends_when_the_client_cancels(address: Path, service: Service) -> None:
    with peer(address, INITIAL_WINDOW_SIZE=10) as one:
        one.send(one.request(1, PIECES, b"x" * 20))
        one.frames(lambda frame: frame[0] == http2.DATA)
        one.send(http2.reset(1, 8))
        assert service.ended.wait(10)
        assert service.calls[0].cancelled
        one.send(one.request(3, ECHO, b"abc"), http2.window_update(3, 100))
        assert one.answer(3)[0] == [b"abc!"]


@pytest.mark.parametrize("how", ["cancels", "closes"])
def test_a_call_that_waits_for_messages_ends_when_the_client_goes(address: Path, service: Service, how: str) -> None:
    one = Peer(address)
    one.send(one.open(1, CHAT), http2.frame(http2.DATA, 0, 1, message(b"abc")))
    one.frames(lambda frame: frame[0] == http2.DATA)
    if how == "cancels":
        one.send(http2.reset(1, 8))
    else:
        one.close()
    assert service.ended.wait(10)
    assert service.calls[0].cancelled
    one.close()


def test_a_client_that_sends_faster_than_its_call_runs_has_to_wait(address: Path) -> None:
    """It may send the window and no more; what is taken is given back to it."""
    with peer(address, INITIAL_WINDOW_SIZE=0) as one:  # nothing can be answered, so that nothing is taken
        one.send(one.open(1, CHAT))
        piece = message(bytes(16_000))
        allowed, sent = 4 << 20, 0
        while sent + len(piece) <= allowed:
            one.send(http2.frame(http2.DATA, 0, 1, piece))
            sent += len(piece)
        one.send(http2.frame(http2.PING, 0, 0, b"12345678"))
        frames = one.frames(lambda frame: frame[0] == http2.PING)
        granted = sum(struct.unpack(">I", frame[3])[0] for frame in frames if (frame[0], frame[2]) == (8, 1))
        assert granted <= 8 << 20
        one.send(http2.settings({http2.INITIAL_WINDOW_SIZE: http2.MAX_WINDOW}), http2.window_update(0, 1 << 30))
        one.send(http2.frame(http2.DATA, http2.END_STREAM, 1))
        assert len(one.answer(1)[0]) == sent // len(piece)


def test_a_client_that_exceeds_its_window_is_disconnected(address: Path) -> None:
    with peer(address, INITIAL_WINDOW_SIZE=0) as one:
        one.send(one.open(1, CHAT))
        pieces = http2.frame(http2.DATA, 0, 1, message(bytes(200_000))) * 100
        with pytest.raises(OSError, match=r"reset|pipe"):
            one.send(pieces)


def test_a_ping_is_answered_and_an_answered_one_is_not(address: Path) -> None:
    with peer(address) as one:
        one.send(http2.frame(http2.PING, http2.ACK, 0, b"no------"), http2.frame(http2.PING, 0, 0, b"12345678"))
        found = one.frames(lambda frame: frame[0] == http2.PING)[-1]
    assert found == (http2.PING, http2.ACK, 0, b"12345678")


def test_more_pings_than_go_into_a_call_of_the_system_are_answered_once_the_client_reads(address: Path) -> None:
    pings = [number.to_bytes(8, "big") for number in range(3000)]
    data = message(bytes(3 << 20))
    with peer(address, INITIAL_WINDOW_SIZE=1 << 30) as one:
        one.send(http2.window_update(0, 1 << 30), one.open(1, PIECES))
        one.send(*(http2.frame(http2.DATA, 0, 1, data[at : at + 16384]) for at in range(0, len(data), 16384)))
        one.send(http2.frame(http2.DATA, http2.END_STREAM, 1))
        time.sleep(0.5)  # until the thread that writes is held up, and answers wait for it
        one.send(*(http2.frame(http2.PING, 0, 0, ping) for ping in pings))
        found = one.frames(lambda frame: frame[0] == http2.PING and frame[3] == pings[-1])
    assert [payload for kind, _, _, payload in found if kind == http2.PING] == pings


def test_frames_of_a_kind_that_is_not_known_are_passed_over(address: Path) -> None:
    with peer(address) as one:
        one.send(http2.frame(0x42, 0xFF, 0, b"what"), http2.frame(http2.PRIORITY, 0, 1, bytes(5)))
        one.send(one.request(1, ECHO, b"abc"), http2.reset(1, 0), http2.window_update(1, 5))
        one.send(one.request(3, ECHO, b"abc"))
        assert one.answer(3)[0] == [b"abc!"]


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (Code.UNIMPLEMENTED, message(b"abc", compressed=1)),
        (Code.RESOURCE_EXHAUSTED, struct.pack(">BI", 0, (16 << 20) + 1)),
        (Code.INVALID_ARGUMENT, b""),
        (Code.INVALID_ARGUMENT, message(b"abc") + message(b"")),
        (Code.INVALID_ARGUMENT, message(b"abc")[:-1]),
    ],
)
def test_messages_that_are_not_taken_have_their_status(address: Path, code: Code, data: bytes) -> None:
    with peer(address) as one:
        one.send(one.open(1, ECHO), http2.frame(http2.DATA, http2.END_STREAM, 1, data))
        assert one.answer(1)[1]["grpc-status"] == str(int(code))
        one.send(one.request(3, ECHO, b"abc"))
        assert one.answer(3)[0] == [b"abc!"]


def test_a_request_that_is_not_grpc_is_unimplemented(address: Path) -> None:
    with peer(address) as one:
        block = one.block(ECHO, type="text/plain")
        one.send(http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, 1, block))
        assert one.answer(1)[1]["grpc-status"] == "12"


@pytest.mark.parametrize(
    ("code", "frame"),
    [
        (http2.FRAME_SIZE_ERROR, http2.frame_head((256 << 10) + 1, http2.DATA, 0, 1)),
        (http2.FRAME_SIZE_ERROR, http2.frame(http2.PING, 0, 0, b"1")),
        (http2.FRAME_SIZE_ERROR, http2.frame(http2.SETTINGS, 0, 0, b"1")),
        (http2.FRAME_SIZE_ERROR, http2.frame(http2.RST_STREAM, 0, 1, b"1")),
        (http2.PROTOCOL_ERROR, http2.frame(http2.DATA, 0, 1, b"")),
        (http2.PROTOCOL_ERROR, http2.frame(http2.DATA, 0, 0, b"")),
        (http2.PROTOCOL_ERROR, http2.frame(http2.HEADERS, http2.END_HEADERS, 2, b"")),
        (http2.PROTOCOL_ERROR, http2.frame(http2.HEADERS, http2.END_HEADERS, 0, b"")),
        (http2.PROTOCOL_ERROR, http2.frame(http2.HEADERS, http2.PADDED, 1, b"\x05abc")),
        (http2.PROTOCOL_ERROR, http2.frame(http2.CONTINUATION, 0, 1, b"")),
        (http2.PROTOCOL_ERROR, http2.frame(http2.HEADERS, 0, 1, b"") + http2.frame(http2.PING, 0, 0, bytes(8))),
        (http2.PROTOCOL_ERROR, http2.frame(http2.PUSH_PROMISE, 0, 1, bytes(8))),
        (http2.PROTOCOL_ERROR, http2.window_update(0, 0)),
        (http2.FLOW_CONTROL_ERROR, http2.window_update(0, http2.MAX_WINDOW)),
        (http2.FLOW_CONTROL_ERROR, http2.settings({http2.INITIAL_WINDOW_SIZE: 1 << 31})),
        (http2.PROTOCOL_ERROR, http2.settings({http2.MAX_FRAME_SIZE: 5})),
        (http2.COMPRESSION_ERROR, http2.frame(http2.HEADERS, http2.END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff")),
        (
            http2.ENHANCE_YOUR_CALM,
            http2.frame(http2.HEADERS, 0, 1) + http2.frame(http2.CONTINUATION, 0, 1, bytes(1 << 15)) * 3,
        ),
    ],
)
def test_a_client_that_breaks_the_protocol_gets_a_goaway_and_is_disconnected(
    address: Path, code: int, frame: bytes
) -> None:
    with peer(address) as one:
        one.send(frame)
        assert one.goodbye() == code
    with peer(address) as next_one:
        next_one.send(next_one.request(1, ECHO, b"abc"))
        assert next_one.answer(1)[0] == [b"abc!"]


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n"])
def test_a_client_that_does_not_speak_http2_is_disconnected(address: Path, start: bytes) -> None:
    with peer(address, preface=False) as one:
        one.send(start)
        assert one.goodbye() == -1


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 255), st.integers(0, 4), st.binary(max_size=40))))
def test_frames_of_any_kind_leave_the_server_serving(frames: list[tuple[int, int, int, bytes]]) -> None:
    service = Service()
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder, running(Path(folder) / "s", service.methods()):
        with peer(Path(folder) / "s") as one:
            try:
                one.send(*(http2.frame(*frame) for frame in frames))
                one.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            one.goodbye()
        with peer(Path(folder) / "s") as two:
            two.send(two.request(1, ECHO, b"abc"))
            assert two.answer(1)[0] == [b"abc!"]


def test_calls_under_way_end_before_the_server_does(tmp_path: Path) -> None:
    service = Service()
    with running(tmp_path / "s", service.methods(), grace=10) as server:
        one = Peer(tmp_path / "s")
        one.send(one.open(1, CHAT), http2.frame(http2.DATA, 0, 1, message(b"abc")))
        one.frames(lambda frame: frame[0] == http2.DATA)
        server.stop()
        one.frames(lambda frame: frame[0] == http2.GOAWAY)
        one.send(one.open(3, CHAT))
        assert one.frames(lambda frame: frame[0] == http2.RST_STREAM)[-1][2] == 3
        one.send(http2.frame(http2.DATA, http2.END_STREAM, 1, message(b"def")))
        assert one.answer(1)[0] == [b"<def>"]
        one.close()
    assert service.ended.is_set()


def test_calls_that_do_not_end_are_cancelled(tmp_path: Path) -> None:
    service = Service()
    with running(tmp_path / "s", service.methods(), grace=0.1) as server:
        one = Peer(tmp_path / "s")
        one.send(one.open(1, CHAT), http2.frame(http2.DATA, 0, 1, message(b"abc")))
        one.frames(lambda frame: frame[0] == http2.DATA)
        began = time.monotonic()
        server.stop()
        assert one.answer(1)[1]["grpc-status"] == str(int(Code.UNAVAILABLE))
        assert one.goodbye() == -1
        assert time.monotonic() - began < 5
        one.close()
    assert service.ended.wait(5)


def test_a_client_is_disconnected_at_the_stop_without_a_thread_for_its_statuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service()
    with running(tmp_path / "s", service.methods(), grace=0.1) as server, peer(tmp_path / "s") as one:
        one.send(one.open(1, CHAT), http2.frame(http2.DATA, 0, 1, message(b"abc")))
        one.frames(lambda frame: frame[0] == http2.DATA)

        def fail(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", fail)
        server.stop()
        assert one.goodbye() == http2.NO_ERROR
    assert service.ended.wait(5)


@contextmanager
def deaf(address: Path, service: Service) -> Iterator[Peer]:
    """A client that reads nothing, for which a thread is held up in the middle of writing; that is stream 1."""
    with peer(address, INITIAL_WINDOW_SIZE=1 << 30) as one:
        one.send(http2.window_update(0, 1 << 30), one.request(1, FLOOD, b""))
        before = -1
        while service.flooded != before or not before:
            before = service.flooded
            time.sleep(0.2)
        yield one


def test_a_client_that_reads_nothing_delays_neither_the_stop_nor_other_clients(
    tmp_path: Path, service: Service
) -> None:
    with (
        running(tmp_path / "s", service.methods(), grace=0.1) as server,
        peer(tmp_path / "s") as other,
        deaf(tmp_path / "s", service),
    ):
        other.send(other.open(1, CHAT), http2.frame(http2.DATA, 0, 1, message(b"abc")))
        other.frames(lambda frame: frame[0] == http2.DATA)
        began = time.monotonic()
        server.stop()
        assert other.answer(1)[1]["grpc-status"] == str(int(Code.UNAVAILABLE))
        assert other.goodbye() == -1
    assert time.monotonic() - began < 8


def test_a_client_that_breaks_the_protocol_and_reads_nothing_is_disconnected(address: Path, service: Service) -> None:
    with deaf(address, service) as one:
        one.send(http2.window_update(0, 0))
        assert service.ended.wait(5)


def test_a_client_that_reads_nothing_is_read_from_after_its_request_was_refused(
    address: Path, service: Service
) -> None:
    with deaf(address, service) as one:
        one.send(one.open(3, ECHO), http2.frame(http2.DATA, http2.END_STREAM, 3, message(b"abc", compressed=1)))
        one.send(one.open(5, CHAT), http2.frame(http2.DATA, 0, 5, message(b"abc")))
        end = time.monotonic() + 5
        while len(service.calls) < 2:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.parametrize("path", [ECHO, QUICK, CHAT])
def test_a_client_has_the_end_of_its_call_before_the_connection_ends(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    write = Sender._write

    def slowly(sender: Sender, out: list[Any]) -> None:
        if any(part[3:5] == bytes((http2.HEADERS, http2.END_HEADERS | http2.END_STREAM)) for part in out):
            time.sleep(0.3)  # as where another thread is given the processor
        write(sender, out)

    monkeypatch.setattr(Sender, "_write", slowly)
    with running(tmp_path / "s", service.methods(), grace=10) as server:
        one = Peer(tmp_path / "s")
        one.send(one.request(1, path, b"abc"))
        while not service.calls:
            time.sleep(0.001)
        server.stop()
        assert one.answer(1)[1]["grpc-status"] == "0"
    one.close()


# Headers -----------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="ascii", min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=8)
NAMES = st.sampled_from([":path", ":method", "content-type", "x", "containerd-namespace", "grpc-timeout"])


@given(st.lists(st.lists(st.tuples(NAMES, TEXT | st.sampled_from(["POST", "a", "b"])), max_size=6), max_size=12))
def test_blocks_that_are_looked_up_are_read_as_if_they_were_decoded(blocks: list[list[tuple[str, str]]]) -> None:
    encoder, reader = Encoder(), http2.HeaderBlocks()
    for headers in blocks:
        for _ in range(3):  # the second and third time they are in the table
            expected: dict[str, str] = {}
            for name, value in headers:
                expected.setdefault(name, value)
            assert reader.read(encoder.encode(headers)) == expected


def test_a_client_that_varies_its_headers_has_few_of_them_kept() -> None:
    reader = http2.HeaderBlocks()
    for first in range(1, 62):
        for second in range(1, 62):
            reader.read(bytes((0x80 | first, 0x80 | second)))
            assert len(reader._known) <= 64
    assert reader.read(b"\x83\x86") == {":method": "POST", ":scheme": "http"}


@given(st.integers(0, 16), st.text(max_size=300))
def test_trailers_say_code_and_message(code: int, text: str) -> None:
    found = dict(Decoder().decode(http2.trailers(code, text), raw=True))
    assert int(found[b"grpc-status"]) == code
    raw = found.get(b"grpc-message", b"")
    assert unquote_to_bytes(raw) == text.encode("utf-8", "backslashreplace")
    assert raw.decode("ascii").isprintable()
