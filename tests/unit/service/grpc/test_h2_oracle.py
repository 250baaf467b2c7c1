# SPDX-License-Identifier: Apache-2.0
"""The server against h2, another implementation of HTTP/2: both agree on the same bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import h2.exceptions
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, PingAckReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.settings import SettingCodes
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.service.grpc.test_http2 import CHAT, ECHO, PIECES, QUICK, Peer, Service, message, messages, peer
from tests.unit.service.serving import running

from lamella.service.grpc import http2
from lamella.service.grpc.connection import Connection
from lamella.service.grpc.flow import CONNECTION_WINDOW, WINDOW
from lamella.service.grpc.server import Server

HEADERS = (
    *((":method", "POST"), (":scheme", "http"), (":path", CHAT), (":authority", "localhost")),
    *(("content-type", "application/grpc"), ("te", "trailers")),
)
PING = b"12345678"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    address = tmp_path_factory.mktemp("h2") / "s"
    with running(address, Service().methods()) as server:
        yield server, address


def connection_of(server: Server, streams: int) -> Connection:
    """The server's side of the only client that has so many calls under way."""
    (found,) = [one for one in tuple(server._connections) if one.calls == streams]
    return found


class Client:
    """h2's client: it refuses what the server must not send."""

    def __init__(self, address: Path, window: int, frame: int) -> None:
        self._peer = Peer(address, preface=False)
        self.state = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.state.initiate_connection()
        self.state.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.MAX_FRAME_SIZE: frame})
        self.data: dict[int, bytes] = {}
        self.headers: dict[int, dict[str, str]] = {}
        self.ended: set[int] = set()
        self._flush()
        self.ping()

    def request(self, path: str) -> int:
        stream = self.state.get_next_available_stream_id()
        self.state.send_headers(stream, [*HEADERS[:2], (":path", path), *HEADERS[3:]])
        self._flush()
        return stream

    def send(self, stream: int, data: bytes, padding: int | None, *, last: bool = False) -> None:
        """Send data as h2 finds it allowed."""
        extra = 0 if padding is None else padding + 1
        while data:
            allowed = min(self.state.local_flow_control_window(stream), self.state.max_outbound_frame_size) - extra
            if allowed > 0:
                self.state.send_data(stream, data[:allowed], pad_length=padding)
                data = data[allowed:]
                self._flush()
            else:
                self.receive()
        if last:
            self.state.end_stream(stream)
            self._flush()

    def resize(self, window: int) -> None:
        self.state.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self._flush()

    def receive(self) -> list[Any]:
        got = self._peer.socket.recv(1 << 16)
        assert got
        events = self.state.receive_data(got)
        ended = {event.stream_id for event in events if isinstance(event, StreamEnded)}
        for event in events:
            match event:
                case DataReceived():
                    self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
                    size = event.flow_controlled_length
                    if size:
                        self.state.increment_flow_control_window(size)
                    if size and event.stream_id not in ended:
                        self.state.increment_flow_control_window(size, event.stream_id)
                case ResponseReceived() | TrailersReceived():
                    headers = [(str(name), str(value)) for name, value in event.headers]
                    self.headers.setdefault(event.stream_id, {}).update(headers)
                case StreamEnded():
                    self.ended.add(event.stream_id)
                case _:
                    pass
        self._flush()
        return events

    def answer(self, stream: int) -> list[bytes]:
        while stream not in self.ended:
            self.receive()
        assert self.headers[stream]["grpc-status"] == "0"
        return messages(self.data.get(stream, b""))

    def ping(self) -> None:
        """Wait until the server has handled what was sent."""
        self.state.ping(PING)
        self._flush()
        while not any(isinstance(event, PingAckReceived) for event in self.receive()):
            pass

    def close(self) -> None:
        self._peer.close()

    def _flush(self) -> None:
        self._peer.send(self.state.data_to_send())


SIZES = st.sampled_from([0, 1, 11, 999, 1000, 16_379, 16_384, 70_000, 300_000])
REQUESTS = st.tuples(st.sampled_from([ECHO, PIECES, QUICK, CHAT]), SIZES, st.none() | st.integers(0, 255))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(REQUESTS, min_size=1, max_size=8),
    st.integers(2000, 1 << 20),
    st.sampled_from([16_384, 16_385, 1 << 20]),
    st.lists(st.integers(2000, 1 << 20), max_size=3),
)
def test_requests_of_h2_are_understood_and_h2_understands_the_answers(
    server: tuple[Server, Path],
    requests: list[tuple[str, int, int | None]],
    window: int,
    frame: int,
    resizes: list[int],
) -> None:
    client = Client(server[1], window, frame)
    try:
        kept = client.request(CHAT)  # stays open, so that the windows of a stream can be compared
        client.send(kept, message(b"x" * 3000), None)
        expected = {}
        for at, (path, size, padding) in enumerate(requests):
            data = bytes((at,)) * size
            stream = client.request(path)
            client.send(stream, message(data), padding, last=True)
            expected[stream] = {
                ECHO: [data + b"!"],
                PIECES: [data] * 3,
                QUICK: [data] * 2,
                CHAT: [b"<" + data + b">"],
            }[path]
            if at < len(resizes):
                client.resize(resizes[at])
        found = {stream: client.answer(stream) for stream in expected}
        assert found == expected
        while messages(client.data.get(kept, b"")) != [b"<" + b"x" * 3000 + b">"]:
            client.receive()
        client.ping()
        ours = connection_of(server[0], 1)
        flow = ours._flow
        stream_flow = ours._streams[kept].flow
        sending = min(flow._send, stream_flow.send)
        receiving = min(CONNECTION_WINDOW - flow._owed, WINDOW - stream_flow.owed)
        assert sending == client.state.remote_flow_control_window(kept)
        assert receiving == client.state.local_flow_control_window(kept)
        assert CONNECTION_WINDOW - flow._owed == client.state.outbound_flow_control_window
        client.send(kept, b"", None, last=True)
        assert client.answer(kept) == [b"<" + b"x" * 3000 + b">"]
    finally:
        client.close()


# What h2 refuses ---------------------------------------------------------------------------------------------------

Frame: TypeAlias = tuple[int, int, int, bytes]


def start(encoder: Encoder) -> bytes:
    """A connection with stream 1 open, stream 3 ended by the client, and nothing answered for lack of a window."""
    block = encoder.encode(HEADERS)
    ended = http2.END_HEADERS | http2.END_STREAM
    return b"".join(
        (
            http2.PREFACE,
            http2.settings({http2.INITIAL_WINDOW_SIZE: 0}),
            http2.frame(http2.HEADERS, http2.END_HEADERS, 1, block),
            http2.frame(http2.DATA, 0, 1, message(b"first")),
            http2.frame(http2.HEADERS, ended, 3, encoder.encode(HEADERS)),
        )
    )


def refused_by_h2(first: bytes, hostile: bytes) -> bool:
    state = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
    state.initiate_connection()
    state.receive_data(first)
    state.data_to_send()
    try:
        events = state.receive_data(hostile)
    except h2.exceptions.ProtocolError:
        return True
    return any(isinstance(event, StreamReset) and not event.remote_reset for event in events)


def refused(address: Path, first: bytes, hostile: bytes) -> bool:
    """Whether the server ends the connection, or a call of it."""
    with peer(address, preface=False) as one:
        try:
            one.send(first, http2.frame(http2.PING, 0, 0, PING), hostile, http2.frame(http2.PING, 0, 0, PING[::-1]))
        except OSError:  # it has ended the connection
            return True
        while (frame := one.frame()) is not None:
            kind, flags, number, payload = frame
            if kind in (http2.GOAWAY, http2.RST_STREAM) or (
                number > 3 and kind == http2.HEADERS and flags & http2.END_STREAM and b"grpc-message" in payload
            ):
                return True
            if kind == http2.PING and payload == PING[::-1]:
                return False
    return True


PAYLOADS = st.binary(max_size=12) | st.sampled_from(
    [
        *(
            bytes(4),
            bytes(5),
            bytes(8),
            struct.pack(">I", 1),
            struct.pack(">I", http2.MAX_WINDOW),
            struct.pack(">IB", 1, 7),
        ),
        *(struct.pack(">HI", 2, 2), struct.pack(">HI", 4, 1 << 31), struct.pack(">HI", 4, 1 << 30), b"\x83\x86\xbe"),
        *(struct.pack(">HI", 5, 1), struct.pack(">HI", 99, 1), struct.pack(">IB", 5, 7) + b"\x83\x86"),
    ]
)
KINDS = st.integers(0, 9) | st.just(11)  # 10 is an extension that only h2 knows
FRAMES = st.tuples(KINDS, st.sampled_from([0, 1, 4, 5, 8, 9, 13, 32, 36, 37]), st.integers(0, 7), PAYLOADS)


@settings(max_examples=300, deadline=None)
@given(FRAMES)
def test_frames_that_h2_refuses_are_refused(server: tuple[Server, Path], frame: Frame) -> None:
    first = start(Encoder())
    hostile = http2.frame(*frame)
    kind, flags, _, payload = frame
    unfinished = kind == http2.HEADERS and not flags & http2.END_HEADERS  # which the next frame decides about
    reserved = kind == http2.WINDOW_UPDATE and payload[:1] >= b"\x80"  # a bit that h2 refuses, and RFC 9113 ignores
    if refused_by_h2(first, hostile) and not unfinished and not reserved:
        assert refused(server[1], first, hostile)


NAMES = st.sampled_from(
    [
        *(":method", ":path", ":scheme", ":authority", ":status", ":protocol", ":x", "connection", "upgrade", "te"),
        *("transfer-encoding", "keep-alive", "proxy-connection", "X-Upper", "a b", "a:b", "", "ok", "grpc-timeout"),
    ]
)
VALUES = st.sampled_from(["", "POST", "x", " x", "x ", "a\0b", "a\r\nb: c", "trailers", "gzip", "1S", "ключ"])
FIELD = st.tuples(NAMES, VALUES)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_headers_that_h2_refuses_are_refused(server: tuple[Server, Path], data: st.DataObject) -> None:
    encoder = Encoder()
    first = start(encoder)
    fields = list(HEADERS)
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(fields) - 1))
        match data.draw(st.sampled_from(["drop", "add", "change"])):
            case "drop" if fields[at][0] != ":authority":  # which h2 demands, and RFC 9113 does not
                del fields[at]
            case "add":
                fields.insert(at, data.draw(FIELD))
            case _:
                fields[at] = (fields[at][0], data.draw(VALUES))
    stream = data.draw(st.sampled_from([1, 5]))
    flags = http2.END_HEADERS | data.draw(st.sampled_from([0, http2.END_STREAM]))
    hostile = http2.frame(http2.HEADERS, flags, stream, encoder.encode(fields))
    if refused_by_h2(first, hostile):
        assert refused(server[1], first, hostile)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 3]), st.integers(1, 1 << 29)), max_size=8))
def test_windows_that_h2_finds_too_large_are_refused(
    server: tuple[Server, Path], updates: list[tuple[int, int]]
) -> None:
    first = start(Encoder())
    hostile = b"".join(http2.window_update(*update) for update in (*updates, (1, http2.MAX_WINDOW)))
    assert refused_by_h2(first, hostile) == refused(server[1], first, hostile)
