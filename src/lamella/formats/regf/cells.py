# SPDX-License-Identifier: Apache-2.0
"""A hive as a space of cells: its base block, its bins, and which cell belongs to what."""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import Final

from lamella.errors import FormatError, Unsupported

BASE_BLOCK: Final = 4096
PAGE: Final = 4096
BIN_HEADER: Final = 32
NIL: Final = 0xFFFFFFFF
"""The offset that leads nowhere."""

LARGEST: Final = 0x7FFFF000
"""Bytes that all bins together can have: the highest bit of an offset tells volatile cells apart."""

BASE: Final = struct.Struct("<4sIIQIIIIIII64s")
"""Signature, two sequence numbers, time, major and minor version, file type, file format, root, size of the bins,
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
of name and class name. What is left out is state of a running system."""

VALUE: Final = struct.Struct("<2sHIIIH2x")
"""Signature, size of the name, size of the data, the data's offset, type, flags."""

SECURITY: Final = struct.Struct("<2s2xIIII")
"""Signature, next, previous, reference count, size."""

BIG: Final = struct.Struct("<2sHI")
"""Signature, number of segments, offset of their list."""

SEGMENT: Final = 16344
"""Bytes in a segment of big data; data that is longer than one is big."""

INLINE: Final = 0x80000000
"""Set in the size of data that stands in place of its offset."""

KEY_VOLATILE: Final = 0x1
KEY_HIVE_EXIT: Final = 0x2
KEY_HIVE_ENTRY: Final = 0x4
KEY_NO_DELETE: Final = 0x8
"""Each root has it."""
KEY_COMPRESSED_NAME: Final = 0x20
KEY_PREDEFINED: Final = 0x40
KEY_OWN_FLAGS: Final = 0xFFFF & ~(KEY_VOLATILE | KEY_HIVE_EXIT | KEY_HIVE_ENTRY | KEY_COMPRESSED_NAME | KEY_PREDEFINED)
"""Flags that belong to a key, and not to its place or its encoding."""

LAYER_SEMANTICS: Final = 0x3
INHERIT_CLASS: Final = 0x80

VALUE_COMPRESSED_NAME: Final = 0x1
VALUE_TOMBSTONE: Final = 0x2

DEEPEST: Final = 512
"""Levels of keys that a hive may have below its root."""


def checksum(block: bytes | bytearray) -> int:
    """The checksum of a base block."""
    total = 0
    for word in WORDS.unpack_from(block):
        total ^= word
    return {0: 1, 0xFFFFFFFF: 0xFFFFFFFE}.get(total, total)


_CLAIMABLE: Final = 1
_FREE: Final = 2
ROOT: Final = 3
"""Owner of the root's cell."""
SHARED: Final = 4
"""Owner of the cells that many keys share: security descriptors."""


class Cells:
    """The cells of a hive in memory. Raises FormatError, and Unsupported for a log, another version or a dirty hive.

    A bin's cells are looked at when the first of them is needed. Each cell has one owner: what leads to it. So a file
    whose lists lead in circles, or to one cell from many places, is refused, and reading all of a hive takes no longer
    than its size warrants.
    """

    __slots__ = ("_bins", "_data", "_owners", "_size", "dirty", "file_name", "layered", "minor", "root", "time")

    def __init__(self, data: bytes, *, dirty: bool = False) -> None:
        """``dirty`` allows a hive whose last changes are in its log alone, and a base block with a wrong checksum."""
        if len(data) < BASE_BLOCK:
            raise FormatError("regf", 0, f"{len(data)} bytes are no base block of {BASE_BLOCK}")
        fields = BASE.unpack_from(data)
        signature, primary, secondary, self.time, major, self.minor, kind, form, self.root, self._size, _, name = fields
        if signature != b"regf":
            raise FormatError("regf", 0, f"the signature is {signature!r}")
        if kind != 0:
            raise Unsupported(f"the file is no hive but a hive's log (type {kind})")
        if major != 1 or not 3 <= self.minor <= 6:
            raise Unsupported(f"hives of version {major}.{self.minor}")
        if form != 1:
            raise FormatError("regf", 32, f"the file format is {form}, not 1")
        stated = U32.unpack_from(data, CHECKSUM)[0]
        if stated != (summed := checksum(data)) and not dirty:
            raise FormatError("regf", CHECKSUM, f"the checksum is {stated:#x}, not {summed:#x}")
        self.dirty = primary != secondary or stated != summed
        if self.dirty and not dirty:
            raise Unsupported(
                f"the hive is dirty (sequence numbers {primary} and {secondary}): its last changes are only in its log",
                hint="dirty=True, or --dirty on the command line, reads it as it stands",
            )
        if not 0 < self._size <= len(data) - BASE_BLOCK:
            raise FormatError("regf", 40, f"bins of {self._size} bytes in a file of {len(data)}")
        self.layered = bool(U32.unpack_from(data, HIVE_FLAGS)[0] & LAYERED)
        self.file_name = name.decode("utf-16-le", "replace").partition("\0")[0]
        self._data = data
        self._bins = self._read_bins()
        # Four bytes for each place where a cell can begin; the system gives them when they are first touched.
        self._owners = memoryview(bytearray(self._size // 2)).cast("I")

    def _read_bins(self) -> list[int]:
        bins = []
        at = 0
        unpack = BIN.unpack_from
        while at < self._size:
            if at + PAGE > self._size:
                raise FormatError("hbin", at, f"{self._size - at} bytes are left for it")
            signature, offset, size, _ = unpack(self._data, BASE_BLOCK + at)
            if signature != b"hbin":
                raise FormatError("hbin", at, f"the signature is {signature!r}")
            if offset != at:
                raise FormatError("hbin", at, f"it says that it is at {offset}")
            if not 0 < size <= self._size - at or size % PAGE:
                raise FormatError("hbin", at, f"it cannot have {size} bytes")
            bins.append(at)
            at += size
        return bins

    def _read_cells(self, offset: int) -> None:
        """Note where the cells of the bin begin that ``offset`` is in."""
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
                raise FormatError("cell", at, f"it cannot have {length} bytes, in a bin that ends at {end}")
            begins.append((at >> 3, _CLAIMABLE if size < 0 else _FREE))
            at += length
        for place, state in begins:
            owners[place] = state

    def claim(self, offset: int, owner: int, what: str) -> tuple[int, int]:
        """The position and the end of the content of the cell at ``offset``, which is ``owner``'s from now on.

        An owner is the offset of the cell of what leads here, or ROOT, or SHARED. ``what`` is for errors.
        """
        if offset & 7 or not offset < self._size:
            where = "nowhere" if offset == NIL else "outside the bins" if offset >= self._size else "amid a cell"
            raise FormatError(what, offset, f"the offset leads {where}")
        place = offset >> 3
        state = self._owners[place]
        if state != owner:
            if not state:
                self._read_cells(offset)
                state = self._owners[place]
            if state != _CLAIMABLE:
                raise FormatError(what, offset, _why_not(state))
            self._owners[place] = owner
        position = BASE_BLOCK + offset
        return position + 4, position - int(I32.unpack_from(self._data, position)[0])


def _why_not(state: int) -> str:
    if not state:
        return "no cell begins there"
    return "the cell is free" if state == _FREE else "the cell belongs to something else too"
