# SPDX-License-Identifier: Apache-2.0
"""The bits of a file's attributes (FILE_ATTRIBUTE_*)."""

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
"""What a file is by how it was made; FILE_BASIC_INFO cannot set these."""

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
"""Attributes that a user can set, by names without spaces."""


def parse_settable(word: str) -> int:
    """Return the bit of the settable attribute ``word``. Raises InvalidInput."""
    bit = _SETTABLE.get(word.strip().lower())
    if bit is None:
        raise InvalidInput(f"no attribute that can be set is called {word!r}; there are {', '.join(_SETTABLE)}")
    return bit


def names(attributes: int) -> list[str]:
    """The words for the bits that are set, lowest first; bits without a word as hexadecimal numbers."""
    bits = (1 << place for place in range(attributes.bit_length()))
    return [_NAMES.get(bit, f"{bit:#x}") for bit in bits if attributes & bit]
