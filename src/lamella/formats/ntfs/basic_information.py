# SPDX-License-Identifier: Apache-2.0
"""FILE_BASIC_INFORMATION ([MS-FSCC] 2.4.7): attribute flags (FILE_ATTRIBUTE_*), and times as FILETIMEs.

A FILETIME counts ticks of 100 ns since 1601-01-01 UTC; Lamella's times are nanoseconds since the Unix epoch.
"""

from __future__ import annotations

from typing import Final

from lamella.errors import InvalidInput

READONLY: Final = 0x1
HIDDEN: Final = 0x2
SYSTEM: Final = 0x4
DIRECTORY: Final = 0x10
ARCHIVE: Final = 0x20
NORMAL: Final = 0x80
TEMPORARY: Final = 0x100
SPARSE_FILE: Final = 0x200
REPARSE_POINT: Final = 0x400
COMPRESSED: Final = 0x800
OFFLINE: Final = 0x1000
NOT_CONTENT_INDEXED: Final = 0x2000
ENCRYPTED: Final = 0x4000
INTEGRITY_STREAM: Final = 0x8000
NO_SCRUB_DATA: Final = 0x20000

ALL: Final = 0xFFFFFFFF

DERIVED: Final = DIRECTORY | SPARSE_FILE | REPARSE_POINT | COMPRESSED | ENCRYPTED
"""Attributes that follow from the creation of a file; they cannot be set."""

_NAMES: Final = {
    READONLY: "readonly",
    HIDDEN: "hidden",
    SYSTEM: "system",
    DIRECTORY: "directory",
    ARCHIVE: "archive",
    NORMAL: "normal",
    TEMPORARY: "temporary",
    SPARSE_FILE: "sparse",
    REPARSE_POINT: "reparse point",
    COMPRESSED: "compressed",
    OFFLINE: "offline",
    NOT_CONTENT_INDEXED: "not content indexed",
    ENCRYPTED: "encrypted",
    INTEGRITY_STREAM: "integrity stream",
    NO_SCRUB_DATA: "no scrub data",
}


_SETTABLE: Final = {
    _NAMES[bit].replace(" ", "-"): bit
    for bit in (READONLY, HIDDEN, SYSTEM, ARCHIVE, TEMPORARY, OFFLINE, NOT_CONTENT_INDEXED)
}
"""Attributes that users may set, in words without spaces."""


def parse_settable(word: str) -> int:
    """Parse the word for an attribute that can be set. Raises InvalidInput."""
    bit = _SETTABLE.get(word.strip().lower())
    if bit is None:
        raise InvalidInput(f"{word!r} is not an attribute that can be set; choose from {', '.join(_SETTABLE)}")
    return bit


def name_attributes(attributes: int) -> list[str]:
    """Words for the set bits, lowest first; unknown bits as hexadecimal numbers."""
    bits = (1 << place for place in range(attributes.bit_length()))
    return [_NAMES.get(bit, f"{bit:#x}") for bit in bits if attributes & bit]


TICK: Final = 100
"""Nanoseconds of a tick."""

UNIX_EPOCH: Final = 116_444_736_000_000_000
"""1970-01-01 in ticks."""

FILETIME_ZERO: Final = -UNIX_EPOCH * TICK
"""1601-01-01, the FILETIME 0, in nanoseconds since the Unix epoch."""

_WORD: Final = 1 << 64


def ns_from_ticks(ticks: int) -> int:
    """Convert a FILETIME to nanoseconds since the Unix epoch."""
    return (ticks - UNIX_EPOCH) * TICK


def ticks_from_ns(ns: int) -> int:
    """Convert nanoseconds to a FILETIME, truncated towards the Unix epoch."""
    return (ns // TICK if ns >= 0 else -(-ns // TICK)) + UNIX_EPOCH


def wrap_time(ns: int) -> int:
    """Wrap ``ns`` to a signed 64-bit integer.

    go-winio calculates with this overflow: times before 1677-09-21 or after 2262-04-11 change by some 584 years.
    """
    return (ns + (_WORD >> 1)) % _WORD - (_WORD >> 1)


def unwrap_time(ns: int) -> int:
    """Revert `wrap_time` for a FILETIME before 1677; other times are returned as they are.

    FILETIMEs are whole ticks and 2**64 is not, so a fraction of a tick reveals a wrapped time. Times before 1677,
    including an empty FILETIME, are wrapped to times after 2185. Times after 2262 are not restored, because they are
    wrapped to times of today, which another system may state with nanoseconds.
    """
    true = ns - _WORD
    return true if ns % TICK and true % TICK == 0 and true >= FILETIME_ZERO and wrap_time(true) == ns else ns
