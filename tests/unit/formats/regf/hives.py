# SPDX-License-Identifier: Apache-2.0
"""Hives as tests use them: small ones, plain pictures of them, and ways to damage them."""

from __future__ import annotations

import struct
from typing import Any

from lamella.formats.regf import Hive, Key, MemoryKey, encode_hive
from lamella.formats.regf.cells import CHECKSUM, checksum
from lamella.formats.regf.keys import DEFAULT_SECURITY, REG_BINARY, REG_DWORD, REG_MULTI_SZ, REG_SZ

TIME = 133_500_000_000_000_000
OTHER_SECURITY = DEFAULT_SECURITY[:20] + DEFAULT_SECURITY[20:].replace(b"\x3f\x00\x0f\x00", b"\x19\x00\x02\x00", 1)


def utf16(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")


def small() -> MemoryKey:
    """Return a root with a bit of everything that a key can have."""
    root = MemoryKey("ROOT", time=TIME)
    root.put("", REG_SZ, utf16("default\0"))
    control = root.make("Control")
    control.class_name = "a class"
    control.control = 0x12
    control.put("Start", REG_DWORD, struct.pack("<I", 3))
    control.put("Empty", REG_BINARY, b"")
    control.put("Größe", REG_BINARY, bytes(range(40)))
    control.put("大きさ", REG_MULTI_SZ, utf16("a\0b\0\0"))
    control.put("Blob", REG_BINARY, bytes(range(256)) * 150)
    services = root.make("services")
    services.security = OTHER_SECURITY
    services.flags = 0x10
    for number in range(3):
        services.make(f"s{number}").put("N", REG_DWORD, struct.pack("<I", number))
    root.make("日本").make("\U0001f4be").time = TIME + 1
    return root


def picture(key: Key) -> Any:
    """Return all that a key is and has, to be compared; subkeys by their names."""
    return (
        (key.name, key.time, key.flags, key.control, key.security, key.class_name, key.layering, key.inherit_class),
        [tuple(value) for value in key.values()],
        sorted((picture(one) for one in key.subkeys()), key=lambda one: str(one[0][0])),
    )


def read_back(root: Key) -> Hive:
    return Hive(encode_hive(root))


def summed(data: bytes | bytearray) -> bytes:
    """Return the hive with the checksum that its base block should have."""
    fixed = bytearray(data)
    struct.pack_into("<I", fixed, CHECKSUM, checksum(fixed))
    return bytes(fixed)


def changed(data: bytes, at: int, replacement: bytes) -> bytes:
    """Return the hive with some bytes replaced, and the checksum right."""
    return summed(data[:at] + replacement + data[at + len(replacement) :])
