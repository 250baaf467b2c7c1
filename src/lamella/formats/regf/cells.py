# SPDX-License-Identifier: Apache-2.0
"""Structures of hives: base block, bins, and cells with their owners."""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import Final

from lamella.errors import FormatError, Unsupported

BASE_BLOCK: Final = 4096
PAGE: Final = 4096
BIN_HEADER: Final = 32
NIL: Final = 0xFFFFFFFF
"""The null offset."""

LARGEST: Final = 0x7FFFF000
"""Maximum size of all bins in bytes: the highest bit of an offset marks volatile cells."""

BASE: Final = struct.Struct("<4sIIQIIIIIII64s")
"""Signature, two sequence numbers, time, major and minor version, file type, file format, root, size of all bins,
clustering factor, file name."""

HIVE_FLAGS: Final = 144
CHECKSUM: Final = 508
WORDS: Final = struct.Struct("<127I")
LAYERED: Final = 0x2

BIN: Final = struct.Struct("<4sII8xQ4x")
"""Signature, offset, size, time."""

U32: Final = struct.Struct("<I")
I32: Final = struct.Struct("<i")
TAG: Final = struct.Struct("<2sH")
"""Signature and count of a list or of big data."""

KEY: Final = struct.Struct("<2sHQxB2xIIIIIIIIIHBxIII4xHH")
"""Signature, flags, time, layer, parent, subkeys, volatile subkeys, their lists, values, their list, security, class,
largest subkey name, user and virtualization flags, largest subkey class, largest value name, largest value data, sizes
of name and class name. The padding is state of a running system."""

VALUE: Final = struct.Struct("<2sHIIIH2x")
"""Signature, size of the name, size of the data, the data's offset, type, flags."""

SECURITY: Final = struct.Struct("<2s2xIIII")
"""Signature, next, previous, reference count, size."""

BIG: Final = struct.Struct("<2sHI")
"""Signature, number of segments, offset of their list."""

SEGMENT: Final = 16344
"""Size of a segment of big data in bytes; longer data is big."""

INLINE: Final = 0x80000000
"""Flag in the size of data that is stored in the offset field."""

KEY_VOLATILE: Final = 0x1
KEY_HIVE_EXIT: Final = 0x2
KEY_HIVE_ENTRY: Final = 0x4
KEY_NO_DELETE: Final = 0x8
"""Set on root keys."""
KEY_COMPRESSED_NAME: Final = 0x20
KEY_PREDEFINED: Final = 0x40
KEY_OWN_FLAGS: Final = 0xFFFF & ~(KEY_VOLATILE | KEY_HIVE_EXIT | KEY_HIVE_ENTRY | KEY_COMPRESSED_NAME | KEY_PREDEFINED)
"""Flags of the key itself, not of its position or encoding."""

LAYER_SEMANTICS: Final = 0x3
INHERIT_CLASS: Final = 0x80

VALUE_COMPRESSED_NAME: Final = 0x1
VALUE_TOMBSTONE: Final = 0x2

DEEPEST: Final = 512
"""Maximum levels of keys below the root."""


def checksum(block: bytes | bytearray) -> int:
    """Compute the checksum of a base block."""
    total = 0
    for word in WORDS.unpack_from(block):
        total ^= word
    return {0: 1, 0xFFFFFFFF: 0xFFFFFFFE}.get(total, total)


_CLAIMABLE: Final = 1
_FREE: Final = 2
ROOT: Final = 3
"""Owner of the root's cell."""
SHARED: Final = 4
"""Owner of shared cells: security descriptors."""


class Cells:
    """The cells of a hive in memory. Raises FormatError, and Unsupported for a log, an unknown version or a dirty hive.

    The cells of a bin are parsed on first use. Each cell has one owner: the cell that refers to it. Files with cyclic
    lists or several references to one cell are therefore refused, and reading takes time proportional to the size of
    the hive.
    """

    __slots__ = ("_bins", "_data", "_owners", "_size", "dirty", "file_name", "layered", "minor", "root", "time")

    def __init__(self, data: bytes, *, dirty: bool = False) -> None:
        """``dirty`` accepts a hive whose last changes are only in its log, and a base block with a wrong checksum."""
        if len(data) < BASE_BLOCK:
            raise FormatError("regf", 0, f"{len(data)} bytes, shorter than the base block of {BASE_BLOCK}")
        fields = BASE.unpack_from(data)
        signature, primary, secondary, self.time, major, self.minor, kind, form, self.root, self._size, _, name = fields
        if signature != b"regf":
            raise FormatError("regf", 0, f"the signature is {signature!r}")
        if kind != 0:
            raise Unsupported(f"the file is a log of a hive (type {kind}), not a hive")
        if major != 1 or not 3 <= self.minor <= 6:
            raise Unsupported(f"unsupported hive version {major}.{self.minor}")
        if form != 1:
            raise FormatError("regf", 32, f"the file format is {form}, not 1")
        stated = U32.unpack_from(data, CHECKSUM)[0]
        if stated != (summed := checksum(data)) and not dirty:
            raise FormatError("regf", CHECKSUM, f"the checksum is {stated:#x}, not {summed:#x}")
        self.dirty = primary != secondary or stated != summed
        if self.dirty and not dirty:
            raise Unsupported(
                f"the hive is dirty (sequence numbers {primary} and {secondary}): its last changes are in its log",
                hint="use dirty=True, or --dirty on the command line, to read it without these changes",
            )
        if not 0 < self._size <= len(data) - BASE_BLOCK:
            raise FormatError("regf", 40, f"bins of {self._size} bytes in a file of {len(data)}")
        self.layered = bool(U32.unpack_from(data, HIVE_FLAGS)[0] & LAYERED)
        self.file_name = name.decode("utf-16-le", "replace").partition("\0")[0]
        self._data = data
        self._bins = self._read_bins()
        # Four bytes for each possible start of a cell; the system allocates the pages on first use.
        self._owners = memoryview(bytearray(self._size // 2)).cast("I")

    def _read_bins(self) -> list[int]:
        bins = []
        at = 0
        unpack = BIN.unpack_from
        while at < self._size:
            if at + PAGE > self._size:
                raise FormatError("hbin", at, f"only {self._size - at} bytes left")
            signature, offset, size, _ = unpack(self._data, BASE_BLOCK + at)
            if signature != b"hbin":
                raise FormatError("hbin", at, f"the signature is {signature!r}")
            if offset != at:
                raise FormatError("hbin", at, f"the stated offset is {offset}")
            if not 0 < size <= self._size - at or size % PAGE:
                raise FormatError("hbin", at, f"invalid size {size}")
            bins.append(at)
            at += size
        return bins

    def _read_cells(self, offset: int) -> None:
        """Find the cells of the bin at ``offset``."""
        number = bisect_right(self._bins, offset) - 1
        start = self._bins[number]
        end = self._bins[number + 1] if number + 1 < len(self._bins) else self._size
        owners = self._owners
        at = start + BIN_HEADER
        if owners[at >> 3]:
            return
        begins = []
        unpack, data = I32.unpack_from, self._data
        while at < end:
            size = unpack(data, BASE_BLOCK + at)[0]
            length = -size if size < 0 else size
            if length < 8 or length & 7 or at + length > end:
                raise FormatError("cell", at, f"invalid size {length} in a bin that ends at {end}")
            begins.append((at >> 3, _CLAIMABLE if size < 0 else _FREE))
            at += length
        for place, state in begins:
            owners[place] = state

    def claim(self, offset: int, owner: int, what: str) -> tuple[int, int]:
        """Take the cell at ``offset`` for ``owner``, and return position and end of its content.

        An owner is the offset of the referring cell, or ROOT, or SHARED. ``what`` names the structure in errors.
        """
        if offset & 7 or not offset < self._size:
            where = "null" if offset == NIL else "outside the bins" if offset >= self._size else "inside a cell"
            raise FormatError(what, offset, f"the offset is {where}")
        place = offset >> 3
        state = self._owners[place]
        if state != owner:
            if not state:
                self._read_cells(offset)
                state = self._owners[place]
            if state != _CLAIMABLE:
                raise FormatError(what, offset, _explain_refusal(state))
            self._owners[place] = owner
        position = BASE_BLOCK + offset
        return position + 4, position - int(I32.unpack_from(self._data, position)[0])


def _explain_refusal(state: int) -> str:
    if not state:
        return "no cell starts at the offset"
    return "the cell is free" if state == _FREE else "the cell has a second owner"
