# SPDX-License-Identifier: Apache-2.0
"""Types of Windows' binary interface, the same on every host: fixed widths, UTF-16LE strings, GUIDs."""

from __future__ import annotations

import ctypes
import uuid
from ctypes import c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p

from lamella.errors import InvalidInput, Unsupported

I32, I64, U8, U16, U32, U64, PTR = c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
HANDLE = c_uint64
"""A handle as a number; -1 is 0xFFFFFFFFFFFFFFFF."""
INVALID_HANDLE = 0xFFFF_FFFF_FFFF_FFFF
BOOL, HRESULT, NTSTATUS = c_int32, c_int32, c_int32

LONGEST_STRING = 32767
"""UTF-16 units that a path may have."""

if ctypes.sizeof(c_void_p) != 8:
    raise Unsupported("the bindings to Windows need a 64-bit process")


def wide(text: str) -> ctypes.Array[c_uint16]:
    """``text`` as UTF-16LE with a NUL at the end; lone surrogates are kept, as Windows' names may have them.

    Raises InvalidInput for a NUL inside, where Windows would see another text.
    """
    if "\0" in text:
        raise InvalidInput(f"{text!r} has a NUL in it")
    encoded = text.encode("utf-16-le", "surrogatepass") + b"\0\0"
    return (c_uint16 * (len(encoded) // 2)).from_buffer_copy(encoded)


def wide_or_null(text: str | None) -> ctypes.Array[c_uint16] | None:
    """As ``wide``; None is the null pointer."""
    return None if text is None else wide(text)


def text_of(units: ctypes.Array[c_uint16]) -> str:
    """The text in a buffer of UTF-16 units, up to the first NUL."""
    raw = bytes(units)
    for at in range(0, len(raw), 2):
        if not raw[at] and not raw[at + 1]:
            raw = raw[:at]
            break
    return raw.decode("utf-16-le", "surrogatepass")


def text_at(address: int) -> str:
    """The text that starts at ``address`` and ends with a NUL; no more than a path's length of it is read."""
    raw = bytearray()
    for at in range(LONGEST_STRING):
        unit = c_uint16.from_address(address + 2 * at).value
        if not unit:
            break
        raw += unit.to_bytes(2, "little")
    return raw.decode("utf-16-le", "surrogatepass")


class Guid(ctypes.Structure):
    """GUID: 16 bytes, the first three fields little-endian."""

    _fields_ = (("data1", U32), ("data2", U16), ("data3", U16), ("data4", U8 * 8))

    @classmethod
    def of(cls, value: uuid.UUID) -> Guid:
        """The structure of ``value``."""
        return cls.from_buffer_copy(value.bytes_le)

    def uuid(self) -> uuid.UUID:
        """The value of the structure."""
        return uuid.UUID(bytes_le=bytes(self))
