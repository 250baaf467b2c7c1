# SPDX-License-Identifier: Apache-2.0
"""Extended attributes as a list of FILE_FULL_EA_INFORMATION ([MS-FSCC] 2.4.16)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from lamella.errors import FormatError, InvalidInput

STRUCTURE: Final = "extended attributes"

NEEDED: Final = 0x80
"""FILE_NEED_EA: the file must not be interpreted without the attribute."""

MAX_NAME: Final = 255
MAX_VALUE: Final = 0xFFFF

_HEADER: Final = struct.Struct("<IBBH")


class ExtendedAttribute(Struct, frozen=True):
    """One attribute. Names are bytes, usually upper-case ASCII."""

    name: bytes
    value: bytes
    flags: int = 0


def check(name: bytes, value: bytes) -> str | None:
    """Return why the attribute is invalid, or None."""
    if not name:
        return "the name is empty"
    if b"\0" in name:
        return "NUL in the name"
    if len(name) > MAX_NAME:
        return f"the name of {len(name)} bytes exceeds {MAX_NAME}"
    if len(value) > MAX_VALUE:
        return f"the value of {len(value)} bytes exceeds {MAX_VALUE}"
    return None


def encode(attributes: Iterable[ExtendedAttribute]) -> bytes:
    """Encode attributes in the given order; b"" for none. Each entry is padded to four bytes, including the last.

    Raises InvalidInput.
    """
    entries = []
    for attribute in attributes:
        problem = check(attribute.name, attribute.value)
        if problem is not None:
            raise InvalidInput(f"extended attribute {attribute.name[:80]!r}: {problem}")
        entries.append(attribute)
    parts: list[bytes] = []
    for left, attribute in zip(range(len(entries) - 1, -1, -1), entries, strict=True):
        size = _HEADER.size + len(attribute.name) + 1 + len(attribute.value)
        padding = -size % 4
        header = _HEADER.pack(size + padding if left else 0, attribute.flags, len(attribute.name), len(attribute.value))
        parts += (header, attribute.name, b"\0", attribute.value, bytes(padding))
    return b"".join(parts)


def decode(data: bytes) -> list[ExtendedAttribute]:
    """Decode the attributes in order. Raises FormatError."""
    return list(_decode(data)) if data else []


def _decode(data: bytes) -> Iterator[ExtendedAttribute]:
    at = 0
    while True:
        if at + _HEADER.size > len(data):
            raise FormatError(STRUCTURE, at, f"only {len(data) - at} bytes left")
        step, flags, name_size, value_size = _HEADER.unpack_from(data, at)
        name_at = at + _HEADER.size
        value_at = name_at + name_size + 1
        end = value_at + value_size
        if end > len(data):
            raise FormatError(STRUCTURE, at, f"a name of {name_size} and a value of {value_size} bytes do not fit")
        name = bytes(data[name_at : value_at - 1])
        if not name or b"\0" in name or data[value_at - 1]:
            raise FormatError(STRUCTURE, name_at, "malformed name")
        yield ExtendedAttribute(name, bytes(data[value_at:end]), flags)
        if not step:
            if len(data) - end > 3:
                raise FormatError(STRUCTURE, end, f"{len(data) - end} bytes after the last entry")
            return
        if step % 4 or step < end - at:
            raise FormatError(STRUCTURE, at, f"invalid offset {step} of the next entry")
        at += step
