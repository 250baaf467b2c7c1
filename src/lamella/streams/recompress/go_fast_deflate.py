# SPDX-License-Identifier: Apache-2.0
"""Reproduces the deflate of Go's standard library at level 1, "best speed", up to Go 1.26.

go-containerregistry (crane, ko) writes layers with it. A block has 65,535 bytes. Four bytes match the last visited
position with the same hash; the longer no match is found, the more positions are skipped. A block that matches do not
shorten has none.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lamella.streams.recompress.huffman import MATCH, BlockWriter

if TYPE_CHECKING:
    from lamella.streams.limits import Buffer

_BLOCK: Final = 65535
_SMALL: Final = 128
"""A last block of fewer bytes has no matches; one of at most `_TINY` bytes is stored."""
_TINY: Final = 16
_MARGIN: Final = 15
"""No match begins in the last bytes of a block."""
_FAR: Final = 1 << 15
_LONGEST: Final = 258
_CELLS: Final = 1 << 14
_FACTOR: Final = 0x1E35A7BD
_SKIP_AFTER: Final = 32
"""Positions visited without a match before every second one is skipped; after as many more, two of three; and so on."""
_NOWHERE: Final = -1 << 62


class GoFastDeflate:
    """One raw deflate stream, with the methods of `zlib.compressobj`."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._before = b""
        self._start = 0
        """Offset of the block in the stream."""
        self._words = [0] * _CELLS
        self._places = [_NOWHERE] * _CELLS
        self._output = BlockWriter()

    def compress(self, data: Buffer) -> bytes:
        """Compress ``data`` and return the output so far."""
        self._waiting += data
        full = len(self._waiting) // _BLOCK * _BLOCK
        for at in range(0, full, _BLOCK):
            self._block(bytes(self._waiting[at : at + _BLOCK]))
        del self._waiting[:full]
        return self._output.take()

    def flush(self) -> bytes:
        """End the stream and return the rest of the output."""
        rest = bytes(self._waiting)
        if len(rest) >= _SMALL:
            self._block(rest)
        elif len(rest) > _TINY:
            self._output.dynamic(rest, rest)
        elif rest:
            self._output.stored(rest)
        self._output.stored(b"", last=True)
        return self._output.take()

    def _block(self, block: bytes) -> None:
        tokens: Sequence[int] = self._tokens(block)
        if len(tokens) > len(block) - (len(block) >> 4):
            tokens = block
        self._output.dynamic(tokens, block)
        self._before = block
        self._start += len(block)

    def _tokens(self, block: bytes) -> list[int]:
        """Return the tokens of the block: bytes and matches."""
        words = _words(block)
        cells = [(word * _FACTOR & 0xFFFFFFFF) >> 18 for word in words]
        known, places, start = self._words, self._places, self._start
        text, shift = self._before + block, len(self._before)
        limit = len(block) - _MARGIN
        tokens: list[int] = []
        at = written = 0
        while True:
            effort = _SKIP_AFTER
            while True:
                step = effort >> 5
                if at + step > limit:
                    tokens += block[written:]
                    return tokens
                effort += step
                word, cell = words[at], cells[at]
                distance = start + at - places[cell]
                same = known[cell] == word
                known[cell], places[cell] = word, start + at
                if same and distance <= _FAR:
                    break
                at += step
            tokens += block[written:at]
            while True:
                most = min(_LONGEST, len(block) - at)
                length = _common(text, shift + at, shift + at - distance, most)
                tokens.append(length << MATCH | distance)
                at += length
                written = at
                if at >= limit:
                    tokens += block[written:]
                    return tokens
                cell = cells[at - 1]
                known[cell], places[cell] = words[at - 1], start + at - 1
                word, cell = words[at], cells[at]
                distance = start + at - places[cell]
                same = known[cell] == word
                known[cell], places[cell] = word, start + at
                if not same or distance > _FAR:
                    break
            at += 1


def _common(text: bytes, one: int, other: int, most: int) -> int:
    """Return the length of the match at two positions, whose first four bytes are equal."""
    found = 4
    while found < most:
        stop = min(found + (16 if found < 20 else 256), most)
        mine, theirs = text[one + found : one + stop], text[other + found : other + stop]
        if mine != theirs:
            differ = int.from_bytes(mine, "little") ^ int.from_bytes(theirs, "little")
            return found + ((differ & -differ).bit_length() - 1 >> 3)
        found = stop
    return found


def _words(block: bytes) -> list[int]:
    """Return the four bytes at each position as a number."""
    count = len(block) - 3
    found = [0] * count
    for first in range(4):
        found[first::4] = struct.unpack_from(f"<{(len(block) - first) // 4}I", block, first)
    return found
