# SPDX-License-Identifier: Apache-2.0
"""Sparse maps: the data extents of files with holes, in the four formats of GNU tar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from lamella.errors import Exhausted, FormatError
from lamella.formats.tar.fields import BLOCK, parse_count, parse_decimal
from lamella.formats.tar.pax import SPARSE, SPARSE_MAP

STRUCTURE: Final = "sparse map"

Extents: TypeAlias = list[tuple[int, int]]

MAX_EXTENTS: Final = 1 << 17
"""Extents of one file that are read by default: 16 MB of memory."""

_PAIR: Final = 24
_EXTENSION: Final = 21 * _PAIR
_MAX_LINE: Final = 20
"""19 digits and a newline."""


def old_extents(table: bytes, at: int) -> tuple[Extents, bool]:
    """Parse a table of the old GNU format; return the extents, and whether an extension block follows.

    The table is that of the header (4 pairs) or of an extension block (21 pairs), followed by the flag byte. It ends
    early at a pair whose offset begins with NUL. Raises FormatError.
    """
    end = len(table) // _PAIR * _PAIR
    extents = []
    for position in range(0, end, _PAIR):
        if not table[position]:
            break
        try:
            extents.append((parse_count(table[position : position + 12]), parse_count(table[position + 12 :][:12])))
        except ValueError as error:
            raise FormatError(STRUCTURE, at, f"malformed number: {error}") from None
    return extents, table[end] > 0


def extension_table(block: bytes) -> bytes:
    """The table in an old GNU extension block, for `old_extents`."""
    return block[: _EXTENSION + 1]


_MAP_IN_RECORDS: Final = ((b"0", b"0"), (b"0", b"1"))
"""Early writers of these versions omit the version records."""


class SparseRecords:
    """The ``GNU.sparse.*`` records of a PAX header. Raises FormatError for unknown formats."""

    __slots__ = ("at", "map_in_data", "name", "numbers", "size")

    def __init__(self, records: Mapping[str, bytes], at: int) -> None:
        self.at = at
        version = records.get(SPARSE + "major", b""), records.get(SPARSE + "minor", b"")
        self.map_in_data = version == (b"1", b"0")
        counted = SPARSE + "numblocks" in records or SPARSE_MAP in records
        map_in_records = version in _MAP_IN_RECORDS or (version == (b"", b"") and counted)
        if not self.map_in_data and not map_in_records:
            raise FormatError(STRUCTURE, at, f"unknown sparse version {version!r}")
        self.name = records.get(SPARSE + "name", b"")
        sizes = {records[key] for key in (SPARSE + "size", SPARSE + "realsize") if records.get(key)}
        if len(sizes) > 1:
            raise FormatError(STRUCTURE, at, "contradicting sizes")
        self.size = self._decimal(sizes.pop()) if sizes else None
        self.numbers: list[bytes] = []
        if not self.map_in_data:
            stated = records.get(SPARSE_MAP, b"")
            self.numbers = stated.split(b",") if stated else []
            if len(self.numbers) != 2 * self._decimal(records.get(SPARSE + "numblocks", b"")):
                raise FormatError(STRUCTURE, at, "the number of pairs differs from GNU.sparse.numblocks")

    def _decimal(self, digits: bytes) -> int:
        try:
            return parse_decimal(digits)
        except ValueError as error:
            raise FormatError(STRUCTURE, self.at, f"malformed number {digits[:40]!r}: {error}") from None

    def extents(self, limit: int) -> Extents:
        """The map of formats 0.0 and 0.1, from the records. Raises FormatError, Exhausted."""
        return pairs(self.numbers, self.at, limit)


def pairs(numbers: list[bytes], at: int, limit: int) -> Extents:
    """Parse alternating decimal offsets and lengths. Raises FormatError, Exhausted."""
    if len(numbers) > 2 * limit:
        raise too_many(at, limit)
    try:
        values = [parse_decimal(number) for number in numbers]
    except ValueError as error:
        raise FormatError(STRUCTURE, at, f"malformed number: {error}") from None
    return list(zip(values[::2], values[1::2], strict=True))


def read_map(blocks: Iterator[bytes], at: int, limit: int) -> tuple[Extents, int]:
    """Read the map of format 1.0, stored before the data; return it and its padded size in bytes.

    Reads only the blocks of the map: a count, then that many pairs, one decimal number per line.
    Raises FormatError, Exhausted.
    """
    parts: list[bytes] = []
    lines = 0
    wanted = 1
    for block in blocks:
        parts.append(block)
        lines += block.count(b"\n")
        if len(parts) == 1:
            first, newline, _ = block[: _MAX_LINE + 1].partition(b"\n")
            if not newline:
                raise FormatError(STRUCTURE, at, "no number of pairs")
            try:
                count = parse_decimal(first)
            except ValueError as error:
                raise FormatError(STRUCTURE, at, f"malformed number of pairs: {error}") from None
            if count > limit:
                raise too_many(at, limit)
            wanted += 2 * count
        if lines >= wanted:
            numbers = b"".join(parts).split(b"\n", wanted)[1:wanted]
            return pairs(numbers, at, limit), sum(map(len, parts))
        if lines < BLOCK // _MAX_LINE * len(parts):
            break
    raise FormatError(STRUCTURE, at, "a line is too long for a number")


def too_many(at: int, limit: int) -> Exhausted:
    """The error for a map beyond the limit."""
    return Exhausted(f"{STRUCTURE} at offset {at}: more than {limit} extents")


def check(extents: Extents, size: int, stored: int, at: int) -> Extents | None:
    """Check that ``extents`` ascend, lie inside ``size`` and sum up to ``stored``; return them without empty ones.

    None if there is no hole. Raises FormatError.
    """
    kept = []
    position = total = 0
    for offset, length in extents:
        if offset < position:
            raise FormatError(STRUCTURE, at, "extents overlap or are out of order")
        position = offset + length
        if position > size:
            raise FormatError(STRUCTURE, at, f"an extent ends at {position}, beyond the size {size}")
        if length:
            kept.append((offset, length))
            total += length
    if total != stored:
        raise FormatError(STRUCTURE, at, f"extents of {total} bytes, but {stored} bytes are stored")
    return None if total == size else kept
