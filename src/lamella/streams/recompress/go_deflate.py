# SPDX-License-Identifier: Apache-2.0
"""Reproduces the deflate of Go's standard library at levels 4 to 9, up to Go 1.26.

containerd, Docker and BuildKit write layers with it at level 6. Matches of at least four bytes are found in chains of
positions with the same hash; a match is deferred until the next position has no longer one. A block has 16,384 tokens,
and an empty stored block ends the stream. The window of 64 KiB moves by 32 KiB, after which a little less than 32 KiB
can be referred to.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from lamella.streams.recompress.huffman import MATCH, BlockWriter

if TYPE_CHECKING:
    from lamella.streams.limits import Buffer

_LEVELS: Final = {4: (4, 16, 16), 5: (16, 32, 32), 6: (16, 128, 128), 7: (32, 128, 256), 8: (128, 258, 1024)}
_LEVELS[9] = (258, 258, 4096)
"""The length of a match that is not deferred; the one that ends a search; the positions searched."""

_WINDOW: Final = 1 << 15
_AHEAD: Final = 4 + 258
_LONGEST: Final = 258
_NEAR: Final = 4096
"""The largest distance of a match of four bytes."""
_TOKENS: Final = 1 << 14
_HASHES: Final = 1 << 17
_FACTOR: Final = 0x1E35A7BD
_MOVE_AT: Final = 2 * _WINDOW - _AHEAD + 1
_STEP: Final = 1 << 20
_KEEP: Final = 3 * _WINDOW
_NOWHERE: Final = -1 << 62


class GoDeflate:
    """One raw deflate stream, with the methods of `zlib.compressobj`."""

    def __init__(self, level: int = 6) -> None:
        self._lazy, self._nice, self._tries = _LEVELS[level]
        self._fresh: list[bytes] = []
        self._waiting = 0
        # Positions are offsets in `_data`.
        self._data = b""
        self._heads = [_NOWHERE] * _HASHES
        self._before: list[int] = []
        """Position -> the previous position with the same hash."""
        self._at = 0
        self._base = 0
        """The start of the window."""
        self._length = 3
        self._distance = 0
        self._deferred = False
        """Whether the byte before the position is not part of a token yet."""
        self._tokens: list[int] = []
        self._block_start: int | None = 0
        """None if the start has left the window."""
        self._output = BlockWriter()

    def compress(self, data: Buffer) -> bytes:
        """Compress ``data`` and return the output so far."""
        self._fresh.append(bytes(data))
        self._waiting += len(data)
        if self._waiting < _STEP:
            return b""
        self._append_input()
        self._search(len(self._data) - _AHEAD, last=False)
        return self._output.take()

    def flush(self) -> bytes:
        """End the stream and return the rest of the output."""
        self._append_input()
        self._search(len(self._data) - 1, last=True)
        if self._deferred:
            self._tokens.append(self._data[self._at - 1])
        if self._tokens:
            self._block()
        self._output.stored(b"", last=True)
        return self._output.take()

    def _append_input(self) -> None:
        """Append the pending input and drop data far before the window."""
        past = self._at - _KEEP
        if past > 0:
            self._data = self._data[past:]
            self._before = [position - past for position in self._before[past:]]
            self._heads = [position - past for position in self._heads]
            self._at -= past
            self._base -= past
            if self._block_start is not None:
                self._block_start -= past
        self._data = b"".join((self._data, *self._fresh))
        self._fresh.clear()
        self._waiting = 0
        start = len(self._before)
        heads, add = self._heads, self._before.append
        position = start
        for value in _hashes(self._data[start:]):
            add(heads[value])
            heads[value] = position
            position += 1

    def _search(self, end: int, *, last: bool) -> None:
        """Append the tokens of all positions up to and including ``end``."""
        data, before, tokens = self._data, self._before, self._tokens
        at, length, distance, deferred = self._at, self._length, self._distance, self._deferred
        lazy, most_nice, most_tries = self._lazy, self._nice, self._tries
        size = len(data)
        add, number = tokens.append, int.from_bytes
        move_at = self._base + _MOVE_AT
        lowest = self._base
        longest = _LONGEST
        while at <= end:
            if at >= move_at and size > lowest + 2 * _WINDOW:
                self._move()
                lowest = self._base
                move_at = lowest + _MOVE_AT
            earlier_length, earlier_distance = length, distance
            length = 3
            if last:
                longest = min(_LONGEST, size - at)
            if earlier_length < lazy and longest > earlier_length:
                limit = at - _WINDOW
                if limit < lowest:
                    limit = lowest
                there = before[at]
                if there >= limit:
                    nice = min(most_nice, longest)
                    tries = most_tries
                    wanted = data[at + 3]
                    begin = data[at : at + 4]
                    while True:
                        if data[there + length] == wanted and data[there : there + length + 1] == begin:
                            found = length + 1
                            while found < longest:
                                step = 16 if found < 20 else 256
                                stop = min(found + step, longest)
                                mine, theirs = data[at + found : at + stop], data[there + found : there + stop]
                                if mine != theirs:
                                    differ = number(mine, "little") ^ number(theirs, "little")
                                    found += (differ & -differ).bit_length() - 1 >> 3
                                    break
                                found = stop
                            if found > 4 or at - there <= _NEAR:
                                length = found
                                distance = at - there
                                if found >= nice:
                                    break
                                wanted = data[at + found]
                                begin = data[at : at + found + 1]
                        there = before[there]
                        if there < limit:
                            break
                        tries -= 1
                        if not tries:
                            break
            if earlier_length >= 4 and length <= earlier_length:
                add(earlier_length << MATCH | earlier_distance)
                at += earlier_length - 1
                deferred = False
                length = 3
                if len(tokens) == _TOKENS:
                    self._at = at
                    self._block()
            else:
                if deferred:
                    add(data[at - 1])
                    if len(tokens) == _TOKENS:
                        self._at = at
                        self._block()
                at += 1
                deferred = True
        self._at, self._length, self._distance, self._deferred = at, length, distance, deferred

    def _move(self) -> None:
        self._base += _WINDOW
        if self._block_start is not None and self._block_start < self._base:
            self._block_start = None

    def _block(self) -> None:
        start = self._block_start
        self._output.block(self._tokens, None if start is None else self._data[start : self._at])
        self._tokens.clear()
        self._block_start = self._at


def _hashes(data: bytes) -> list[int]:
    """Return the hash of the four bytes at each position."""
    count = max(0, len(data) - 3)
    found = [0] * count
    for start in range(min(4, count)):
        many = (len(data) - start) // 4
        values = struct.unpack_from(f">{many}I", data, start)
        found[start::4] = [(value * _FACTOR & 0xFFFFFFFF) >> 15 for value in values]
    return found
