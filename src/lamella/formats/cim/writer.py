# SPDX-License-Identifier: Apache-2.0
"""Writes a CIM of version 2.0, new or forked from another, whose unchanged parts stay where they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol
from uuid import UUID

from lamella.errors import Conflict, InvalidInput, NotFound, SizeMismatch
from lamella.formats.cim.reader import CimReader
from lamella.formats.cim.structures import (
    ALIGNMENT,
    COUNTED,
    HEADER,
    LINKS,
    MAX_COUNTED,
    MAX_LENGTH,
    MAX_NAME,
    OBJECT,
    RECORD,
    RECORDS_IN_TABLE,
    REGION,
    STREAM,
    TABLE,
    FileRecord,
    FilesystemFile,
    RegionSet,
    RegionType,
    Stream,
    StreamType,
    parse_record,
    region_header,
    region_offset,
)
from lamella.formats.ntfs.upcase import Upcase, pack_upcase, usual_upcase

SMALL: Final = 4096
"""Files of fewer bytes go to the region of small files. Where Windows draws the line is not known."""

_START: Final = HEADER.size + REGION.size
_TAG: Final = slice(0, 4)


class Output(Protocol):
    """A region file in the making."""

    def write(self, data: bytes | bytearray | memoryview) -> object:
        """Append all of ``data``, which is the caller's again on return."""
        ...

    def truncate(self, size: int) -> object:
        """Drop what is beyond ``size`` bytes."""
        ...


@dataclass(slots=True, frozen=True)
class Metadata:
    """What a file has besides its bytes. Times are FILETIMEs."""

    flags: int = 0
    creation_time: int = 0
    write_time: int = 0
    change_time: int = 0
    access_time: int = 0
    security: bytes = b""
    extended_attributes: bytes = b""
    reparse: bytes = b""
    """The buffer from the tag on."""


class _Region:
    __slots__ = ("_number", "_output", "digest", "kind", "size")

    def __init__(self, kind: RegionType, number: int, output: Output) -> None:
        self.kind = kind
        self._number = number
        self._output = output
        self.digest = hashlib.sha256()
        """Of all that was appended to metadata, which is never taken back."""
        output.write(region_header(kind, kind))
        self.size = _START

    def align(self) -> int:
        """Go to where an object may start; its region offset."""
        gap = -self.size % ALIGNMENT[self.kind]
        if gap:
            self.append(bytes(gap))
        return region_offset(self._number, self.size)

    def append(self, data: bytes | bytearray | memoryview) -> None:
        self._output.write(data)
        self.size += len(data)
        if self.kind is RegionType.METADATA:
            self.digest.update(data)

    def put(self, data: bytes) -> int:
        """An object; its region offset."""
        offset = self.align()
        self.append(data)
        return offset

    def back_to(self, size: int) -> None:
        self._output.truncate(size)
        self.size = size


_Names = dict[str, tuple[str, int]]
"""Folded name -> name, file id."""


class CimWriter:
    """An image in the making, over ``parent`` or from nothing.

    Paths have ``/`` between names and are looked up without regard to case; the root is the empty string. The same
    calls give the same bytes. Directories stay in memory: some 400 bytes for each file that was put or lies beside one.
    """

    def __init__(self, open_region: Callable[[RegionType], Output], *, parent: CimReader | None = None) -> None:
        """Start the three regions of the image's own set."""
        self._parent = parent
        base = sum(each.count for each in parent.filesystem.sets) if parent is not None else 0
        self._metadata, self._data, self._small = (_Region(kind, base + kind, open_region(kind)) for kind in RegionType)
        self._upcase: Upcase = parent.upcase if parent is not None else usual_upcase()
        self._nothing = self._metadata.align()
        """A place for streams without bytes, since an offset of 0 would mean that there is none."""
        self._records: dict[int, bytes] = {}
        """Those that are new or changed."""
        self._directories: dict[int, _Names] = {}
        """Those that were looked into."""
        self._changed: set[int] = set()
        """Directories with another set of names than the parent's."""
        self._streams: dict[int, dict[str, tuple[str, Stream]]] = {}
        self._stored: dict[bytes, int] = {}
        """Digest of a stored object of the kind that its first byte says -> region offset."""
        self._root: int = parent.root if parent is not None else 1
        self._last: int = parent.count if parent is not None else 1
        self._near = ("", self._root)
        """The directory that was last come by: what is named next is often in it."""
        if parent is None:
            self._records[1] = FileRecord(data=self._empty_directory(), parent=0).pack()
            self._directories[1] = {}
            self._changed.add(1)

    # Content

    def store(self, chunks: Iterable[bytes | bytearray | memoryview], size: int) -> Stream:
        """Bytes that a file or stream is to have; those that are there already are not kept twice.

        Raises SizeMismatch where ``chunks`` give more or less than ``size``, InvalidInput beyond 2**48 - 1.
        """
        if size > MAX_LENGTH:
            raise InvalidInput(f"a stream of {size} bytes: they end at {MAX_LENGTH}")
        region = self._small if size < SMALL else self._data
        digest = hashlib.sha256()
        before = region.size
        offset = region.align()
        done = 0
        for chunk in chunks:
            done += len(chunk)
            if done > size:
                raise SizeMismatch("content of a file in a CIM", expected=size, actual="more")
            digest.update(chunk)
            region.append(chunk)
        if done != size:
            raise SizeMismatch("content of a file in a CIM", expected=size, actual=done)
        if not size:
            region.back_to(before)
            return Stream(self._nothing)
        known = self._stored.setdefault(digest.digest(), offset)
        if known != offset:
            region.back_to(before)
        return Stream(known, size)

    def zeros(self, size: int) -> Stream:
        """A stream of zeros, none of which is stored."""
        return Stream(0, size, StreamType.DATA, sparse=True) if size else Stream(self._nothing)

    # Files

    def lookup(self, path: str) -> FileRecord | None:
        """What is at ``path`` so far, the parent's included."""
        file = self._find(path)
        return None if file is None else self._record(file)

    def touched(self, path: str) -> bool:
        """Whether this image has put what is at ``path``, or changed the names in it."""
        file = self._find(path)
        return file is not None and (file in self._records or file in self._changed)

    def names(self, path: str) -> Iterator[tuple[str, FileRecord]]:
        """What is in the directory ``path`` so far. Raises NotFound, InvalidInput."""
        for name, file in list(self._children(self._directory(path)).values()):
            yield name, self._record(file)

    def put(self, path: str, metadata: Metadata, stream: Stream | None) -> None:
        """A file with ``stream``, or a directory without one, in place of whatever is there.

        A directory over a directory keeps what is in it. Raises NotFound where its directory is not there,
        InvalidInput for a name or metadata that an image cannot hold.
        """
        if not path:
            if stream is not None:
                raise InvalidInput("the root of an image is a directory")
            self._records[self._root] = self._pack(metadata, self._record(self._root).data, 0)
            self._streams.pop(self._root, None)
            return
        directory, name = self._split(path)
        children = self._children(directory)
        key = self._key(name)
        old = children.get(key)
        if stream is None:
            data = self._empty_directory()
            if old is not None and (record := self._record(old[1])).is_directory:
                file, data = old[1], record.data
            else:
                file = self._new(children, key, name, directory)
                self._directories[file] = {}
                self._changed.add(file)
        else:
            file, data = self._new(children, key, name, directory), stream
            if old is not None:
                self._near = ("", self._root)
        self._records[file] = self._pack(metadata, data, directory)
        self._streams.pop(file, None)

    def stream(self, path: str, name: str, stream: Stream) -> None:
        """An alternate data stream, ``name`` without colons. Raises NotFound, InvalidInput."""
        file = self._must_find(path)
        if stream.kind != StreamType.DATA:
            raise InvalidInput(f"{path!r}: an alternate data stream is plain data")
        self._streams_of(file)[self._key(name)] = name, stream

    def link(self, path: str, target: str) -> None:
        """A further name for a file. Raises NotFound, InvalidInput for a directory."""
        file = self._must_find(target)
        if self._record(file).is_directory:
            raise InvalidInput(f"hard link {path!r}: its target {target!r} is a directory")
        directory, name = self._split(path)
        self._children(directory)[self._key(name)] = name, file
        self._changed.add(directory)
        self._near = ("", self._root)

    def delete(self, path: str) -> None:
        """A file goes, a directory with all that is in it. Raises NotFound."""
        if not path:
            raise InvalidInput("the root of an image cannot be deleted")
        directory, name = self._split(path)
        if self._children(directory).pop(self._key(name), None) is None:
            raise NotFound(f"{path!r} is not there")
        self._changed.add(directory)
        self._near = ("", self._root)

    # The end

    def write_tables(self) -> int:
        """Write what waited for the end; the region offset of the file system object. Nothing may follow but `file`."""
        metadata = self._metadata
        for file, streams in sorted(self._streams.items()):
            record = self._record(file)
            record.streams = metadata.put(self._stream_table(streams)) if streams else 0
            self._records[file] = record.pack()
        for file in sorted(self._changed):
            record = self._record(file)
            table = self._link_table(self._directories[file])
            record.data = replace(self._empty_directory(), offset=metadata.put(table), length=len(table))
            self._records[file] = record.pack()
        tables = b"".join(TABLE.pack(*each) for each in self._tables())
        directory = metadata.put(tables)
        parent = self._parent
        upcase = parent.upcase_offset if parent is not None else metadata.put(pack_upcase(self._upcase))
        return metadata.put(OBJECT.pack(upcase, directory, len(tables) // TABLE.size, self._root))

    def fingerprint(self) -> bytes:
        """32 bytes that are the same for images with the same bytes, once `write_tables` has been called."""
        state = self._metadata.digest.copy()
        for known in self._stored:
            state.update(known)
        for parent in self._parent.filesystem.sets if self._parent is not None else ():
            state.update(parent.pack())
        return state.digest()

    def file(self, root: int, guid: UUID) -> bytes:
        """The bytes of ``NAME.cim`` once `write_tables` has said where the ``root`` is."""
        parents = self._parent.filesystem.sets if self._parent is not None else ()
        if any(each.guid == guid for each in parents):
            raise Conflict(f"the region set {guid} is a parent's")
        return FilesystemFile(RegionSet(guid, len(RegionType)), root, parents).pack()

    def _tables(self) -> Iterator[tuple[int, int, int]]:
        """Region offset, number of records and their length: the parent's tables where nothing in them has changed."""
        old = self._parent.tables if self._parent is not None else []
        for number in range(-(-self._last // RECORDS_IN_TABLE)):
            first = number * RECORDS_IN_TABLE + 1
            count = min(RECORDS_IN_TABLE, self._last - first + 1)
            ids = range(first, first + count)
            if number < len(old) and old[number][1] == count and not any(file in self._records for file in ids):
                yield old[number]
                continue
            yield self._metadata.put(b"".join([self._packed(file) for file in ids])), count, RECORD.size

    def _packed(self, file: int) -> bytes:
        found = self._records.get(file)
        if found is not None:
            return found
        assert self._parent is not None  # noqa: S101  # files without a record are the parent's
        return self._parent.record(file).pack()

    def _link_table(self, children: _Names) -> bytes:
        ordered = [children[key] for key in sorted(children)]
        return _table([file.to_bytes(4, "little") for _, file in ordered], [name for name, _ in ordered])

    def _stream_table(self, streams: dict[str, tuple[str, Stream]]) -> bytes:
        ordered = [streams[key] for key in sorted(streams)]
        return _table([STREAM.pack(*stream.words()) for _, stream in ordered], [name for name, _ in ordered])

    # Inside

    def _empty_directory(self) -> Stream:
        return Stream(self._nothing, 0, StreamType.LINKS)

    def _pack(self, metadata: Metadata, data: Stream, parent: int) -> bytes:
        extended = metadata.extended_attributes
        if len(extended) > MAX_COUNTED:
            raise InvalidInput(f"{len(extended)} bytes of extended attributes; an image holds {MAX_COUNTED}")
        return FileRecord(
            metadata.flags,
            len(extended),
            int.from_bytes(metadata.reparse[_TAG], "little"),
            metadata.creation_time,
            metadata.write_time,
            metadata.change_time,
            metadata.access_time,
            data,
            self._object(b"S", metadata.security, "a security descriptor"),
            self._object(b"E", extended, "") if extended else 0,
            self._object(b"R", metadata.reparse, "reparse data"),
            0,
            parent,
        ).pack()

    def _object(self, kind: bytes, data: bytes, what: str) -> int:
        """The region offset of a piece of metadata that many files may share; 0 for none."""
        if not data:
            return 0
        if len(data) > MAX_COUNTED:
            raise InvalidInput(f"{what} of {len(data)} bytes; an image holds {MAX_COUNTED}")
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

    def _new(self, children: _Names, key: str, name: str, directory: int) -> int:
        self._last += 1
        children[key] = name, self._last
        self._changed.add(directory)
        return self._last

    def _streams_of(self, file: int) -> dict[str, tuple[str, Stream]]:
        found = self._streams.get(file)
        if found is None:
            there = self._parent.streams(self._record(file)) if self._parent is not None else []
            found = self._streams[file] = {self._key(name): (name, stream) for name, stream in there}
        return found

    def _children(self, directory: int) -> _Names:
        found = self._directories.get(directory)
        if found is None:
            assert self._parent is not None  # noqa: S101  # our own are there from the start
            fold = self._upcase.fold
            there = self._parent.links(self._record(directory))
            found = self._directories[directory] = {fold(name): (name, file) for name, file in there}
        return found

    def _find(self, path: str) -> int | None:
        if not path:
            return self._root
        parent, _, name = path.rpartition("/")
        if parent != self._near[0]:
            file: int = self._root
            for part in parent.split("/") if parent else ():
                child = self._child(file, part)
                if child is None:
                    return None
                file = child
            if not self._is_directory(file):
                return None
            self._near = parent, file
        return self._child(self._near[1], name)

    def _child(self, directory: int, name: str) -> int | None:
        if not self._is_directory(directory):
            return None
        child = self._children(directory).get(self._upcase.fold(name))
        return None if child is None else child[1]

    def _is_directory(self, file: int) -> bool:
        return file in self._directories or self._record(file).is_directory

    def _must_find(self, path: str) -> int:
        file = self._find(path)
        if file is None:
            raise NotFound(f"{path!r} is not there")
        return file

    def _directory(self, path: str) -> int:
        file = self._must_find(path)
        if not self._is_directory(file):
            raise InvalidInput(f"{path!r} is no directory")
        return file

    def _split(self, path: str) -> tuple[int, str]:
        parent, _, name = path.rpartition("/")
        if parent != self._near[0]:
            self._near = parent, self._directory(parent)
        return self._near[1], name

    def _key(self, name: str) -> str:
        if name in ("", ".", "..") or "\0" in name or "\\" in name or "/" in name:
            raise InvalidInput(f"{name!r} cannot be a name in an image")
        if len(name) > MAX_NAME // 2 and len(name.encode("utf-16-le", "surrogatepass")) > 2 * MAX_NAME:
            raise InvalidInput(f"{name[:60]!r}... has more than the {MAX_NAME} UTF-16 units of a name")
        return self._upcase.fold(name)


def _table(values: list[bytes], names: list[str]) -> bytes:
    """A link table or stream table: values, then where each name lies, then the names."""
    at = LINKS.size + sum(len(value) + 4 for value in values)
    places, pool = [], []
    for name in names:
        raw = name.encode("utf-16-le", "surrogatepass")
        places.append(at.to_bytes(4, "little"))
        pool.append(COUNTED.pack(len(raw) // 2) + raw)
        at += len(pool[-1])
    return b"".join((LINKS.pack(at, len(values)), *values, *places, *pool))
