# SPDX-License-Identifier: Apache-2.0
"""Frames of HTTP/2 (RFC 9113), and the header blocks of gRPC's requests and answers.

Answers use no dynamic table, so that their headers are constant bytes. Consecutive requests of a client mostly have
equal headers: a block of fully indexed fields, which changes no table, is looked up instead of decoded.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from hpack import Decoder
from hpack.exceptions import HPACKError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITIZED: Final = 0x20

NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FLOW_CONTROL_ERROR: Final = 3
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
COMPRESSION_ERROR: Final = 9
ENHANCE_YOUR_CALM: Final = 11

ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

DEFAULT_WINDOW: Final = 65535
DEFAULT_FRAME: Final = 16384
MAX_WINDOW: Final = (1 << 31) - 1
MAX_BLOCK: Final = 64 << 10
"""Bytes of a header block at most, before and after decoding."""

_KNOWN: Final = 64
"""Header blocks kept for lookup."""

HEAD: Final = struct.Struct(">HBBBI")
"""Frame header: length (two fields), type, flags, stream."""

HEAD_SIZE: Final = 9
_NUMBER: Final = struct.Struct(">I")
_SETTING: Final = struct.Struct(">HI")


class ConnectionBroken(Exception):
    """A connection error (RFC 9113, section 5.4.1): the client has broken the protocol."""

    def __init__(self, code: int, problem: str) -> None:
        super().__init__(problem)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame with a short payload."""
    return frame_head(len(payload), kind, flags, stream) + payload


def frame_head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """A frame header."""
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream)


def window_update(stream: int, amount: int) -> bytes:
    """A WINDOW_UPDATE of ``amount`` bytes."""
    return frame(WINDOW_UPDATE, 0, stream, _NUMBER.pack(amount))


def reset(stream: int, code: int) -> bytes:
    """A RST_STREAM."""
    return frame(RST_STREAM, 0, stream, _NUMBER.pack(code))


def go_away(last: int, code: int, problem: str = "") -> bytes:
    """A GOAWAY: streams after ``last`` are not served."""
    return frame(GOAWAY, 0, 0, _NUMBER.pack(last) + _NUMBER.pack(code) + problem.encode()[:200])


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(name, value) for name, value in values.items()))


def parse_settings(payload: memoryview) -> list[tuple[int, int]]:
    """Identifiers and values of a SETTINGS frame. Raises ConnectionBroken."""
    if len(payload) % _SETTING.size:
        raise ConnectionBroken(FRAME_SIZE_ERROR, f"settings of {len(payload)} bytes")
    return list(_SETTING.iter_unpack(payload))


def number(payload: memoryview) -> int:
    """The 32-bit integer that a payload consists of. Raises ConnectionBroken."""
    if len(payload) != _NUMBER.size:
        raise ConnectionBroken(FRAME_SIZE_ERROR, f"{len(payload)} bytes in a frame of 4")
    found: int = _NUMBER.unpack(payload)[0]
    return found


def unpadded(flags: int, payload: memoryview) -> memoryview:
    """The payload without its padding. Raises ConnectionBroken."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionBroken(PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def without_priority(number: int, payload: memoryview) -> memoryview:
    """The header block after the priority fields of stream ``number``. Raises ConnectionBroken."""
    if len(payload) < 5:
        raise ConnectionBroken(FRAME_SIZE_ERROR, "priority fields are cut short")
    if int.from_bytes(payload[:4], "big") & 0x7FFFFFFF == number:
        raise ConnectionBroken(PROTOCOL_ERROR, f"stream {number} depends on itself")
    return payload[5:]


# Headers -----------------------------------------------------------------------------------------------------------

_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE: Final = re.compile(r"(?:[^\x00\r\n \t](?:[^\x00\r\n]*[^\x00\r\n \t])?)?")
_PSEUDO: Final = frozenset((":method", ":scheme", ":path", ":authority"))
_FORBIDDEN: Final = frozenset(("connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"))


Fields: TypeAlias = Sequence[tuple[str, str]]
"""Names and values of headers, in their order."""


def check_request(fields: Fields) -> None:
    """Raise ConnectionBroken unless ``fields`` are the headers of a request (RFC 9113, section 8)."""
    pseudo: dict[str, str] = {}
    regular = []
    for name, value in fields:
        if not name.startswith(":"):
            regular.append((name, value))
        elif regular or name in pseudo or name not in _PSEUDO or not _VALUE.fullmatch(value):
            raise ConnectionBroken(PROTOCOL_ERROR, f"the pseudo-header {name[:100]!r} is malformed")
        else:
            pseudo[name] = value
    check_trailers(regular)
    if not (pseudo.get(":path") and pseudo.get(":method") and pseudo.get(":scheme")):
        raise ConnectionBroken(PROTOCOL_ERROR, "a pseudo-header is missing")


def check_trailers(fields: Fields) -> None:
    """Raise ConnectionBroken unless ``fields`` may be the trailers of a request."""
    for name, value in fields:
        if not _NAME.fullmatch(name) or name in _FORBIDDEN or (name == "te" and value.lower() != "trailers"):
            raise ConnectionBroken(PROTOCOL_ERROR, f"the header {name[:100]!r} is not allowed")
        if not _VALUE.fullmatch(value):
            raise ConnectionBroken(PROTOCOL_ERROR, f"the header {name[:100]!r} has a malformed value")


class HeaderBlocks:
    """Decodes the header blocks of one connection, in their order."""

    __slots__ = ("_decoder", "_known")

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=MAX_BLOCK)
        self._known: dict[bytes, tuple[dict[str, str], Callable[[Fields], None] | None]] = {}

    def read(self, block: bytes, check: Callable[[Fields], None] | None = None) -> dict[str, str]:
        """The first value of each header, read-only. Raises ConnectionBroken, also by ``check``."""
        known = self._known.get(block)
        if known is not None and known[1] is check:
            return known[0]
        try:
            fields = [(_text(name), _text(value)) for name, value in self._decoder.decode(block, raw=True)]
        except HPACKError as problem:
            raise ConnectionBroken(COMPRESSION_ERROR, f"malformed headers: {problem}") from problem
        if check is not None:
            check(fields)
        headers: dict[str, str] = {}
        for name, value in fields:
            headers.setdefault(name, value)
        if block and min(block) >= 0x80 and 0xFF not in block:  # fully indexed fields, of one byte each
            if len(self._known) >= _KNOWN:  # a client that varies its headers
                self._known.clear()
            self._known[block] = headers, check
        else:
            self._known.clear()  # the dynamic table may have changed
        return headers


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode("utf-8", "surrogateescape")


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field without indexing (RFC 7541, section 6.2.2)."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def _length(size: int) -> bytes:
    if size < 127:
        return bytes((size,))
    parts = bytearray((127,))
    size -= 127
    while size >= 128:
        parts.append(size & 127 | 128)
        size >>= 7
    parts.append(size)
    return bytes(parts)


_STATUS_200: Final = b"\x88"
ANSWER: Final = _STATUS_200 + _literal(b"content-type", b"application/grpc")
"""The headers of every answer."""

_DONE: Final = _literal(b"grpc-status", b"0")


def trailers(code: int, message: str) -> bytes:
    """The header block of trailers."""
    if not code and not message:
        return _DONE
    block = _literal(b"grpc-status", str(code).encode())
    return block + _literal(b"grpc-message", _escaped(message)) if message else block


def _escaped(message: str) -> bytes:
    """Percent-encoded text of ``grpc-message``: all but printable ASCII, and the percent sign."""
    raw = message.encode("utf-8", "backslashreplace")
    if message.isascii() and message.isprintable() and "%" not in message:
        return raw
    return b"".join(bytes((byte,)) if 0x20 <= byte < 0x7F and byte != 0x25 else b"%%%02X" % byte for byte in raw)
