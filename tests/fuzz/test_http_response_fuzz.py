# SPDX-License-Identifier: Apache-2.0
"""Whatever a server sends, it is one answer or none, in whatever pieces it comes."""

from __future__ import annotations

import io
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.errors import InvalidInput
from lamella.registry.http.response import MalformedResponse, RawResponse

_MOST = 1 << 16


class Sent:
    """A connection on which these bytes come, so many at a time."""

    def __init__(self, raw: bytes, at_once: int) -> None:
        self._file = io.BytesIO(raw)
        self._at_once = at_once

    def recv_into(self, view: memoryview) -> int:
        return self._file.readinto(view[: self._at_once])


def read(raw: bytes, at_once: int, method: str = "GET") -> tuple[int, dict[str, str], bytes] | None:
    """Status, headers and body, None where there is no answer; nothing else is raised."""
    view, body = memoryview(bytearray(64)), b""
    try:
        answer = RawResponse(Sent(raw, at_once), method, 5)
        while len(body) < _MOST and (count := answer.readinto(view)):
            body += view[:count]
    except (MalformedResponse, InvalidInput):
        return None
    assert answer.readinto(view) == 0
    return answer.status, dict(answer.headers), body


def fuzz_answer(raw: bytes) -> None:
    """One input; how it comes makes no difference, and what is asked for without a body has none."""
    found = read(raw, _MOST)
    assert found == read(raw, 1)
    about = read(raw, _MOST, "HEAD")
    assert about is None or about[2] == b""


def seeds() -> Iterator[bytes]:
    """Good answers of each kind."""
    ok = b"HTTP/1.1 200 OK\r\n"
    yield ok + b"Content-Length: 5\r\n\r\nhello"
    yield ok + b"Content-Type: a/b\r\nconnection: close\r\nX: 1\r\nX: 2\r\n\r\nto the end"
    yield ok + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nTrailer: x\r\n\r\n"
    yield b"HTTP/1.1 100 Continue\r\n\r\n" + ok + b"Content-Length: 0\r\n\r\n"
    yield b"HTTP/1.1 204 No Content\r\n\r\n"
    yield b"HTTP/1.0 404 Not Found\r\nContent-Length: 2\r\nFolded: a\r\n b\r\n\r\nno"


PIECES = st.lists(
    st.sampled_from(
        [
            *(
                b"HTTP/1.1 200 OK\r\n",
                b"Content-Length: ",
                b"Transfer-Encoding: chunked",
                b"\r\n",
                b"5",
                b"0",
                b"a",
                b";",
            ),
            *(b"\r\n\r\n", b"hello", b" ", b":", b"-1", b"Connection: close\r\n", b"\n", b"\r", b"\0", b"\xff", b","),
        ]
    ),
    max_size=12,
).map(b"".join)


@settings(max_examples=300)
@given(PIECES | st.binary(max_size=40), st.sampled_from(list(seeds())), st.integers(0, 120), st.integers(0, 6))
def test_a_response_is_the_same_however_its_bytes_arrive(piece: bytes, good: bytes, at: int, gone: int) -> None:
    fuzz_answer(b"HTTP/1.1 200 OK\r\n" + piece)
    fuzz_answer(good[:at] + piece + good[at + gone :])


def test_well_formed_responses_are_read() -> None:
    bodies = [found[2] for raw in seeds() if (found := read(raw, 3)) is not None]
    assert bodies == [b"hello", b"to the end", b"hello world", b"", b"", b"no"]
