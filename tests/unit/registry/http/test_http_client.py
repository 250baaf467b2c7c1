# SPDX-License-Identifier: Apache-2.0
"""Pins the undocumented parts of `http.client` and `ssl` in use, so that a Python that changes them fails here."""

from __future__ import annotations

import inspect
import io
import ssl
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest


class File(io.BytesIO):
    """A socket with `makefile` only, which is all that a response may use."""

    def makefile(self, mode: str) -> File:
        assert mode == "rb"
        return self

    def close(self) -> None:
        """A response closes its file at its end."""


class Sink:
    """A socket with `sendall` only, which is all that a request may use."""

    def __init__(self) -> None:
        self.sent = b""

    def sendall(self, raw: bytes) -> None:
        self.sent += raw


def parse(raw: bytes, method: str = "GET") -> Any:
    response: Any = HTTPResponse(File(raw), method=method)  # type: ignore[arg-type]
    response.begin()
    return response


def test_a_response_is_read_from_the_file_of_its_socket_alone() -> None:
    raw = File(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nA: 1\r\nA: 2\r\n\r\nbody")
    response: Any = HTTPResponse(raw, method="GET")  # type: ignore[arg-type]
    response.begin()
    assert (response.status, response.getheaders()) == (200, [("A", "1"), ("A", "2")])
    assert raw.read() == b"body"


def test_an_interim_response_other_than_100_is_left_to_the_caller() -> None:
    raw = File(b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
    statuses = []
    for _ in range(2):
        response: Any = HTTPResponse(raw, method="GET")  # type: ignore[arg-type]
        response.begin()
        statuses.append(response.status)
    assert statuses == [103, 200]


@pytest.mark.parametrize(
    ("fields", "chunked", "will_close"),
    [
        (b"Content-Length: 3\r\n", False, False),
        (b"Content-Length: 3\r\nConnection: close\r\n", False, True),
        (b"Transfer-Encoding: chunked\r\n", True, False),
        (b"Transfer-Encoding: gzip, chunked\r\n", False, True),
        (b"", False, True),
    ],
)
def test_a_parsed_head_says_how_its_body_ends(fields: bytes, chunked: bool, will_close: bool) -> None:
    response = parse(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n")
    assert (bool(response.chunked), response.will_close) == (chunked, will_close)


def test_malformed_fields_are_defects() -> None:
    assert parse(b"HTTP/1.1 200 OK\r\nName : value\r\n\r\n").headers.defects != []
    assert parse(b"HTTP/1.1 200 OK\r\nName: value\r\n\r\n").headers.defects == []


def test_chunks_are_read_into_a_buffer() -> None:
    response = parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: x\r\n\r\n")
    buffer = bytearray(8)
    assert (response.readinto(buffer), bytes(buffer[:3]), response.readinto(buffer)) == (3, b"abc", 0)


def test_a_request_goes_to_the_socket_that_was_set() -> None:
    connection: Any = HTTPConnection("")
    connection.sock = sink = Sink()
    connection.putrequest("GET", "/x?y", skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", "registry.example")
    connection.endheaders()
    assert sink.sent == b"GET /x?y HTTP/1.1\r\nHost: registry.example\r\n\r\n"


def test_tls_can_be_spoken_over_memory_with_the_names_in_use() -> None:
    parameters = inspect.signature(ssl.SSLContext.wrap_bio).parameters
    assert list(parameters)[:5] == ["self", "incoming", "outgoing", "server_side", "server_hostname"]
    connection = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
