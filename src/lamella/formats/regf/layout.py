# SPDX-License-Identifier: Apache-2.0
"""Where the fields of a hive lie. Offsets in a hive count from the end of the base block, positions from its start."""

from __future__ import annotations

import struct
from typing import Final

BASE_BLOCK: Final = 4096
PAGE: Final = 4096
BIN_HEADER: Final = 32
NIL: Final = 0xFFFFFFFF
"""The offset that leads nowhere."""

LARGEST: Final = 0x7FFFF000
"""Bytes that all bins together can have: the highest bit of an offset tells volatile cells apart."""

BASE: Final = struct.Struct("<4sIIQIIIIIII64s")
"""Signature, two sequence numbers, time, major and minor version, file type, file format, root, size of the bins,
clustering factor, file name."""

HIVE_FLAGS: Final = 144
CHECKSUM: Final = 508
WORDS: Final = struct.Struct("<127I")
LAYERED: Final = 0x2

BIN: Final = struct.Struct("<4sII8xQ4x")
"""Signature, offset, size, time."""

U32: Final = struct.Struct("<I")
I32: Final = struct.Struct("<i")
TAG: Final = struct.Struct("<2sH")
"""Signature and count of a list or of big data."""

KEY: Final = struct.Struct("<2sHQxB2xIIIIIIIIIHBxIII4xHH")
"""Signature, flags, time, layer, parent, subkeys, volatile subkeys, their lists, values, their list, security, class,
largest subkey name, user and virtualization flags, largest subkey class, largest value name, largest value data, sizes
of name and class name. What is left out is state of a running system."""

VALUE: Final = struct.Struct("<2sHIIIH2x")
"""Signature, size of the name, size of the data, the data's offset, type, flags."""

SECURITY: Final = struct.Struct("<2s2xIIII")
"""Signature, next, previous, reference count, size."""

BIG: Final = struct.Struct("<2sHI")
"""Signature, number of segments, offset of their list."""

SEGMENT: Final = 16344
"""Bytes in a segment of big data; data that is longer than one is big."""

INLINE: Final = 0x80000000
"""Set in the size of data that stands in place of its offset."""

KEY_VOLATILE: Final = 0x1
KEY_HIVE_EXIT: Final = 0x2
KEY_HIVE_ENTRY: Final = 0x4
KEY_NO_DELETE: Final = 0x8
"""Each root has it."""
KEY_COMPRESSED_NAME: Final = 0x20
KEY_PREDEFINED: Final = 0x40
KEY_OWN_FLAGS: Final = 0xFFFF & ~(KEY_VOLATILE | KEY_HIVE_EXIT | KEY_HIVE_ENTRY | KEY_COMPRESSED_NAME | KEY_PREDEFINED)
"""Flags that belong to a key, and not to its place or its encoding."""

LAYER_SEMANTICS: Final = 0x3
INHERIT_CLASS: Final = 0x80

VALUE_COMPRESSED_NAME: Final = 0x1
VALUE_TOMBSTONE: Final = 0x2

DEEPEST: Final = 512
"""Levels of keys that a hive may have below its root."""


def checksum(block: bytes | bytearray) -> int:
    """The checksum of a base block."""
    total = 0
    for word in WORDS.unpack_from(block):
        total ^= word
    return {0: 1, 0xFFFFFFFF: 0xFFFFFFFE}.get(total, total)
