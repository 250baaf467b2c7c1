# SPDX-License-Identifier: Apache-2.0
"""The structures of a CIM, each to and from its bytes. All integers are little-endian, reserved fields zero."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple
from uuid import UUID

from msgspec import Struct

from lamella.errors import FormatError, Unsupported

MAGIC: Final = b"cimfile0"
VERSION: Final = (2, 0)
"""Major and minor version that is written."""
READABLE: Final = (2, 3)
"""Major versions that are read."""

HEADER: Final = struct.Struct("<8sIB3xII8x")
"""Magic, length of the file kind's header, file kind, major and minor version."""
REGION: Final = struct.Struct("<HB5x")
"""After the header of a region file: its index, its type."""
OBJECTS: Final = struct.Struct("<HB5xII")
"""After the header of an object id file: region index, region type, offset of the first entry, number of entries."""
SET: Final = struct.Struct("<16sH6x")
"""A region set: GUID in its mixed-endian form, number of regions."""
FILESYSTEM: Final = struct.Struct("<24sQ6xH")
"""After the header of the file system file: own set, region offset of the file system object, number of parent sets."""
OBJECT: Final = struct.Struct("<QQII")
"""The file system object: upcase table, file table directory, entries in it, file id of the root."""
TABLE: Final = struct.Struct("<QHH4x")
"""An entry of the file table directory: file table, number of records, size of a record."""
RECORD: Final = struct.Struct("<HHIQQQQQQQQQQIH2x")
"""A file record of version 2."""
DATA_AT: Final = 40
"""Where a file record has its default stream."""
TYPE_AT: Final = 54
"""Where it has the type of that."""
REPARSE_AT: Final = 72
"""Where it has the region offset of its reparse data."""
LINKS: Final = struct.Struct("<II")
"""The head of a link table or stream table: its length in bytes, number of links."""
STREAM: Final = struct.Struct("<QQ")
"""A stream descriptor: region offset; length, type and flags."""
IMAGE: Final = struct.Struct("<QQIHH")
"""A PE image: image data, length of the data as a file offset, image length, number of mappings, flags."""
MAPPING: Final = struct.Struct("<II")
"""A mapping of a PE image: file offset, delta."""
COUNTED: Final = struct.Struct("<H")
"""The length before a security descriptor, reparse data or a name (in UTF-16 units there)."""

RECORDS_IN_TABLE: Final = 1024
MAX_NAME: Final = 255
"""UTF-16 units."""
MAX_COUNTED: Final = 65535
"""Bytes of a security descriptor, of reparse data or of extended attributes."""
MAX_LENGTH: Final = (1 << 48) - 1
"""Bytes of a stream."""
MAX_REGIONS: Final = 65536


class FileKind(IntEnum):
    """What a file of the set is."""

    FILESYSTEM = 0
    REGION = 1
    OBJECTS = 2


class RegionType(IntEnum):
    """What a region holds."""

    METADATA = 0
    DATA = 1
    SMALL_DATA = 2


ALIGNMENT: Final = {RegionType.METADATA: 8, RegionType.DATA: 4096, RegionType.SMALL_DATA: 8}


class StreamType(IntEnum):
    """How a stream is stored."""

    DATA = 0
    LINKS = 1
    IMAGE = 2


class Flag(IntEnum):
    """Bits of a file record; whether a file is a directory or a reparse point follows from the rest of it."""

    READ_ONLY = 1
    HIDDEN = 2
    SYSTEM = 4
    ARCHIVE = 8
    SPARSE = 16


_BYTE: Final = (1 << 48) - 1


def region_offset(region: int, byte: int) -> int:
    """A place in the combined list of regions, as one number. 0 stands for nothing."""
    return region << 48 | byte


def place(offset: int) -> tuple[int, int]:
    """Region and byte of a region offset."""
    return offset >> 48, offset & _BYTE


class RegionSet(Struct, frozen=True):
    """Regions that one image has written, numbered from 0 in the names of their files."""

    guid: UUID
    count: int

    def pack(self) -> bytes:
        """24 bytes."""
        return SET.pack(self.guid.bytes_le, self.count)


class FilesystemFile(Struct, frozen=True):
    """What ``NAME.cim`` says."""

    own: RegionSet
    root: int
    """Region offset of the file system object."""
    parents: tuple[RegionSet, ...] = ()
    """Oldest first."""
    version: tuple[int, int] = VERSION

    @property
    def sets(self) -> tuple[RegionSet, ...]:
        """All sets, in the order in which their regions are numbered."""
        return (*self.parents, self.own)

    def pack(self) -> bytes:
        """The whole file."""
        size = HEADER.size + FILESYSTEM.size + SET.size * len(self.parents)
        return b"".join(
            (
                HEADER.pack(MAGIC, size, FileKind.FILESYSTEM, *self.version),
                FILESYSTEM.pack(self.own.pack(), self.root, len(self.parents)),
                *(parent.pack() for parent in self.parents),
            )
        )


def parse_filesystem_file(raw: bytes) -> FilesystemFile:
    """What the bytes of a ``NAME.cim`` say. Raises FormatError, Unsupported (a version)."""
    structure = "CIM file system file"
    version = check_header(raw, FileKind.FILESYSTEM, structure)
    start = HEADER.size
    if len(raw) < start + FILESYSTEM.size:
        raise FormatError(structure, start, f"only {len(raw) - start} bytes left of {FILESYSTEM.size}")
    own, root, parents = FILESYSTEM.unpack_from(raw, start)
    at = start + FILESYSTEM.size
    if len(raw) < at + parents * SET.size:
        raise FormatError(structure, at, f"{parents} parent sets need {parents * SET.size} bytes, {len(raw) - at} left")
    sets = tuple(_set(raw[at + n * SET.size : at + (n + 1) * SET.size]) for n in range(parents))
    found = FilesystemFile(_set(own), root, sets, version)
    count = sum(each.count for each in found.sets)
    if not 1 <= count <= MAX_REGIONS:
        raise FormatError(structure, start, f"{count} regions, where there must be 1 to {MAX_REGIONS}")
    return found


def _set(raw: bytes) -> RegionSet:
    guid, count = SET.unpack(raw)
    return RegionSet(UUID(bytes_le=guid), count)


def check_header(raw: bytes, kind: FileKind, structure: str) -> tuple[int, int]:
    """The version in the header that each file of a CIM starts with. Raises FormatError, Unsupported.

    The file kind is checked although no reader is known to: a file of another kind has nothing that could be read.
    """
    if len(raw) < HEADER.size:
        raise FormatError(structure, 0, f"{len(raw)} bytes are too few for a header of {HEADER.size}")
    magic, _, found, major, minor = HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise FormatError(structure, 0, f"the magic is {magic!r}, not {MAGIC!r}")
    if found != kind:
        raise FormatError(structure, 12, f"the file is of kind {found}, not {int(kind)}")
    if major not in READABLE:
        raise Unsupported(
            f"{structure}: version {major}.{minor} of the format; {' and '.join(map(str, READABLE))} can be read"
        )
    return major, minor


def region_header(index: int, kind: RegionType, version: tuple[int, int] = VERSION) -> bytes:
    """The first 40 bytes of a region file."""
    return HEADER.pack(MAGIC, HEADER.size + REGION.size, FileKind.REGION, *version) + REGION.pack(index, kind)


def objects_file(index: int, kind: RegionType, version: tuple[int, int] = VERSION) -> bytes:
    """An object id file without entries: the digest that they take is not public, and reading needs none."""
    size = HEADER.size + OBJECTS.size
    return HEADER.pack(MAGIC, size, FileKind.OBJECTS, *version) + OBJECTS.pack(index, kind, size, 0)


class Stream(NamedTuple):
    """A stream as a descriptor of 16 bytes has it."""

    offset: int = 0
    """Region offset of its bytes, link table or PE image."""
    length: int = 0
    """Bytes."""
    kind: int = StreamType.DATA
    sparse: bool = False
    """All zeros, and none of them stored."""

    def words(self) -> tuple[int, int]:
        """The descriptor's two numbers."""
        return self.offset, self.length | self.kind << 48 | self.sparse << 56


NO_STREAM: Final = Stream()


def stream_from(offset: int, word: int) -> Stream:
    """The stream that a descriptor's two numbers say."""
    return Stream(offset, word & _BYTE, word >> 48 & 0xFF, bool(word >> 56 & 1))


class FileRecord(Struct):
    """One file: its times are FILETIMEs (100 ns since 1601), what is attached to it is told by region offsets."""

    flags: int = 0
    ea_length: int = 0
    reparse_tag: int = 0
    creation_time: int = 0
    write_time: int = 0
    change_time: int = 0
    access_time: int = 0
    data: Stream = NO_STREAM
    security: int = 0
    ea: int = 0
    reparse: int = 0
    streams: int = 0
    parent: int = 0
    """File id of the (first) directory that it is in. Readers ignore it."""
    base_region: int = 0
    """What it means is not known; 0 is what is written."""

    @property
    def is_directory(self) -> bool:
        """Whether the default stream is a link table."""
        return self.data.kind == StreamType.LINKS

    def pack(self) -> bytes:
        """96 bytes."""
        return RECORD.pack(
            self.flags,
            self.ea_length,
            self.reparse_tag,
            self.creation_time,
            self.write_time,
            self.change_time,
            self.access_time,
            *self.data.words(),
            self.security,
            self.ea,
            self.reparse,
            self.streams,
            self.parent,
            self.base_region,
        )


def parse_record(raw: bytes | memoryview) -> FileRecord:
    """The record of a file; fields that a shorter one lacks are 0, and what a longer one has more is skipped."""
    if len(raw) < RECORD.size:
        raw = bytes(raw).ljust(RECORD.size, b"\0")
    flags, ea_length, tag, created, written, changed, accessed, offset, word, *rest = RECORD.unpack_from(raw)
    return FileRecord(flags, ea_length, tag, created, written, changed, accessed, stream_from(offset, word), *rest)
