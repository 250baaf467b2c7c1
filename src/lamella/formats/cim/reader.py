# SPDX-License-Identifier: Apache-2.0
"""Reads CIMs lazily, and checks each offset and count against the size of its region."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from operator import ge
from typing import Final, Protocol
from uuid import UUID

from lamella.errors import FormatError, NotFound
from lamella.formats.cim import structures as on_disk
from lamella.formats.cim.structures import (
    COUNTED,
    HEADER,
    IMAGE,
    LINKS,
    MAPPING,
    MAX_LENGTH,
    OBJECT,
    RECORDS_IN_TABLE,
    REGION,
    STREAM,
    TABLE,
    TYPE_AT,
    FileKind,
    FileRecord,
    FilesystemFile,
    Stream,
    StreamType,
    parse_filesystem_file,
    parse_record,
    place,
    stream_from,
)
from lamella.formats.ntfs.names import TABLE_SIZE, Upcase, parse_upcase

STEP: Final = 1 << 20
"""Maximum bytes of one read of a stream."""

_TABLES_KEPT: Final = 64
_SHARED_KEPT: Final = 256
_TABLES_AT_MOST: Final = 1 << 22
"""Maximum number of file tables; file ids have 32 bits."""
_TABLE_AT_MOST: Final = 1 << 28
"""Maximum size of a link table in bytes: some millions of names."""
_NO_NAME: Final = re.compile(r"\.{0,2}\Z|[^/\\\0]*[/\\\0]").match
_RECORD_AT_MOST: Final = 4096
"""Maximum size of a file record in bytes; those of version 2 have 96."""


class Region(Protocol):
    """A region file."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Read ``length`` bytes at ``offset``; fewer only if the file was truncated meanwhile."""
        ...


class CimReader:
    """One image. ``open_region`` opens a region file by the GUID of its set and its number in that set.

    Methods raise FormatError with structure and region offset, Unsupported for an unknown version, and the errors of
    ``open_region``.
    """

    def __init__(self, filesystem: bytes, open_region: Callable[[UUID, int], Region]) -> None:
        """Parse ``filesystem``, the bytes of ``NAME.cim``, and read the file system object."""
        self.filesystem: FilesystemFile = parse_filesystem_file(filesystem)
        self._open_region = open_region
        self._names = [(each.guid, number) for each in self.filesystem.sets for number in range(each.count)]
        self._regions: dict[int, Region] = {}
        self._tables: dict[int, tuple[bytes, int]] = {}
        self._shared: dict[int, bytes] = {}
        """Cache: security descriptors and reparse data by region offset; many files share them."""
        self._upcase: Upcase | None = None
        raw = self._read(self.filesystem.root, OBJECT.size, "CIM file system object")
        self.upcase_offset: int
        self.root: int
        self.upcase_offset, self._directory_at, count, self.root = OBJECT.unpack(raw)
        if count > _TABLES_AT_MOST:
            at = place(self.filesystem.root)[1] + 16
            raise FormatError(
                "CIM file system object", at, f"{count} file tables exceed the limit of {_TABLES_AT_MOST}"
            )
        self._directory = self._read(self._directory_at, count * TABLE.size, "CIM file table directory")
        self.table_count: int = count
        last = self.table(count - 1)[1] if count else 0
        self.count: int = (count - 1) * RECORDS_IN_TABLE + last if count else 0
        """Number of file ids; they start at 1."""
        if not self.record(self.root).is_directory:
            raise FormatError(
                "CIM file system object", place(self.filesystem.root)[1] + 20, "the root is not a directory"
            )

    @property
    def upcase(self) -> Upcase:
        """The upcase table of the image."""
        if self._upcase is None:
            self._upcase = parse_upcase(self._read(self.upcase_offset, TABLE_SIZE, "CIM upcase table"))
        return self._upcase

    def table(self, number: int) -> tuple[int, int, int]:
        """Region offset, number of records and record size of a file table. Raises FormatError."""
        at = number * TABLE.size
        offset, records, length = TABLE.unpack_from(self._directory, at)
        if records > RECORDS_IN_TABLE or not 0 < length <= _RECORD_AT_MOST:
            raise FormatError(
                "CIM file table directory",
                place(self._directory_at)[1] + at,
                f"{records} records of {length} bytes; a table has up to {RECORDS_IN_TABLE} records",
            )
        return offset, records, length

    def record(self, file: int) -> FileRecord:
        """Read the record of a file id."""
        number, index = divmod(file - 1, RECORDS_IN_TABLE)
        found = self._tables.get(number)
        if found is None:
            found = self._open_table(number, file)
        table, length = found
        at = index * length
        raw = table[at : at + length]
        if file < 1 or len(raw) != length:
            raise self._no_file(file)
        return parse_record(raw)

    def is_directory(self, file: int) -> bool:
        """Whether the file id is a directory."""
        number, index = divmod(file - 1, RECORDS_IN_TABLE)
        table, length = self._tables.get(number) or self._open_table(number, file)
        at = index * length
        if file < 1 or at + length > len(table):
            raise self._no_file(file)
        return length > TYPE_AT and table[at + TYPE_AT] == StreamType.LINKS

    def _open_table(self, number: int, file: int) -> tuple[bytes, int]:
        """Read and cache the records of a file table, and their size; ``file`` is the file id for errors."""
        if not 0 <= number < self.table_count:
            raise self._no_file(file)
        offset, records, length = self.table(number)
        found = self._read(offset, records * length, "CIM file table"), length
        if len(self._tables) >= _TABLES_KEPT:
            self._tables.pop(next(iter(self._tables)))
        self._tables[number] = found
        return found

    def _no_file(self, file: int) -> FormatError:
        return FormatError("CIM file table directory", place(self._directory_at)[1], f"file id {file} does not exist")

    # Directories

    def links(self, directory: FileRecord) -> list[tuple[str, int]]:
        """Names and file ids of a directory, in the order of the table."""
        return list(self.children(directory).values())

    def children(self, directory: FileRecord) -> dict[str, tuple[str, int]]:
        """Entries of a directory: folded name -> name, file id; in the order of the table.

        Names are as stored, including lone surrogates. Raises FormatError for unsorted names, names that differ only in
        case, empty names, ``.`` and ``..``.
        """
        stream = directory.data
        structure = "CIM link table"
        if stream.kind != StreamType.LINKS:
            raise FormatError(structure, place(stream.offset)[1], "the file is not a directory")
        if not stream.length:
            return {}
        ids, names = self._read_link_table(stream.offset, stream.length, 4, structure)
        count = len(names)
        keys = self._fold_names(names, stream.offset, structure)
        if any(map(ge, keys, keys[1:])):
            self._check_order(keys, names, place(stream.offset)[1], structure)
        return dict(zip(keys, zip(names, struct.unpack(f"<{count}I", ids), strict=True), strict=True))

    def _check_order(self, keys: list[str], names: list[str], start: int, structure: str) -> None:
        """Raise FormatError unless ``keys`` ascend, by UTF-16 units or code points: the format's order is not known."""

        def by_code_points(key: str) -> str:
            return key.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")

        whole = list(map(by_code_points, keys))
        for number, (one, other) in enumerate(pairwise(whole)):
            if one >= other:
                raise FormatError(
                    structure,
                    start + LINKS.size + 4 * number + 4,
                    f"the names are not sorted: {names[number + 1]!r} follows {names[number]!r}",
                )

    def _fold_names(self, names: list[str], offset: int, structure: str) -> list[str]:
        keys = list(map(self.upcase.fold, names))
        if len(set(keys)) != len(keys):
            raise FormatError(structure, place(offset)[1], "two names differ only in case")
        return keys

    def streams(self, record: FileRecord) -> list[tuple[str, Stream]]:
        """Alternate data streams of a file, by name without colons.

        Both known forms of the table are read, since it is unknown which one Windows writes (docs/formats/cim.md).
        """
        if not record.streams:
            return []
        at = record.streams
        first, second = LINKS.unpack(self._read(at, LINKS.size, "CIM stream table"))
        plain = LINKS.size + (STREAM.size + 4) * second <= first
        if not plain:
            if first != second:
                raise FormatError(
                    "CIM stream table", place(at)[1], f"{second} streams do not fit a table of {first} bytes"
                )
            at, size = at + 4, first
        else:
            size = first
        descriptors, names = self._read_link_table(at, size, STREAM.size, "CIM stream table")
        self._fold_names(names, at, "CIM stream table")
        found = []
        for number, name in enumerate(names):
            stream = stream_from(*STREAM.unpack_from(descriptors, number * STREAM.size))
            if stream.kind != StreamType.DATA:
                where = place(at)[1] + LINKS.size + number * STREAM.size
                raise FormatError(
                    "CIM stream table", where, f"stream {name!r} is of type {stream.kind}, not plain data"
                )
            found.append((name, stream))
        return found

    def _read_link_table(self, offset: int, size: int, width: int, structure: str) -> tuple[bytes, list[str]]:
        """Read the values and names of a table of at most ``size`` bytes."""
        start = place(offset)[1]
        if size < LINKS.size:
            raise FormatError(structure, start, f"{size} bytes are too short for a table")
        raw = self._read(offset, LINKS.size, structure)
        length, count = LINKS.unpack(raw)
        if length > _TABLE_AT_MOST:
            raise FormatError(structure, start, f"a table of {length} bytes exceeds the limit of {_TABLE_AT_MOST}")
        if not LINKS.size <= length <= size:
            raise FormatError(structure, start, f"the table states {length} bytes, but has {size}")
        end = LINKS.size + count * (width + 4)
        if end > length:
            raise FormatError(structure, start + 4, f"{count} links do not fit a table of {length} bytes")
        raw = self._read(offset, length, structure)
        values = raw[LINKS.size : LINKS.size + count * width]
        places = struct.unpack_from(f"<{count}I", raw, LINKS.size + count * width)
        names = []
        for number, at in enumerate(places):
            if at > length - 2:
                where = start + LINKS.size + count * width + number * 4
                raise FormatError(structure, where, f"the name at {at} is outside the table's {length} bytes")
            stop = at + 2 + 2 * (raw[at] | raw[at + 1] << 8)
            if stop > length:
                raise FormatError(structure, start + at, f"the name exceeds the table's {length} bytes")
            name = raw[at + 2 : stop].decode("utf-16-le", "surrogatepass")
            if _NO_NAME(name) is not None and not (name and width == STREAM.size and not name.strip(".")):
                raise FormatError(structure, start + at, f"invalid name {name[:80]!r}")
            names.append(name)
        return values, names

    # Attached data

    def security(self, record: FileRecord) -> bytes | None:
        """The self-relative security descriptor."""
        return self._read_counted(record.security, "CIM security descriptor")

    def reparse(self, record: FileRecord) -> bytes | None:
        """The reparse buffer, from the tag on."""
        return self._read_counted(record.reparse, "CIM reparse data")

    def extended_attributes(self, record: FileRecord) -> bytes | None:
        """The stored list of extended attributes."""
        if not record.ea or not record.ea_length:
            return None
        return self._read(record.ea, record.ea_length, "CIM extended attributes")

    def _read_counted(self, offset: int, structure: str) -> bytes | None:
        if not offset:
            return None
        found = self._shared.get(offset)
        if found is None:
            (size,) = COUNTED.unpack(self._read(offset, COUNTED.size, structure))
            found = self._read(offset + COUNTED.size, size, structure)
            if len(self._shared) >= _SHARED_KEPT:
                self._shared.clear()
            self._shared[offset] = found
        return found

    # Streams

    def read(self, stream: Stream, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Yield up to ``size`` bytes of a stream from ``offset``, in pieces of at most `STEP` bytes."""
        end = stream.length if size is None else min(stream.length, offset + size)
        if stream.sparse:
            zeros = bytes(min(STEP, max(0, end - offset)))
            while offset < end:
                piece = zeros[: end - offset]
                offset += len(piece)
                yield piece
        elif offset >= end:
            return
        elif stream.kind == StreamType.DATA:
            yield from self._read_stored(stream.offset, offset, end, "CIM data", stream.length)
        elif stream.kind == StreamType.IMAGE:
            yield from self._read_image(stream, offset, end)
        else:
            raise FormatError("CIM stream", place(stream.offset)[1], f"a stream of type {stream.kind} has no content")

    def check(self, stream: Stream) -> None:
        """Check that a plain stream lies inside its region. Raises FormatError."""
        if stream.kind == StreamType.DATA and not stream.sparse and stream.length:
            self._check_range(stream.offset, stream.length, "CIM data")

    def _read_stored(self, where: int, offset: int, end: int, structure: str, length: int) -> Iterator[bytes]:
        self._check_range(where, length, structure)
        while offset < end:
            piece = self._read(where + offset, min(STEP, end - offset), structure)
            offset += len(piece)
            yield piece

    def _read_image(self, stream: Stream, offset: int, end: int) -> Iterator[bytes]:
        """Yield a PE image with moved sections: each mapping gives the shift from its file offset on."""
        structure, start = "CIM PE image", place(stream.offset)[1]
        at, word, _, count, _ = IMAGE.unpack(self._read(stream.offset, IMAGE.size, structure))
        length = word & ~(1 << 63)
        mappings = list(MAPPING.iter_unpack(self._read(stream.offset + IMAGE.size, count * MAPPING.size, structure)))
        if [first for first, _ in mappings] != sorted(first for first, _ in mappings):
            raise FormatError(structure, start + IMAGE.size, "the mappings are not sorted")
        if end > length:
            raise FormatError(
                structure, start + 8, f"the mappings end at {length}, before the end of the stream at {end}"
            )
        bounds = [(0, 0), *mappings]
        for number, (first, delta) in enumerate(bounds):
            stop = min(end, bounds[number + 1][0] if number + 1 < len(bounds) else length)
            begin = max(offset, first)
            if begin < stop and place(at)[1] + stop + delta > MAX_LENGTH:
                raise FormatError(structure, start + IMAGE.size, f"the mapping at {first} points beyond any region")
            while begin < stop:
                piece = self._read(at + begin + delta, min(STEP, stop - begin), structure)
                begin += len(piece)
                yield piece

    # Regions

    def _read(self, offset: int, length: int, structure: str) -> bytes:
        byte = self._check_range(offset, length, structure)
        if not length:
            return b""
        raw = self._find_region(offset >> 48, structure).read(byte, length)
        if len(raw) != length:
            raise FormatError(structure, byte, f"only {len(raw)} of {length} bytes could be read")
        return raw

    def _check_range(self, offset: int, length: int, structure: str) -> int:
        region, byte = place(offset)
        if not byte:
            raise FormatError(structure, 0, "missing region offset" if not offset else "offset 0 of a region")
        size = self._find_region(region, structure).size
        if byte + length > size:
            raise FormatError(structure, byte, f"{length} bytes exceed the {size} of region {region}")
        return byte

    def _find_region(self, number: int, structure: str) -> Region:
        found = self._regions.get(number)
        if found is not None:
            return found
        if number >= len(self._names):
            raise FormatError(structure, 0, f"region {number} of an image with {len(self._names)}")
        guid, index = self._names[number]
        try:
            region = self._open_region(guid, index)
        except NotFound as problem:
            raise NotFound(f"{problem}: region {number} of the image, with a {structure}") from problem
        size = HEADER.size + REGION.size
        if region.size < size:
            raise FormatError(f"CIM region {number}", 0, f"{region.size} bytes are too short for a header of {size}")
        on_disk.check_header(region.read(0, size), FileKind.REGION, f"CIM region {number}")
        self._regions[number] = region
        return region
