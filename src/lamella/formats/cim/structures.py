# SPDX-License-Identifier: Apache-2.0
"""Structures of CIMs, to and from bytes. All integers are little-endian, reserved fields are zero."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple
from uuid import UUID

from msgspec import Struct

from lamella.errors import FormatError, Unsupported

MAGIC: Final = b"cimfile0"
VERSION: Final = (2, 0)
"""Major and minor version of written images."""
READABLE: Final = (2, 3)
"""Readable major versions."""

HEADER: Final = struct.Struct("<8sIB3xII8x")
"""Magic, header length of the file kind, file kind, major and minor version."""
REGION: Final = struct.Struct("<HB5x")
"""After the header of a region file: index and type of the region."""
OBJECTS: Final = struct.Struct("<HB5xII")
"""After the header of an object id file: region index, region type, offset of the first entry, number of entries."""
SET: Final = struct.Struct("<16sH6x")
"""Region set: GUID in mixed-endian form, number of regions."""
FILESYSTEM: Final = struct.Struct("<24sQ6xH")
"""After the header of the file system file: own set, region offset of the file system object, parent sets."""
OBJECT: Final = struct.Struct("<QQII")
"""File system object: upcase table, file table directory, its number of entries, file id of the root."""
TABLE: Final = struct.Struct("<QHH4x")
"""Entry of the file table directory: file table, number of records, size of a record."""
RECORD: Final = struct.Struct("<HHIQQQQQQQQQQIH2x")
"""File record of version 2."""
DATA_AT: Final = 40
"""Offset of the default stream in a file record."""
TYPE_AT: Final = 54
"""Offset of the default stream's type in a file record."""
REPARSE_AT: Final = 72
"""Offset of the reparse data's region offset in a file record."""
LINKS: Final = struct.Struct("<II")
"""Header of a link table or stream table: length in bytes, number of links."""
STREAM: Final = struct.Struct("<QQ")
"""Stream descriptor: region offset; length, type and flags."""
IMAGE: Final = struct.Struct("<QQIHH")
"""PE image: image data, length of the data as a file offset, image length, number of mappings, flags."""
MAPPING: Final = struct.Struct("<II")
"""Mapping of a PE image: file offset, delta."""
COUNTED: Final = struct.Struct("<H")
"""Length before a security descriptor or reparse data (bytes), or a name (UTF-16 units)."""

RECORDS_IN_TABLE: Final = 1024
MAX_NAME: Final = 255
"""UTF-16 units."""
MAX_COUNTED: Final = 65535
"""Maximum size of a security descriptor, reparse data or extended attributes in bytes."""
MAX_LENGTH: Final = (1 << 48) - 1
"""Maximum length of a stream in bytes."""
MAX_REGIONS: Final = 65536


class FileKind(IntEnum):
    """Kind of a file of the image."""

    FILESYSTEM = 0
    REGION = 1
    OBJECTS = 2


class RegionType(IntEnum):
    """Content of a region."""

    METADATA = 0
    DATA = 1
    SMALL_DATA = 2


ALIGNMENT: Final = {RegionType.METADATA: 8, RegionType.DATA: 4096, RegionType.SMALL_DATA: 8}


class StreamType(IntEnum):
    """Storage of a stream."""

    DATA = 0
    LINKS = 1
    IMAGE = 2


class Flag(IntEnum):
    """Attribute flags of a file record; its other fields show whether it is a directory or a reparse point."""

    READ_ONLY = 1
    HIDDEN = 2
    SYSTEM = 4
    ARCHIVE = 8
    SPARSE = 16


_BYTE: Final = (1 << 48) - 1


def region_offset(region: int, byte: int) -> int:
    """Encode region number and byte as a region offset. 0 means none."""
    return region << 48 | byte


def place(offset: int) -> tuple[int, int]:
    """Decode a region offset into region number and byte."""
    return offset >> 48, offset & _BYTE


class RegionSet(Struct, frozen=True):
    """The regions written by one image, numbered from 0 in the names of their files."""

    guid: UUID
    count: int

    def pack(self) -> bytes:
        """Pack into 24 bytes."""
        return SET.pack(self.guid.bytes_le, self.count)


class FilesystemFile(Struct, frozen=True):
    """The content of ``NAME.cim``."""

    own: RegionSet
    root: int
    """Region offset of the file system object."""
    parents: tuple[RegionSet, ...] = ()
    """Oldest first."""
    version: tuple[int, int] = VERSION

    @property
    def sets(self) -> tuple[RegionSet, ...]:
        """All sets, in the order of region numbers."""
        return (*self.parents, self.own)

    def pack(self) -> bytes:
        """Pack the whole file."""
        size = HEADER.size + FILESYSTEM.size + SET.size * len(self.parents)
        return b"".join(
            (
                HEADER.pack(MAGIC, size, FileKind.FILESYSTEM, *self.version),
                FILESYSTEM.pack(self.own.pack(), self.root, len(self.parents)),
                *(parent.pack() for parent in self.parents),
            )
        )


def parse_filesystem_file(raw: bytes) -> FilesystemFile:
    """Parse a ``NAME.cim``. Raises FormatError, Unsupported (an unknown version)."""
    structure = "CIM file system file"
    version = check_header(raw, FileKind.FILESYSTEM, structure)
    start = HEADER.size
    if len(raw) < start + FILESYSTEM.size:
        raise FormatError(structure, start, f"only {len(raw) - start} bytes left of {FILESYSTEM.size}")
    own, root, parents = FILESYSTEM.unpack_from(raw, start)
    at = start + FILESYSTEM.size
    if len(raw) < at + parents * SET.size:
        raise FormatError(structure, at, f"{parents} parent sets need {parents * SET.size} bytes, {len(raw) - at} left")
    sets = tuple(_parse_set(raw[at + n * SET.size : at + (n + 1) * SET.size]) for n in range(parents))
    found = FilesystemFile(_parse_set(own), root, sets, version)
    count = sum(each.count for each in found.sets)
    if not 1 <= count <= MAX_REGIONS:
        raise FormatError(structure, start, f"{count} regions; expected 1 to {MAX_REGIONS}")
    return found


def _parse_set(raw: bytes) -> RegionSet:
    guid, count = SET.unpack(raw)
    return RegionSet(UUID(bytes_le=guid), count)


def check_header(raw: bytes, kind: FileKind, structure: str) -> tuple[int, int]:
    """Check the header of a file of a CIM, and return its version. Raises FormatError, Unsupported."""
    if len(raw) < HEADER.size:
        raise FormatError(structure, 0, f"{len(raw)} bytes are too short for a header of {HEADER.size}")
    magic, _, found, major, minor = HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise FormatError(structure, 0, f"the magic is {magic!r}, not {MAGIC!r}")
    if found != kind:
        raise FormatError(structure, 12, f"the file is of kind {found}, not {int(kind)}")
    if major not in READABLE:
        raise Unsupported(
            f"{structure}: version {major}.{minor}; readable versions are {' and '.join(map(str, READABLE))}"
        )
    return major, minor


def region_header(index: int, kind: RegionType, version: tuple[int, int] = VERSION) -> bytes:
    """Pack the first 40 bytes of a region file."""
    return HEADER.pack(MAGIC, HEADER.size + REGION.size, FileKind.REGION, *version) + REGION.pack(index, kind)


def objects_file(index: int, kind: RegionType, version: tuple[int, int] = VERSION) -> bytes:
    """Pack an object id file without entries: their digest is not public, and readers do not need them."""
    size = HEADER.size + OBJECTS.size
    return HEADER.pack(MAGIC, size, FileKind.OBJECTS, *version) + OBJECTS.pack(index, kind, size, 0)


class Stream(NamedTuple):
    """A stream descriptor of 16 bytes."""

    offset: int = 0
    """Region offset of the data, link table or PE image."""
    length: int = 0
    """Length in bytes."""
    kind: int = StreamType.DATA
    sparse: bool = False
    """All zeros, not stored."""

    def words(self) -> tuple[int, int]:
        """The two integers of the descriptor."""
        return self.offset, self.length | self.kind << 48 | self.sparse << 56


NO_STREAM: Final = Stream()


def stream_from(offset: int, word: int) -> Stream:
    """Decode the two integers of a descriptor."""
    return Stream(offset, word & _BYTE, word >> 48 & 0xFF, bool(word >> 56 & 1))


class FileRecord(Struct):
    """One file. Times are FILETIMEs (100 ns since 1601); attached data is given by region offsets."""

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
    """File id of the (first) parent directory. Readers ignore it."""
    base_region: int = 0
    """Of unknown meaning; written as 0."""

    @property
    def is_directory(self) -> bool:
        """Whether the default stream is a link table."""
        return self.data.kind == StreamType.LINKS

    def pack(self) -> bytes:
        """Pack into 96 bytes."""
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
    """Parse a file record; missing fields of a shorter record are 0, extra bytes of a longer one are ignored."""
    if len(raw) < RECORD.size:
        raw = bytes(raw).ljust(RECORD.size, b"\0")
    flags, ea_length, tag, created, written, changed, accessed, offset, word, *rest = RECORD.unpack_from(raw)
    return FileRecord(flags, ea_length, tag, created, written, changed, accessed, stream_from(offset, word), *rest)
