# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 as gRPC over a unix socket needs it: frames (RFC 9113) and the header blocks of requests and answers.

Answers use no dynamic table, so that their headers are the same bytes each time. Requests of one client mostly have
the headers of the one before; such a block, which changes no table, is looked up rather than decoded.
"""

from __future__ import annotations

import struct
from typing import Final

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
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
COMPRESSION_ERROR: Final = 9
ENHANCE_YOUR_CALM: Final = 11

MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

DEFAULT_WINDOW: Final = 65535
DEFAULT_FRAME: Final = 16384
MAX_WINDOW: Final = (1 << 31) - 1
MAX_BLOCK: Final = 64 << 10
"""Bytes of a block of headers."""

_KNOWN: Final = 64
"""Blocks that are looked up rather than decoded."""

HEAD: Final = struct.Struct(">HBBBI")
"""Of a frame: its length (two fields), type, flags and stream."""

HEAD_SIZE: Final = 9
_NUMBER: Final = struct.Struct(">I")
_SETTING: Final = struct.Struct(">HI")


class ConnectionBroken(Exception):
    """The other side has broken the protocol, and nothing more can be understood."""

    def __init__(self, code: int, problem: str) -> None:
        super().__init__(problem)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame with a short payload."""
    return frame_head(len(payload), kind, flags, stream) + payload


def frame_head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """The nine bytes before a payload."""
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream)


def window_update(stream: int, amount: int) -> bytes:
    """The frame that lets the other side send ``amount`` more."""
    return frame(WINDOW_UPDATE, 0, stream, _NUMBER.pack(amount))


def reset(stream: int, code: int) -> bytes:
    """The frame that ends a stream at once."""
    return frame(RST_STREAM, 0, stream, _NUMBER.pack(code))


def go_away(last: int, code: int, problem: str = "") -> bytes:
    """The frame that says that streams after ``last`` are not served."""
    return frame(GOAWAY, 0, 0, _NUMBER.pack(last) + _NUMBER.pack(code) + problem.encode()[:200])


def settings(values: dict[int, int]) -> bytes:
    """The frame that tells the other side what to keep to."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(name, value) for name, value in values.items()))


def parse_settings(payload: memoryview) -> list[tuple[int, int]]:
    """Names and values. Raises ConnectionBroken."""
    if len(payload) % _SETTING.size:
        raise ConnectionBroken(FRAME_SIZE_ERROR, "settings of a wrong size")
    return list(_SETTING.iter_unpack(payload))


def number(payload: memoryview) -> int:
    """The one number that a payload is. Raises ConnectionBroken."""
    if len(payload) != _NUMBER.size:
        raise ConnectionBroken(FRAME_SIZE_ERROR, "a frame of a wrong size")
    found: int = _NUMBER.unpack(payload)[0]
    return found


def unpadded(flags: int, payload: memoryview) -> memoryview:
    """The payload without its padding. Raises ConnectionBroken."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionBroken(PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]


# Headers -----------------------------------------------------------------------------------------------------------


class HeaderBlocks:
    """Reads the blocks of one connection, in the order in which they come."""

    __slots__ = ("_decoder", "_known")

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=MAX_BLOCK)
        self._known: dict[bytes, dict[str, str]] = {}

    def read(self, block: bytes) -> dict[str, str]:
        """The first value of each header; not to be changed. Raises ConnectionBroken."""
        known = self._known.get(block)
        if known is not None:
            return known
        headers: dict[str, str] = {}
        try:
            for name, value in self._decoder.decode(block, raw=True):
                headers.setdefault(_text(name), _text(value))
        except HPACKError as problem:
            raise ConnectionBroken(COMPRESSION_ERROR, f"malformed headers: {problem}") from problem
        if block and min(block) >= 0x80 and 0xFF not in block:  # indexed fields alone, of one byte each
            if len(self._known) >= _KNOWN:  # a client that varies them
                self._known.clear()
            self._known[block] = headers
        else:
            self._known.clear()  # their numbers have changed
        return headers


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode("utf-8", "surrogateescape")


def _literal(name: bytes, value: bytes) -> bytes:
    """A header that no table takes in (RFC 7541, 6.2.2)."""
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
    """The block that ends an answer."""
    if not code and not message:
        return _DONE
    block = _literal(b"grpc-status", str(code).encode())
    return block + _literal(b"grpc-message", _escaped(message)) if message else block


def _escaped(message: str) -> bytes:
    """Text as gRPC writes it in a header: what is not printable ASCII, and the percent sign, by number."""
    raw = message.encode("utf-8", "backslashreplace")
    if message.isascii() and message.isprintable() and "%" not in message:
        return raw
    return b"".join(bytes((byte,)) if 0x20 <= byte < 0x7F and byte != 0x25 else b"%%%02X" % byte for byte in raw)
