# SPDX-License-Identifier: Apache-2.0
"""Structures of EROFS images, to and from bytes. All integers are little-endian, reserved fields are zero."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Final

from msgspec import Struct

from lamella.errors import FormatError, InvalidInput, Unsupported

MAGIC: Final = 0xE0F5E1E2
START: Final = 1024
"""Offset of the superblock."""
SUPERBLOCK: Final = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
"""Magic, checksum, compatible features, log2 of the block size, extension slots, root node, inodes, build time in
seconds and nanoseconds, blocks, first metadata block, first block of shared attributes, UUID, volume name,
incompatible features, compressors, extra devices, slot of the device table, log2 of the directory block size, number
and position of attribute prefixes, packed inode, attribute filter."""
COMPACT: Final = struct.Struct("<HHHHIIIIHHI")
"""Format, xattr slots, mode, links, size, reserved, union, number, owner, group, reserved."""
EXTENDED: Final = struct.Struct("<HHHHQIIIIQII16x")
"""Format, xattr slots, mode, reserved, size, union, number, owner, group, mtime in seconds, nanoseconds, links."""
DIRENT: Final = struct.Struct("<QHBx")
"""Node, offset of the name in the block, type."""
XATTRS: Final = struct.Struct("<IB7x")
"""Header of an inode's attributes: name filter, number of shared attributes."""
XATTR: Final = struct.Struct("<BBH")
"""Length of the name, number of its prefix, length of the value."""

SLOT: Final = 32
"""Unit of node numbers in bytes, counted from the first metadata block."""
HOLE: Final = 0xFFFFFFFF
"""Block address of a chunk of zeros."""
MAX_NAME: Final = 255
"""Bytes of a file name, and of an attribute's name without its prefix."""
MAX_VALUE: Final = 65535
"""Bytes of an attribute's value."""
MAX_XATTRS: Final = XATTRS.size + 4 * (0xFFFF - 1)
"""Bytes of all attributes of an inode, packed."""
MAX_TARGET: Final = 4095
"""Bytes of a symbolic link's target."""
MAX_ID: Final = 0xFFFFFFFE
"""The largest user or group id; to Linux the next number is no id."""
MAX_TIME: Final = (1 << 63) - 1
"""The latest time in seconds since the epoch; the earliest is ``-MAX_TIME - 1``."""

CHECKSUM: Final = 1
MTIME: Final = 2
"""Compatible features: the superblock has a checksum; inode times are modification times."""
CHUNKED: Final = 0x4
PREFIXES: Final = 0x40
COMPRESSION: Final = 0x1 | 0x2 | 0x8 | 0x10 | 0x20
"""Incompatible features of compressed files; one of these bits also means extra devices."""
KNOWN: Final = COMPRESSION | CHUNKED | PREFIXES

CHUNK_BITS: Final = 0x1F
CHUNK_INDEXES: Final = 0x20
"""Union of a chunked file: log2 of blocks per chunk; whether entries have 8 bytes instead of 4."""

PREFIX: Final[Mapping[int, str]] = {
    1: "user.",
    2: "system.posix_acl_access",
    3: "system.posix_acl_default",
    4: "trusted.",
    5: "lustre.",
    6: "security.",
}
"""Name prefixes of extended attributes by number."""


class Layout(IntEnum):
    """Storage of a file's data."""

    PLAIN = 0
    """Consecutive blocks."""
    COMPRESSED_FULL = 1
    INLINE = 2
    """As `PLAIN`, but with the last, partial block after the inode."""
    COMPRESSED = 3
    CHUNKED = 4
    """Chunks of one size, whose addresses follow the inode."""


class Superblock(Struct, frozen=True):
    """The superblock. Sizes and addresses are in blocks of ``1 << block_bits`` bytes."""

    block_bits: int
    root: int
    inodes: int
    blocks: int
    metadata: int
    shared: int = 0
    build_time: int = 0
    build_nanoseconds: int = 0
    compatible: int = CHECKSUM | MTIME
    incompatible: int = 0
    devices: int = 0

    @classmethod
    def parse(cls, raw: bytes) -> Superblock:
        """Parse the bytes after the first 1,024, up to one block. Raises FormatError, Unsupported."""
        if len(raw) < SUPERBLOCK.size:
            raise FormatError("EROFS superblock", START, f"only {len(raw)} bytes left")
        fields = SUPERBLOCK.unpack_from(raw)
        magic, checksum, compatible, bits, _, root, inodes, seconds, nanoseconds, blocks, metadata, shared = fields[:12]
        incompatible, devices = fields[14], fields[16]
        if magic != MAGIC:
            raise FormatError("EROFS superblock", START, f"the magic is {magic:#010x}, not {MAGIC:#010x}")
        if not 9 <= bits <= 16:
            raise FormatError("EROFS superblock", START + 12, f"blocks of 2^{bits} bytes")
        if incompatible & ~KNOWN:
            raise Unsupported(f"this EROFS image uses unknown features: {incompatible & ~KNOWN:#x}")
        if fields[18]:
            raise Unsupported("this EROFS image has directory blocks of a different size")
        if compatible & CHECKSUM and (1 << bits) > START:
            actual = crc32c(raw[:4] + bytes(4) + raw[8 : (1 << bits) - START])
            if actual != checksum:
                problem = f"the checksum is {actual:#010x}, not {checksum:#010x}"
                raise FormatError("EROFS superblock", START + 4, problem)
        return cls(
            bits, root, inodes, blocks, metadata, shared, seconds, nanoseconds, compatible, incompatible, devices
        )

    def pack(self) -> bytes:
        """Pack the first block, of at least 2,048 bytes."""
        block = bytearray(1 << self.block_bits)
        SUPERBLOCK.pack_into(
            block, START,
            MAGIC, 0, self.compatible, self.block_bits, 0, self.root, self.inodes, self.build_time,
            self.build_nanoseconds, self.blocks, self.metadata, self.shared, bytes(16), bytes(16), self.incompatible,
            0, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip
        struct.pack_into("<I", block, START + 4, crc32c(bytes(block[START:])))
        return bytes(block)


@lru_cache(512)
def crc32c(raw: bytes) -> int:
    """CRC-32C with initial value ~0 and no final inversion, as in the kernel.

    Cached: it takes about 0.2 us per byte, and each layer of a stack is opened for each layer above it.
    """
    value = 0xFFFFFFFF
    for byte in raw:
        value = value >> 8 ^ _CRC[(value ^ byte) & 0xFF]
    return value


def _table() -> tuple[int, ...]:
    table: list[int] = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC: Final = _table()


def encode_device(major: int, minor: int) -> int:
    """Encode a device number in 32 bits like the kernel's ``new_encode_dev``.

    Raises InvalidInput if it does not fit.
    """
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise InvalidInput(f"the device number {major}:{minor} does not fit an EROFS image")
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def decode_device(number: int) -> tuple[int, int]:
    """Major and minor number."""
    return number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00


def pack_xattrs(xattrs: Mapping[str, bytes]) -> bytes:
    """Pack the attributes of an inode, sorted by name; b"" for none.

    Raises InvalidInput for an unknown prefix, and if a name, a value or all together are too large.
    """
    if not xattrs:
        return b""
    packed = bytearray(XATTRS.pack(0, 0))
    for name in sorted(xattrs):
        number, rest = split_prefix(name)
        value = xattrs[name]
        raw = rest.encode("utf-8", "surrogateescape")
        if len(raw) > MAX_NAME or len(value) > MAX_VALUE:
            raise InvalidInput(f"the extended attribute {name[:80]!r} is too large for an EROFS image")
        packed += XATTR.pack(len(raw), number, len(value)) + raw + value
        packed += bytes(-len(packed) % 4)
    if len(packed) > MAX_XATTRS:
        raise InvalidInput(f"{len(packed)} bytes of extended attributes exceed the {MAX_XATTRS} of an EROFS inode")
    return bytes(packed)


def split_prefix(name: str) -> tuple[int, str]:
    """Split an attribute's name into prefix number and rest. Raises InvalidInput for an unknown prefix."""
    for number, prefix in PREFIX.items():
        if name.startswith(prefix) and (prefix.endswith(".") or name == prefix):
            return number, name[len(prefix) :]
    raise InvalidInput(f"an EROFS image cannot store the extended attribute {name[:80]!r}")
