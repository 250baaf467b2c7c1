# SPDX-License-Identifier: Apache-2.0
"""Header fields parsed once: most members of a layer share them with others, to the byte."""

from __future__ import annotations

from typing import Final, TypeVar
from zlib import adler32

from lamella.errors import FormatError
from lamella.formats.tar import fields
from lamella.formats.tar.blocks import STRUCTURE
from lamella.formats.tar.fields import ZEROS
from lamella.times import SECOND

REMEMBERED: Final = 8192
"""Values kept of each kind; all are forgotten when there are more."""

V = TypeVar("V")


class KnownFields:
    """What each header field says, by its bytes. The methods raise FormatError; ``at`` is the header's offset."""

    __slots__ = ("_mode_bits", "mtimes", "owners", "sizes", "sums")

    def __init__(self, mode_bits: int = 0o7777) -> None:
        self._mode_bits = mode_bits
        self.sums: dict[bytes, int] = {}
        """The low half of the Adler-32 of an ASCII header with this checksum field."""
        self.sizes: dict[bytes, int] = {}
        self.owners: dict[bytes, tuple[int, int, int]] = {}
        self.mtimes: dict[bytes, int] = {}

    def valid(self, block: bytes, at: int) -> bool:
        """Check the sum in full; False for a zero block."""
        field = block[fields.CHECKSUM]
        if block.isascii() and adler32(block) & 0xFFFF == self.sums.get(field):
            return True
        if block == ZEROS:
            return False
        try:
            stated = fields.parse_octal(field)
        except ValueError:
            raise FormatError(STRUCTURE, at, f"malformed checksum {field!r}") from None
        if not fields.checksum_holds(block, stated):
            raise FormatError(STRUCTURE, at, "the checksum does not match")
        _remember(self.sums, field, stated - 8 * 0x20 + sum(field) + 1)
        return True

    def size(self, field: bytes, at: int) -> int:
        """The size, in bytes."""
        size = self.sizes.get(field)
        if size is None:
            size = _count(field, "size", at)
            _remember(self.sizes, field, size)
        return size

    def owner(self, field: bytes, at: int) -> tuple[int, int, int]:
        """The wanted bits of the mode, uid and gid."""
        owner = self.owners.get(field)
        if owner is None:
            owner = (
                _count(field[:8], "mode", at) & self._mode_bits,
                _count(field[8:16], "uid", at),
                _count(field[16:], "gid", at),
            )
            _remember(self.owners, field, owner)
        return owner

    def mtime(self, field: bytes, at: int) -> int:
        """The time, in nanoseconds; GNU's form may be before the epoch."""
        mtime = self.mtimes.get(field)
        if mtime is None:
            try:
                mtime = fields.parse_number(field) * SECOND
            except ValueError as error:
                raise FormatError(STRUCTURE, at, f"malformed mtime {field!r}: {error}") from None
            _remember(self.mtimes, field, mtime)
        return mtime


def device(block: bytes, at: int) -> tuple[int, int]:
    """Major and minor number; v7 has none. Raises FormatError."""
    if not block[fields.MAGIC].startswith((fields.USTAR_MAGIC, fields.GNU_MAGIC)):
        return 0, 0
    return (
        _count(block[fields.DEVMAJOR], "device major number", at),
        _count(block[fields.DEVMINOR], "device minor number", at),
    )


def _count(field: bytes, what: str, at: int) -> int:
    try:
        return fields.parse_count(field)
    except ValueError as error:
        raise FormatError(STRUCTURE, at, f"malformed {what} {field!r}: {error}") from None


def _remember(known: dict[bytes, V], field: bytes, value: V) -> None:
    if len(known) >= REMEMBERED:
        known.clear()
    known[field] = value
