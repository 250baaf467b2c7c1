# SPDX-License-Identifier: Apache-2.0
"""A hive as a space of cells: its base block, its bins, and which cell belongs to what."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

from lamella.errors import FormatError, Unsupported
from lamella.formats.regf import layout
from lamella.formats.regf.layout import BASE_BLOCK, BIN, BIN_HEADER, I32, PAGE

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
        fields = layout.BASE.unpack_from(data)
        signature, primary, secondary, self.time, major, self.minor, kind, form, self.root, self._size, _, name = fields
        if signature != b"regf":
            raise FormatError("regf", 0, f"the signature is {signature!r}")
        if kind != 0:
            raise Unsupported(f"the file is no hive but a hive's log (type {kind})")
        if major != 1 or not 3 <= self.minor <= 6:
            raise Unsupported(f"hives of version {major}.{self.minor}")
        if form != 1:
            raise FormatError("regf", 32, f"the file format is {form}, not 1")
        stated = layout.U32.unpack_from(data, layout.CHECKSUM)[0]
        if stated != (summed := layout.checksum(data)) and not dirty:
            raise FormatError("regf", layout.CHECKSUM, f"the checksum is {stated:#x}, not {summed:#x}")
        self.dirty = primary != secondary or stated != summed
        if self.dirty and not dirty:
            raise Unsupported(
                f"the hive is dirty (sequence numbers {primary} and {secondary}): its last changes are only in its log",
                hint="dirty=True, or --dirty on the command line, reads it as it stands",
            )
        if not 0 < self._size <= len(data) - BASE_BLOCK:
            raise FormatError("regf", 40, f"bins of {self._size} bytes in a file of {len(data)}")
        self.layered = bool(layout.U32.unpack_from(data, layout.HIVE_FLAGS)[0] & layout.LAYERED)
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
            where = "nowhere" if offset == layout.NIL else "outside the bins" if offset >= self._size else "amid a cell"
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
