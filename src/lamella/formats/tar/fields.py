# SPDX-License-Identifier: Apache-2.0
"""The 512-byte block that every tar dialect shares: where its fields lie, and how numbers and names stand in them."""

from __future__ import annotations

import struct
from typing import Final
from zlib import adler32

BLOCK: Final = 512
ZEROS: Final = bytes(BLOCK)

MAX_NUMBER: Final = (1 << 63) - 1

HEADER: Final = struct.Struct("100s24s12s12s8sc188xc166x")
"""Name; mode, uid and gid as one slice; size; mtime; checksum; typeflag; the first byte of the prefix."""

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
"""Links, devices, directories and fifos have no data, whatever their size field says."""

_ASCII: Final = bytes(range(128))


def parse_octal(field: bytes) -> int:
    """The number in an octal field; spaces and NULs around it are padding, and nothing else is 0.

    Raises ValueError.
    """
    digits = field.strip(b" \0").partition(b"\0")[0]
    if not digits:
        return 0
    if not digits.isdigit():  # int() alone would take signs, underscores and a prefix
        raise ValueError("not octal")
    return int(digits, 8)


def parse_number(field: bytes) -> int:
    """The number in a field that is octal or, with its first bit set, GNU's base-256; that one may be negative.

    Raises ValueError, also where the value does not fit in 64 bits with a sign.
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
    """`parse_number` for what cannot be negative. Raises ValueError."""
    value = parse_number(field)
    if value < 0:
        raise ValueError("negative")
    return value


def parse_decimal(digits: bytes) -> int:
    """A number written in decimal digits and nothing else. Raises ValueError."""
    if not digits.isdigit():
        raise ValueError("not decimal")
    if len(digits) > 19:
        digits = digits.lstrip(b"0") or b"0"
    if len(digits) > 19 or (value := int(digits)) > MAX_NUMBER:
        raise ValueError("beyond 64 bits")
    return value


def text(field: bytes) -> str:
    """The name in a field, up to its first NUL; bytes that are not UTF-8 are kept as surrogate escapes."""
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def prefix(block: bytes) -> str:
    """What a header says that stands before its name, without the slash between them."""
    magic = block[MAGIC]
    if magic.startswith(USTAR_MAGIC):
        return text(block[STAR_PREFIX if block[STAR_TRAILER] == STAR_MARK else PREFIX])
    if magic == GNU_MAGIC:
        # GNU has its atime there. Go before 1.8 wrote a prefix into GNU headers all the same, and layers of that time
        # are about; as Go does, take for a name what cannot be times and is ASCII.
        try:
            parse_number(block[GNU_ATIME])
            if block[GNU_CTIME][0]:
                parse_number(block[GNU_CTIME])
        except ValueError:
            stated = text(block[PREFIX])
            return stated if stated.isascii() else ""
    return ""


def byte_sum(block: bytes) -> int:
    """The sum of the bytes of a block.

    The low half of an Adler-32 is that sum plus one, modulo 65521, which 256 bytes cannot reach.
    """
    return (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2


def checksum_holds(block: bytes, stated: int) -> bool:
    """Whether ``stated`` is the sum of the header's bytes, its checksum field taken as spaces.

    Bytes count as unsigned, as POSIX says, or as signed, as Sun's tar had it.
    """
    field = block[CHECKSUM]
    unsigned = byte_sum(block) - sum(field) + 8 * 0x20
    if stated == unsigned:
        return True
    high = len(block.translate(None, _ASCII)) - len(field.translate(None, _ASCII))
    return stated == unsigned - 256 * high
