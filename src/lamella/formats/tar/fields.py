# SPDX-License-Identifier: Apache-2.0
"""The 512-byte header block of all tar dialects: positions of its fields, and the encoding of numbers and names."""

from __future__ import annotations

import struct
from typing import Final, TypeVar
from zlib import adler32

from lamella.errors import FormatError
from lamella.times import SECOND

V = TypeVar("V")

STRUCTURE: Final = "tar header"
DATA: Final = "tar data"

BLOCK: Final = 512
ZEROS: Final = bytes(BLOCK)

MAX_NUMBER: Final = (1 << 63) - 1

HEADER: Final = struct.Struct("100s24s12s12s8sc188xc166x")
"""Name; mode, uid and gid together; size; mtime; checksum; typeflag; first byte of the prefix."""

BLOCK_AT: Final = struct.Struct("512s").unpack_from

CHECKSUM: Final = slice(148, 156)
LINKNAME: Final = slice(157, 257)
MAGIC: Final = slice(257, 265)
DEVMAJOR: Final = slice(329, 337)
DEVMINOR: Final = slice(337, 345)
PREFIX: Final = slice(345, 500)
STAR_PREFIX: Final = slice(345, 476)
STAR_TRAILER: Final = slice(508, 512)
GNU_ATIME: Final = slice(345, 357)
GNU_CTIME: Final = slice(357, 369)
GNU_SPARSE: Final = slice(386, 483)
GNU_REAL_SIZE: Final = slice(483, 495)

USTAR_MAGIC: Final = b"ustar\0"
GNU_MAGIC: Final = b"ustar  \0"
STAR_MARK: Final = b"tar\0"

HEADER_ONLY: Final = frozenset("123456")
"""Typeflags without data, regardless of the size field: links, devices, directories and fifos."""

_ASCII: Final = bytes(range(128))

MAX_CACHED: Final = 8192
"""Entries of one cache, and of the reader's facets; a full cache is emptied."""


def parse_octal(field: bytes) -> int:
    """Parse an octal field, padded with spaces and NULs; an empty field is 0. Raises ValueError."""
    digits = field.strip(b" \0").partition(b"\0")[0]
    if not digits:
        return 0
    if not digits.isdigit():  # int() alone would take signs, underscores and a prefix
        raise ValueError("not octal")
    return int(digits, 8)


def parse_number(field: bytes) -> int:
    """Parse an octal field, or GNU's base-256 (first bit set), which may be negative.

    Raises ValueError, also for values outside signed 64 bits.
    """
    if not field[0] & 0x80:
        return parse_octal(field)
    bits = 8 * len(field) - 1
    value = int.from_bytes(field, "big") & ((1 << bits) - 1)
    if field[0] & 0x40:
        value -= 1 << bits
    if not -MAX_NUMBER - 1 <= value <= MAX_NUMBER:
        raise ValueError("beyond 64 bits")
    return value


def parse_count(field: bytes) -> int:
    """Parse a number that cannot be negative. Raises ValueError."""
    value = parse_number(field)
    if value < 0:
        raise ValueError("negative")
    return value


def parse_decimal(digits: bytes) -> int:
    """Parse decimal digits, without sign or padding. Raises ValueError."""
    if not digits.isdigit():
        raise ValueError("not decimal")
    if len(digits) > 19:
        digits = digits.lstrip(b"0") or b"0"
    if len(digits) > 19 or (value := int(digits)) > MAX_NUMBER:
        raise ValueError("beyond 64 bits")
    return value


def text(field: bytes) -> str:
    """Decode a name up to its first NUL; bytes that are not UTF-8 become surrogate escapes."""
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def ustar_prefix(block: bytes) -> str:
    """The directory part of a name, from the prefix field; without the slash that joins both."""
    magic = block[MAGIC]
    if magic.startswith(USTAR_MAGIC):
        return text(block[STAR_PREFIX if block[STAR_TRAILER] == STAR_MARK else PREFIX])
    if magic == GNU_MAGIC:
        # GNU stores atime and ctime there. Go before 1.8 wrote a prefix into GNU headers nevertheless, and such layers
        # exist; like Go, take ASCII that cannot be times for a prefix.
        try:
            parse_number(block[GNU_ATIME])
            if block[GNU_CTIME][0]:
                parse_number(block[GNU_CTIME])
        except ValueError:
            stated = text(block[PREFIX])
            return stated if stated.isascii() else ""
    return ""


def byte_sum(block: bytes) -> int:
    """Sum the bytes of a block.

    The low half of an Adler-32 is the sum plus one, modulo 65521, which 256 bytes cannot reach.
    """
    return (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2


def checksum_holds(block: bytes, stated: int) -> bool:
    """Whether ``stated`` is the sum of the header's bytes, with the checksum field as spaces.

    Bytes are unsigned (POSIX) or signed (Sun's tar).
    """
    field = block[CHECKSUM]
    unsigned = byte_sum(block) - sum(field) + 8 * 0x20
    if stated == unsigned:
        return True
    high = len(block.translate(None, _ASCII)) - len(field.translate(None, _ASCII))
    return stated == unsigned - 256 * high


class FieldCache:
    """Parsed header fields by their bytes: most members of a layer share theirs with others.

    The methods raise FormatError; ``at`` is the header's offset.
    """

    __slots__ = ("_mode_bits", "mtimes", "owners", "sizes", "sums")

    def __init__(self, mode_bits: int = 0o7777) -> None:
        self._mode_bits = mode_bits
        self.sums: dict[bytes, int] = {}
        """Checksum field -> low half of the Adler-32 of a valid ASCII header."""
        self.sizes: dict[bytes, int] = {}
        self.owners: dict[bytes, tuple[int, int, int]] = {}
        self.mtimes: dict[bytes, int] = {}

    def valid(self, block: bytes, at: int) -> bool:
        """Verify the checksum; False for a zero block."""
        field = block[CHECKSUM]
        if block.isascii() and adler32(block) & 0xFFFF == self.sums.get(field):
            return True
        if block == ZEROS:
            return False
        try:
            stated = parse_octal(field)
        except ValueError:
            raise FormatError(STRUCTURE, at, f"malformed checksum {field!r}") from None
        if not checksum_holds(block, stated):
            raise FormatError(STRUCTURE, at, "the checksum does not match")
        _cache(self.sums, field, stated - 8 * 0x20 + sum(field) + 1)
        return True

    def size(self, field: bytes, at: int) -> int:
        """Size in bytes."""
        size = self.sizes.get(field)
        if size is None:
            size = _parse_field(field, "size", at)
            _cache(self.sizes, field, size)
        return size

    def owner(self, field: bytes, at: int) -> tuple[int, int, int]:
        """Mode (masked with ``mode_bits``), uid and gid."""
        owner = self.owners.get(field)
        if owner is None:
            owner = (
                _parse_field(field[:8], "mode", at) & self._mode_bits,
                _parse_field(field[8:16], "uid", at),
                _parse_field(field[16:], "gid", at),
            )
            _cache(self.owners, field, owner)
        return owner

    def mtime(self, field: bytes, at: int) -> int:
        """Mtime in nanoseconds; negative in base-256 only."""
        mtime = self.mtimes.get(field)
        if mtime is None:
            try:
                mtime = parse_number(field) * SECOND
            except ValueError as error:
                raise FormatError(STRUCTURE, at, f"malformed mtime {field!r}: {error}") from None
            _cache(self.mtimes, field, mtime)
        return mtime


def parse_device(block: bytes, at: int) -> tuple[int, int]:
    """Major and minor device number; (0, 0) in v7 headers. Raises FormatError."""
    if not block[MAGIC].startswith((USTAR_MAGIC, GNU_MAGIC)):
        return 0, 0
    return (
        _parse_field(block[DEVMAJOR], "device major number", at),
        _parse_field(block[DEVMINOR], "device minor number", at),
    )


def _parse_field(field: bytes, what: str, at: int) -> int:
    try:
        return parse_count(field)
    except ValueError as error:
        raise FormatError(STRUCTURE, at, f"malformed {what} {field!r}: {error}") from None


def _cache(known: dict[bytes, V], field: bytes, value: V) -> None:
    if len(known) >= MAX_CACHED:
        known.clear()
    known[field] = value
