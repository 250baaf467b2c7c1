# SPDX-License-Identifier: Apache-2.0
"""Reparse points as REPARSE_DATA_BUFFER ([MS-FSCC] 2.1.2): symbolic links, mount points, and others as raw data."""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

from msgspec import Struct

from lamella.errors import FormatError, InvalidInput

STRUCTURE: Final = "reparse point"

SYMLINK: Final = 0xA000000C
MOUNT_POINT: Final = 0xA0000003

MAX_SIZE: Final = 16384
"""Maximum size of the buffer in bytes, including the header."""

RELATIVE: Final = 1

_MICROSOFT: Final = 0x80000000
_HEADER: Final = struct.Struct("<IHH")
_NAMES: Final = struct.Struct("<HHHH")
_FLAGS: Final = struct.Struct("<I")
_GUID: Final = 16


class Symlink(Struct, frozen=True):
    """A symbolic link. ``print_name`` is displayed and stored in tars; Windows follows ``substitute_name``."""

    print_name: str
    substitute_name: str
    flags: int = 0
    """`RELATIVE`, or 0."""


class MountPoint(Struct, frozen=True):
    """A junction or volume mount point. The names are those of `Symlink`."""

    print_name: str
    substitute_name: str


class Unknown(Struct, frozen=True):
    """Any other reparse point with raw data. Tags of other vendors have a GUID before their data."""

    tag: int
    payload: bytes


Reparse: TypeAlias = Symlink | MountPoint | Unknown


def symlink(target: str) -> Symlink:
    """Create a symbolic link to ``target``, a Windows path with backslashes."""
    substitute, relative = _derive_substitute(target)
    return Symlink(target, substitute, RELATIVE if relative else 0)


def mount_point(target: str) -> MountPoint:
    """Create a junction to ``target``."""
    return MountPoint(target, _derive_substitute(target)[0])


def target(reparse: Symlink | MountPoint) -> str:
    """Target of a link for display: the print name, or else the path in the substitute name.

    Volume mount points often have no print name.
    """
    if reparse.print_name:
        return reparse.print_name
    name = reparse.substitute_name
    if name.startswith("\\??\\UNC\\"):
        return "\\" + name[7:]
    if not name.startswith("\\??\\"):
        return name
    return name[4:] if _has_drive(name[4:]) else "\\\\?\\" + name[4:]


def _derive_substitute(name: str) -> tuple[str, bool]:
    """Derive the substitute name, and whether it is relative to the link."""
    if name.startswith("\\\\?\\"):
        return "\\??\\" + name[4:], False
    if name.startswith("\\\\"):
        return "\\??\\UNC\\" + name[2:], False
    if _has_drive(name):
        return "\\??\\" + name, False
    return name, True


def _has_drive(name: str) -> bool:
    return name[1:2] == ":" and name[:1].isascii() and name[:1].isalpha()


def encode(reparse: Reparse) -> bytes:
    """Encode the buffer with its header. Raises InvalidInput beyond `MAX_SIZE`, and for names that are not UTF-16."""
    if isinstance(reparse, Symlink):
        tag = SYMLINK
        data = _encode_names(reparse.print_name, reparse.substitute_name, _FLAGS.pack(reparse.flags))
    elif isinstance(reparse, MountPoint):
        tag, data = MOUNT_POINT, _encode_names(reparse.print_name, reparse.substitute_name, b"")
    else:
        tag, data = reparse.tag, reparse.payload
    if _HEADER.size + len(data) > MAX_SIZE:
        raise InvalidInput(f"a reparse point of {_HEADER.size + len(data)} bytes exceeds the {MAX_SIZE} of NTFS")
    guid = 0 if tag & _MICROSOFT else _GUID
    if len(data) < guid:
        raise InvalidInput(f"a reparse point with the tag {tag:#x} needs a GUID of {_GUID} bytes")
    return _HEADER.pack(tag, len(data) - guid, 0) + data


def _encode_names(print_name: str, substitute_name: str, flags: bytes) -> bytes:
    try:
        shown = print_name.encode("utf-16-le", "surrogatepass")
        followed = substitute_name.encode("utf-16-le", "surrogatepass")
    except UnicodeEncodeError as error:
        raise InvalidInput(f"malformed target {print_name[:80]!r}: {error.reason}") from None
    if len(shown) + len(followed) > MAX_SIZE:
        raise InvalidInput(f"a target of {len(shown) // 2} UTF-16 units is too long for a reparse point")
    return b"".join(
        (_NAMES.pack(0, len(followed), len(followed) + 2, len(shown)), flags, followed, b"\0\0", shown, b"\0\0")
    )


def decode(data: bytes) -> Reparse:
    """Decode the buffer; names may be at any offset, and padding after them is dropped. Raises FormatError."""
    if len(data) > MAX_SIZE:
        raise FormatError(STRUCTURE, 0, f"{len(data)} bytes exceed the {MAX_SIZE} of NTFS")
    if len(data) < _HEADER.size:
        raise FormatError(STRUCTURE, 0, f"only {len(data)} of {_HEADER.size} bytes")
    tag, length, _ = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if length + (0 if tag & _MICROSOFT else _GUID) != len(body):
        raise FormatError(STRUCTURE, 4, f"the header states {length} bytes, {len(body)} left")
    if tag == SYMLINK:
        start = _HEADER.size + _NAMES.size + _FLAGS.size
        if len(data) < start:
            raise FormatError(STRUCTURE, _HEADER.size, "too short for a symbolic link")
        flags = _FLAGS.unpack_from(body, _NAMES.size)[0]
        return Symlink(*_read_names(data, start), flags)
    if tag == MOUNT_POINT:
        start = _HEADER.size + _NAMES.size
        if len(data) < start:
            raise FormatError(STRUCTURE, _HEADER.size, "too short for a mount point")
        return MountPoint(*_read_names(data, start))
    return Unknown(tag, bytes(body))


def _read_names(data: bytes, start: int) -> tuple[str, str]:
    substitute_at, substitute_size, print_at, print_size = _NAMES.unpack_from(data, _HEADER.size)
    return (
        _read_name(data, start + print_at, print_size, "print name"),
        _read_name(data, start + substitute_at, substitute_size, "substitute name"),
    )


def _read_name(data: bytes, at: int, size: int, what: str) -> str:
    if size % 2 or at + size > len(data):
        raise FormatError(STRUCTURE, at, f"the {what} of {size} bytes does not fit")
    return bytes(data[at : at + size]).decode("utf-16-le", "surrogatepass")
