# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 responses: the ends of bodies, malformed heads and chunks, timeouts."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import time

import pytest

from lamella.errors import InvalidInput
from lamella.registry.http.response import MalformedResponse, RawResponse

OK = b"HTTP/1.1 200 OK\r\n"


class Given:
    """A connection that delivers these bytes, then ends."""

    def __init__(self, raw: bytes) -> None:
        self._file = io.BytesIO(raw)

    def recv_into(self, view: memoryview) -> int:
        return self._file.readinto(view[:40])


class Dripping:
    """A connection that delivers single bytes without end."""

    def recv_into(self, view: memoryview) -> int:
        time.sleep(0.02)
        view[:1] = b"H"
        return 1


def answer(raw: bytes, method: str = "GET") -> RawResponse:
    return RawResponse(Given(raw), method, 1)


def body(found: RawResponse, size: int = 7) -> bytes:
    buffer = bytearray(size)
    return b"".join(iter(lambda: bytes(buffer[: found.readinto(memoryview(buffer))]), b""))


@pytest.mark.parametrize(
    ("raw", "expected", "stays"),
    [
        (OK + b"Content-Length: 9\r\n\r\nall of it", b"all of it", True),
        (OK + b"Content-Length: 9\r\nConnection: x, Close\r\n\r\nall of it", b"all of it", False),
        (OK + b"content-length: 3, 3\r\n\r\nallMORE", b"all", False),
        (OK + b"Content-Length:0\r\n\r\n", b"", True),
        (OK + b"\r\nto the end", b"to the end", False),
        (OK + b"Transfer-Encoding: Chunked\r\n\r\n3\r\nall\r\n010;x=y\r\n of it in pieces\r\n0\r\n\r\n", None, True),
        (OK + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n3\r\nall\r\n0\r\n\r\n", b"all", False),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nall\r\n0\r\nA: trailer\r\n\r\n", b"all", True),
        (b"HTTP/1.0 200 OK\nContent-Length: 3\n\nall", b"all", False),
        (b"HTTP/1.0 200 OK\nConnection: keep-alive\nContent-Length: 3\n\nall", b"all", True),
        (b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nall", b"all", True),
        (b"HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n", b"", True),
        (b"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nall", b"all", True),
    ],
)
def test_a_body_ends_where_its_head_says(raw: bytes, expected: bytes | None, stays: bool) -> None:
    found = answer(raw)
    assert body(found) == (b"all of it in pieces" if expected is None else expected)
    assert found.reusable == stays


def test_the_response_to_head_has_no_body() -> None:
    found = answer(OK + b"Content-Length: 3\r\n\r\n", "HEAD")
    assert (body(found), found.reusable, found.headers["content-length"]) == (b"", True, "3")
    assert answer(OK + b"Transfer-Encoding: chunked\r\n\r\n", "HEAD").reusable


def test_a_connection_is_reusable_only_after_the_body_is_read() -> None:
    found = answer(OK + b"Content-Length: 9\r\n\r\nall of it")
    assert not found.reusable
    assert 0 < found.readinto(memoryview(bytearray(4))) <= 4
    assert not found.reusable


def test_fields_are_joined_and_found_in_any_case() -> None:
    found = answer(OK + b"A: 1\r\nb:2\r\na:\t3 \r\nC: one\r\n\t two\r\nD: \xe4\r\n\r\n")
    assert dict(found.headers) == {"a": "1, 3", "b": "2", "c": "one two", "d": "ä"}
    assert "A" in found.headers
    assert found.headers.get("x") is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 99 OK\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nName : value\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nName\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nName: a\rb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nName: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: " + b"b" * (70 << 10),
        b"HTTP/1.1 200 OK\r\n: value\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
    ],
)
def test_malformed_heads_are_refused(raw: bytes) -> None:
    with pytest.raises(MalformedResponse):
        answer(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"3\r\nal",
        b"3\r\nall\r\n",
        b"3\r\nallMORE\r\n0\r\n\r\n",
        b"-1\r\nall\r\n0\r\n\r\n",
        b"\r\nall\r\n0\r\n\r\n",
        b"1_0\r\nall",
        b"f" * 16 + b"\r\nall",
    ],
)
def test_malformed_chunks_are_refused(raw: bytes) -> None:
    found = answer(OK + b"Transfer-Encoding: chunked\r\n\r\n" + raw)
    with pytest.raises(MalformedResponse):
        body(found)
    assert not found.reusable


def test_a_line_may_span_two_buffers() -> None:
    many = b"".join(b"n%d: %s\r\n" % (at, bytes([97 + at]) * 30_000) for at in range(5))
    found = answer(OK + many + b"Content-Length: 3\r\n\r\nall")
    assert (found.headers["N4"], body(found), found.reusable) == ("e" * 30_000, b"all", True)


def test_a_cut_body_is_an_error() -> None:
    found = answer(OK + b"Content-Length: 9\r\n\r\nall")
    with pytest.raises(MalformedResponse, match="closed"):
        body(found)


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(InvalidInput, match="Content-Length"):
        answer(OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nall")


def test_a_dripping_head_times_out() -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        RawResponse(Dripping(), "GET", 0.05)
    assert time.monotonic() - start < 10


_DROPPED = """
from lamella.registry.http.response import RawResponse
class Given:
    raw = b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n"
    def recv_into(self, view):
        view[:len(self.raw)], count, self.raw = self.raw, len(self.raw), b""
        return count
assert RawResponse(Given(), "GET", 1).reusable
"""


def test_a_finished_response_is_deleted_without_a_warning() -> None:
    done = subprocess.run([sys.executable, "-X", "dev", "-c", _DROPPED], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_response_collected_after_its_socket_raises_nothing() -> None:
    """Python 3.13 reports what the collector's flush of an `HTTPResponse` raises."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
        response = RawResponse(ours, "GET", 5)
        response._socket.close()
        response._parsed.close()
