# SPDX-License-Identifier: Apache-2.0
"""Archives for the tests, written field by field, and what a reader makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from lamella.changes.model import dense
from lamella.formats.tar import TarLimits, TarMember, TarReader

Facet: TypeAlias = tuple[int, int, int, int]

USTAR: Final = b"ustar\x0000"
GNU: Final = b"ustar  \0"
V7: Final = bytes(8)
END: Final = bytes(1024)

_PLACES: Final = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "flag": (156, 1),
    "linkname": (157, 100),
    "magic": (257, 8),
    "devmajor": (329, 8),
    "devminor": (337, 8),
    "prefix": (345, 155),
}


def block(name: bytes = b"f", flag: bytes = b"0", *, at: Mapping[int, bytes] = {}, **fields: Any) -> bytes:
    """A header with a right checksum. Numbers are written in octal, bytes as they are; ``at`` sets bytes by offset."""
    values: dict[str, bytes | int] = {"mode": 0o644, "uid": 0, "gid": 0, "size": 0, "mtime": 0, "magic": USTAR}
    values |= {"name": name, "flag": flag} | fields
    out = bytearray(512)
    for field, value in values.items():
        start, width = _PLACES[field]
        raw = value if isinstance(value, bytes) else b"%0*o\0" % (width - 1, value)
        assert len(raw) <= width, field
        out[start : start + len(raw)] = raw
    for start, raw in at.items():
        out[start : start + len(raw)] = raw
    return with_checksum(out)


def with_checksum(header: bytes | bytearray) -> bytes:
    out = bytearray(header)
    out[148:156] = b" " * 8
    out[148:156] = b"%06o\0 " % sum(out)
    return bytes(out)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: bytes = b"f", data: bytes = b"", flag: bytes = b"0", **fields: Any) -> bytes:
    return block(name, flag, **({"size": len(data)} | fields)) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    body = b" %b=%b\n" % (key, value)
    length = len(body) + len(str(len(body)))
    length = len(body) + len(str(length))
    return b"%d%b" % (length, body)


def pax(*records: tuple[bytes, bytes], flag: bytes = b"x", **fields: Any) -> bytes:
    return file(b"PaxHeaders/f", b"".join(record(*pair) for pair in records), flag, **fields)


def long_name(name: bytes, flag: bytes = b"L") -> bytes:
    return file(b"././@LongLink", name + b"\0", flag, magic=GNU)


def base256(number: int, width: int) -> bytes:
    """GNU's form of a number, negative ones included."""
    raw = bytearray((number & ((1 << 8 * width) - 1)).to_bytes(width, "big"))
    raw[0] |= 0x80
    return bytes(raw)


def buffers(data: bytes, step: int = 1 << 20) -> Callable[[], memoryview]:
    """``data`` as a reader wants it, in buffers of ``step`` bytes that are spoilt when the next is asked for."""
    position = 0
    current = bytearray()

    def following() -> memoryview:
        nonlocal position, current
        current[:] = b"\xaa" * len(current)
        current = bytearray(data[position : position + step])
        position += step
        return memoryview(current)

    return following


def facet(mode: int, uid: int, gid: int, mtime: int) -> Facet:
    return mode, uid, gid, mtime


def reader(data: bytes, step: int = 1 << 20, limits: TarLimits | None = None) -> TarReader[Facet]:
    return TarReader(buffers(data, step), facet=facet, limits=limits or TarLimits())


@dataclass
class Read:
    """A member with its data, holes filled."""

    member: TarMember[Facet]
    data: bytes

    @property
    def name(self) -> str:
        return self.member.name


def read(data: bytes, step: int = 1 << 20, limits: TarLimits | None = None) -> list[Read]:
    """All members, with their data."""
    return [Read(member, b"".join(bytes(part) for part in dense(member))) for member in reader(data, step, limits)]


def only(data: bytes, step: int = 1 << 20, limits: TarLimits | None = None) -> Read:
    (one,) = read(data, step, limits)
    return one
