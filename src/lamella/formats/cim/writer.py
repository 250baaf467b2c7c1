# SPDX-License-Identifier: Apache-2.0
"""Writes CIMs of version 2.0, new or forked from a parent, whose unchanged parts are referenced."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final, Protocol
from uuid import UUID

from msgspec import Struct

from lamella.errors import Conflict, InvalidInput, NotFound
from lamella.formats.cim.contents import Contents, Output, Region
from lamella.formats.cim.reader import CimReader
from lamella.formats.cim.record_tables import Directories, Names, Records
from lamella.formats.cim.structures import (
    COUNTED,
    LINKS,
    MAX_COUNTED,
    MAX_NAME,
    OBJECT,
    RECORD,
    RECORDS_IN_TABLE,
    STREAM,
    TABLE,
    FileRecord,
    FilesystemFile,
    RegionSet,
    RegionType,
    Stream,
    StreamType,
    parse_record,
)
from lamella.formats.ntfs.names import Upcase, pack_upcase, usual_upcase
from lamella.paths import Way

_TAG: Final = slice(0, 4)
_DESCRIPTORS: Final = 4096
"""Maximum number of cached security descriptors; most files have one of a few."""
_LAST: Final = (1 << 63) - 1
_pack_record: Final = RECORD.pack


class Facts(Protocol):
    """Metadata of a file. Times are FILETIMEs."""

    creation_time: int
    write_time: int
    change_time: int
    access_time: int
    security: bytes
    extended_attributes: bytes
    reparse: bytes
    """The reparse buffer, from the tag on."""

    @property
    def flags(self) -> int:
        """Bits of `lamella.formats.cim.structures.Flag`."""
        ...


class Metadata(Struct):
    """Plain `Facts`, never changed in place."""

    flags: int = 0
    creation_time: int = 0
    write_time: int = 0
    change_time: int = 0
    access_time: int = 0
    security: bytes = b""
    extended_attributes: bytes = b""
    reparse: bytes = b""


class CimWriter:
    """Writes an image, new or over ``parent``.

    Paths have ``/`` between names and are case-insensitive; the root is the empty string. Equal calls give equal bytes.
    Each file takes about 300 bytes of memory.
    """

    def __init__(self, open_region: Callable[[RegionType], Output], *, parent: CimReader | None = None) -> None:
        """Create the three regions of the image's own set."""
        self._parent = parent
        base = sum(each.count for each in parent.filesystem.sets) if parent is not None else 0
        self._regions = metadata, data, small = [Region(kind, base + kind, open_region(kind)) for kind in RegionType]
        self._metadata = metadata
        self._upcase: Upcase = parent.upcase if parent is not None else usual_upcase()
        self._nothing = metadata.align()
        """Region offset of empty streams; 0 would mean no stream."""
        self._no_names = Stream(self._nothing, 0, StreamType.LINKS)
        contents = self._contents = Contents(small, data, self._nothing)
        self.store, self.zeros = contents.store, contents.zeros
        """Create the streams for `put`."""
        self._records = Records(parent.count if parent is not None else 0)
        self._directories = Directories(self._upcase.fold, self._load_names)
        self._put_in: set[int] = set()
        """Directories with entries of this fork, at any depth."""
        self._streams: dict[int, dict[str, tuple[str, Stream]]] = {}
        self._stored: dict[bytes, int] = {}
        """Letter for the kind of a metadata object, and its SHA-256 -> region offset."""
        self._descriptors: dict[bytes, int] = {b"": 0}
        """Cache: security descriptor -> region offset."""
        self._near: tuple[str, int]
        """Cache: path and file id of the last directory, which often holds the next file too."""
        if parent is None:
            empty = FileRecord(data=self._no_names).pack()
            self._root = self._records.add(empty)
            self._directories.add(self._root)
        else:
            self._root = parent.root
        self._near = ("", self._root)
        self._way = Way(self._root)

    # Files

    def lookup(self, path: str) -> FileRecord | None:
        """The record at ``path`` so far, including those of the parent."""
        file = self._find(path)
        return None if file is None else self._record(file)

    def what(self, path: str) -> tuple[bool, bool] | None:
        """Whether the file at ``path`` is a directory, and whether it is a reparse point; None if it does not exist."""
        file = self._find(path)
        if file is None:
            return None
        known = self._records.kind(file)
        if known is not None:
            return known
        record = self._record(file)
        return record.is_directory, bool(record.reparse)

    def touched(self, path: str) -> bool:
        """Whether this fork has written the file at ``path``, or an entry below it."""
        file = self._find(path)
        return file is not None and (file in self._put_in or self._records.get(file) is not None)

    def names(self, path: str) -> Iterator[tuple[str, FileRecord]]:
        """Yield the entries of the directory ``path`` so far. Raises NotFound, InvalidInput."""
        for name, file in list(self._directories.names(self._require_directory(path)).values()):
            yield name, self._record(file)

    def put(self, path: str, metadata: Facts, stream: Stream | None) -> FileRecord | None:
        """Write a file with ``stream``, or a directory without; replace and return an existing file.

        A directory over a directory keeps its entries. Raises NotFound if the parent directory does not exist,
        InvalidInput for a name or metadata that an image cannot hold.
        """
        if not path:
            if stream is not None:
                raise InvalidInput("the root of an image is a directory")
            before = self._record(self._root)
            self._records.put(self._root, self._pack(metadata, before.data, 0))
            self._streams.pop(self._root, None)
            return before
        directory, name = self._split_path(path)
        key = self._fold_name(name)
        if self._parent is not None and directory not in self._put_in:
            self._record_put(path, directory)
        names = self._directories.names(directory)
        old = None
        if key in names:
            there = names[key][1]
            old = self._record(there)
            if old.is_directory and stream is None:
                self._records.put(there, self._pack(metadata, old.data, directory))
                self._streams.pop(there, None)
                return old
            self._forget_directory()
        file = self._records.add(self._pack(metadata, self._no_names if stream is None else stream, directory))
        names[key] = name, file
        self._directories.changed.add(directory)
        if stream is None:
            self._directories.add(file)
        return old

    def stream(self, path: str, name: str, stream: Stream) -> None:
        """Write an alternate data stream, ``name`` without colons. Raises NotFound, InvalidInput."""
        file = self._require(path)
        if stream.kind != StreamType.DATA:
            raise InvalidInput(f"{path!r}: an alternate data stream must be plain data")
        self._load_streams(file)[self._fold_name(name, of_stream=True)] = name, stream

    def link(self, path: str, target: str) -> None:
        """Create a hard link. Raises NotFound, InvalidInput for a directory."""
        file = self._require(target)
        if self._record(file).is_directory:
            raise InvalidInput(f"hard link {path!r}: its target {target!r} is a directory")
        directory, name = self._split_path(path)
        self._directories.changing(directory)[self._fold_name(name)] = name, file
        if self._parent is not None and directory not in self._put_in:
            self._record_put(path, directory)
        self._forget_directory()

    def delete(self, path: str) -> None:
        """Delete a file, or a directory with all its entries. Raises NotFound."""
        if not path:
            raise InvalidInput("the root of an image cannot be deleted")
        directory, name = self._split_path(path)
        key = self._fold_name(name)
        if key not in self._directories.names(directory):
            raise NotFound(f"{path!r} does not exist")
        del self._directories.changing(directory)[key]
        self._forget_directory()

    # Finish

    def write_tables(self) -> int:
        """Write all tables, and return the region offset of the file system object. Only `file` may follow."""
        metadata = self._metadata
        for file, streams in sorted(self._streams.items()):
            record = self._record(file)
            record.streams = metadata.put(self._pack_streams(streams)) if streams else 0
            self._records.put(file, record.pack())
        for file in sorted(self._directories.changed):
            names, files = self._directories.in_order(file)
            table = _pack_table(struct.pack(f"<{len(files)}I", *files), names)
            stream = Stream(metadata.put(table), len(table), StreamType.LINKS)
            if not self._records.put_data(file, stream):
                record = self._record(file)
                record.data = stream
                self._records.put(file, record.pack())
        tables = b"".join(TABLE.pack(*each) for each in self._update_tables())
        directory = metadata.put(tables)
        parent = self._parent
        upcase = parent.upcase_offset if parent is not None else metadata.put(pack_upcase(self._upcase))
        root = metadata.put(OBJECT.pack(upcase, directory, len(tables) // TABLE.size, self._root))
        for region in self._regions:
            region.flush()
        return root

    def fingerprint(self, contents: bytes | None = None) -> bytes:
        """SHA-256 that identifies the image's bytes, after `write_tables`.

        ``contents`` represents all stored contents, for example as a digest of their source. Without it, all contents
        are read again.
        """
        state = self._metadata.state()
        self._contents.add_to(state, contents)
        for parent in self._parent.filesystem.sets if self._parent is not None else ():
            state.update(parent.pack())
        return state.digest()

    def file(self, root: int, guid: UUID) -> bytes:
        """The bytes of ``NAME.cim``; ``root`` is the result of `write_tables`."""
        parents = self._parent.filesystem.sets if self._parent is not None else ()
        if any(each.guid == guid for each in parents):
            raise Conflict(f"the region set {guid} belongs to a parent")
        return FilesystemFile(RegionSet(guid, len(RegionType)), root, parents).pack()

    def _update_tables(self) -> Iterator[tuple[int, int, int]]:
        """Yield region offset, number of records and record size of each file table; unchanged tables are reused."""
        parent, last = self._parent, self._records.last
        for number in range(-(-last // RECORDS_IN_TABLE)):
            first = number * RECORDS_IN_TABLE + 1
            count = min(RECORDS_IN_TABLE, last - first + 1)
            ids = range(first, first + count)
            if parent is not None and number < parent.table_count and not self._records.any(ids):
                old = parent.table(number)
                if old[1] == count:
                    yield old
                    continue
            raw = self._records.rows(ids)
            if raw is None:
                raw = b"".join([self._pack_existing(file) for file in ids])
            yield self._metadata.put(raw), count, RECORD.size

    def _pack_existing(self, file: int) -> bytes:
        found = self._records.get(file)
        if found is not None:
            return found
        assert self._parent is not None  # noqa: S101  # files without a record are the parent's
        return self._parent.record(file).pack()

    def _pack_streams(self, streams: dict[str, tuple[str, Stream]]) -> bytes:
        ordered = [streams[key] for key in sorted(streams)]
        return _pack_table(
            b"".join([STREAM.pack(*stream.words()) for _, stream in ordered]), [name for name, _ in ordered]
        )

    # Internals

    def _pack(self, metadata: Facts, data: Stream, parent: int) -> bytes:
        extended, point = metadata.extended_attributes, metadata.reparse
        if len(extended) > MAX_COUNTED:
            raise InvalidInput(f"{len(extended)} bytes of extended attributes exceed the limit of {MAX_COUNTED}")
        made, written, changed, accessed = (
            metadata.creation_time,
            metadata.write_time,
            metadata.change_time,
            metadata.access_time,
        )
        if not (0 <= made <= _LAST and 0 <= written <= _LAST and 0 <= changed <= _LAST and 0 <= accessed <= _LAST):
            raise InvalidInput(f"the times {(made, written, changed, accessed)} are not all valid FILETIMEs")
        security = metadata.security
        known = self._descriptors.get(security)
        return _pack_record(
            metadata.flags,
            len(extended),
            int.from_bytes(point[_TAG], "little") if point else 0,
            made,
            written,
            changed,
            accessed,
            data[0],
            data[1] | data[2] << 48 | data[3] << 56,
            known if known is not None else self._put_security(security),
            self._put_object(b"E", extended, "") if extended else 0,
            self._put_object(b"R", point, "reparse data") if point else 0,
            0,
            parent,
            0,
        )

    def _put_security(self, descriptor: bytes) -> int:
        known = self._put_object(b"S", descriptor, "a security descriptor")
        if len(self._descriptors) >= _DESCRIPTORS:
            self._descriptors.clear()
            self._descriptors[b""] = 0
        self._descriptors[descriptor] = known
        return known

    def _put_object(self, kind: bytes, data: bytes, what: str) -> int:
        """Store a metadata object once, and return its region offset."""
        if len(data) > MAX_COUNTED:
            raise InvalidInput(f"{what} of {len(data)} bytes exceeds the limit of {MAX_COUNTED}")
        key = kind + hashlib.sha256(data).digest()
        known = self._stored.get(key)
        if known is None:
            raw = data if kind == b"E" else COUNTED.pack(len(data)) + data
            known = self._stored[key] = self._metadata.put(raw)
        return known

    def _record(self, file: int) -> FileRecord:
        packed = self._records.get(file)
        if packed is not None:
            return parse_record(packed)
        assert self._parent is not None  # noqa: S101  # files without a record are the parent's
        return self._parent.record(file)

    def _load_streams(self, file: int) -> dict[str, tuple[str, Stream]]:
        found = self._streams.get(file)
        if found is None:
            there = self._parent.streams(self._record(file)) if self._parent is not None else []
            found = self._streams[file] = {self._upcase.fold(name): (name, stream) for name, stream in there}
        return found

    def _record_put(self, path: str, directory: int) -> None:
        """Record that the parents of ``path``, whose directory is ``directory``, have a new entry."""
        if directory != self._root and self._records.has(directory):
            self._put_in.add(directory)  # its parents were recorded when it was put
            return
        file: int | None = self._root
        for part in path.split("/"):
            if file is None:
                return
            self._put_in.add(file)
            file = self._find_child(file, part)

    def _load_names(self, directory: int) -> Names:
        assert self._parent is not None  # noqa: S101  # directories of this image are known from the start
        return self._parent.children(self._record(directory))

    def _forget_directory(self) -> None:
        self._near = ("", self._root)
        self._way.reset()

    def _find(self, path: str) -> int | None:
        if not path:
            return self._root
        parent, _, name = path.rpartition("/")
        if parent != self._near[0]:
            directory = self._way.find(parent, self._find_directory)
            if directory is None:
                return None
            self._near = parent, directory
        return self._find_child(self._near[1], name)

    def _find_directory(self, directory: int, name: str) -> int | None:
        child = self._find_child(directory, name)
        return child if child is not None and self._is_directory(child) else None

    def _find_child(self, directory: int, name: str) -> int | None:
        if not self._is_directory(directory):
            return None
        child = self._directories.names(directory).get(self._upcase.fold(name))
        return None if child is None else child[1]

    def _is_directory(self, file: int) -> bool:
        return self._directories.known(file) or self._record(file).is_directory

    def _require(self, path: str) -> int:
        file = self._find(path)
        if file is None:
            raise NotFound(f"{path!r} does not exist")
        return file

    def _require_directory(self, path: str) -> int:
        file = self._require(path)
        if not self._is_directory(file):
            raise InvalidInput(f"{path!r} is not a directory")
        return file

    def _split_path(self, path: str) -> tuple[int, str]:
        parent, _, name = path.rpartition("/")
        if parent != self._near[0]:
            self._near = parent, self._require_directory(parent)
        return self._near[1], name

    def _fold_name(self, name: str, *, of_stream: bool = False) -> str:
        """Check and fold a name. Streams may be named ``.`` and ``..``."""
        if (name in ("", ".", "..") and not (name and of_stream)) or "\0" in name or "\\" in name or "/" in name:
            raise InvalidInput(f"invalid name {name!r}")
        if len(name) > MAX_NAME // 2 and len(name.encode("utf-16-le", "surrogatepass")) > 2 * MAX_NAME:
            raise InvalidInput(f"{name[:60]!r}... exceeds the {MAX_NAME} UTF-16 units of a name")
        return self._upcase.fold(name)


def _pack_table(values: bytes, names: Sequence[str]) -> bytes:
    """Pack a link table or stream table: values, then the position of each name, then the names."""
    count = len(names)
    start = LINKS.size + len(values) + 4 * count
    pool = "".join([f"{chr(len(name))}{name}" for name in names]).encode("utf-16-le", "surrogatepass")
    lengths = list(map(len, names))
    if len(pool) != 2 * (sum(lengths) + count):  # some characters take two units
        raws = [name.encode("utf-16-le", "surrogatepass") for name in names]
        lengths = [len(raw) // 2 for raw in raws]
        pool = b"".join([COUNTED.pack(length) + raw for length, raw in zip(lengths, raws, strict=True)])
    places = accumulate([2 * length + 2 for length in lengths[:-1]], initial=start) if count else ()
    return b"".join((LINKS.pack(start + len(pool), count), values, struct.pack(f"<{count}I", *places), pool))
