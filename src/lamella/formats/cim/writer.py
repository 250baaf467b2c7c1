# SPDX-License-Identifier: Apache-2.0
"""Writes a CIM of version 2.0, new or forked from another, whose unchanged parts stay where they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias
from uuid import UUID

from lamella.errors import Conflict, InvalidInput, NotFound, SizeMismatch
from lamella.formats.cim.pending import Directories, Names, Records
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
    place,
    region_header,
    region_offset,
)
from lamella.formats.ntfs.upcase import Upcase, pack_upcase, usual_upcase

if TYPE_CHECKING:
    from hashlib import _Hash

Buffer: TypeAlias = bytes | bytearray | memoryview

SMALL: Final = 4096
"""Files of fewer bytes go to the region of small files. Where Windows draws the line is not known."""

_START: Final = HEADER.size + REGION.size
_TAG: Final = slice(0, 4)
_ZEROS: Final = bytes(max(ALIGNMENT.values()))
LARGE: Final = 1 << 14
"""Contents of so many bytes are compared by their size first, and only then by their digest."""
_DIGEST: Final = 24
"""Bytes of a SHA-256 by which equal contents are told: as many as an object id of Windows has."""
_STEP: Final = 1 << 20
_SHARED: Final = 4096
"""Pieces of metadata whose place is remembered by their bytes; most files have one of a few descriptors."""
_LAST_TIME: Final = (1 << 63) - 1


class Output(Protocol):
    """A region file in the making."""

    def write(self, data: Buffer) -> object:
        """Append all of ``data``, which is the caller's again on return."""
        ...

    def truncate(self, size: int) -> object:
        """Drop what is beyond ``size`` bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """What has been written."""
        ...


class Facts(Protocol):
    """What a file has besides its bytes. Times are FILETIMEs."""

    creation_time: int
    write_time: int
    change_time: int
    access_time: int
    security: bytes
    extended_attributes: bytes
    reparse: bytes
    """The buffer from the tag on."""

    @property
    def flags(self) -> int:
        """See `lamella.formats.cim.structures.Flag`."""
        ...


@dataclass(slots=True)
class Metadata:
    """`Facts` as they are. Nobody changes one in place."""

    flags: int = 0
    creation_time: int = 0
    write_time: int = 0
    change_time: int = 0
    access_time: int = 0
    security: bytes = b""
    extended_attributes: bytes = b""
    reparse: bytes = b""


class _Region:
    __slots__ = ("_alignment", "_base", "_truncate", "_write", "digest", "read", "size")

    def __init__(self, kind: RegionType, number: int, output: Output) -> None:
        self._base = region_offset(number, 0)
        self._alignment = ALIGNMENT[kind]
        self._write, self._truncate, self.read = output.write, output.truncate, output.read
        self.digest = hashlib.sha256() if kind is RegionType.METADATA else None
        """Of all that was appended to metadata, which is never taken back."""
        output.write(region_header(kind, kind))
        self.size = _START

    def align(self) -> int:
        """Go to where an object may start; its region offset."""
        gap = -self.size % self._alignment
        if gap:
            self.append(_ZEROS[:gap])
        return self._base | self.size

    def append(self, data: Buffer) -> None:
        self._write(data)
        self.size += len(data)
        if self.digest is not None:
            self.digest.update(data)

    def put(self, data: Buffer) -> int:
        """An object; its region offset."""
        at = self.size
        gap = -at % self._alignment
        if gap:
            self.append(_ZEROS[:gap])
            at += gap
        self._write(data)
        self.size = at + len(data)
        if self.digest is not None:
            self.digest.update(data)
        return self._base | at

    def back_to(self, size: int) -> None:
        self._truncate(size)
        self.size = size


class CimWriter:
    """An image in the making, over ``parent`` or from nothing.

    Paths have ``/`` between names and are looked up without regard to case; the root is the empty string. The same
    calls give the same bytes. Some 300 bytes for each file that is put stay in memory.
    """

    def __init__(self, open_region: Callable[[RegionType], Output], *, parent: CimReader | None = None) -> None:
        """Start the three regions of the image's own set."""
        self._parent = parent
        base = sum(each.count for each in parent.filesystem.sets) if parent is not None else 0
        self._metadata, self._data, self._small = (_Region(kind, base + kind, open_region(kind)) for kind in RegionType)
        self._upcase: Upcase = parent.upcase if parent is not None else usual_upcase()
        self._nothing = self._metadata.align()
        """A place for streams without bytes, since an offset of 0 would mean that there is none."""
        self._records = Records(parent.count if parent is not None else 0)
        self._directories = Directories(self._upcase.fold, self._loaded)
        self._put_in: set[int] = set()
        """Directories in which, at whatever depth, this fork has put something."""
        self._streams: dict[int, dict[str, tuple[str, Stream]]] = {}
        self._stored: dict[bytes, int] = {}
        """Digest of a stored object, with a letter for its kind where that is metadata -> region offset."""
        self._sizes: dict[int, int] = {}
        """Size of large contents -> where the one lies whose digest nobody has asked for yet; 0 when there is none."""
        self._shared: dict[bytes, tuple[bytes, int]] = {}
        """Kind and region offset of those pieces of metadata that came last, by their bytes."""
        self._near: tuple[str, int]
        """The directory that was last come by: what is named next is often in it."""
        if parent is None:
            empty = FileRecord(data=self._empty_directory()).pack()
            self._root = self._records.add(empty)
            self._directories.add(self._root)
        else:
            self._root = parent.root
        self._near = ("", self._root)

    # Content

    def store(self, chunks: Iterable[Buffer], size: int, *, by_digest: bool = False) -> Stream:
        """Bytes that a file or stream is to have; those that are there already are not kept twice.

        ``by_digest`` is for what does not follow from the ``contents`` that `fingerprint` is given.

        Raises SizeMismatch where ``chunks`` give more or less than ``size``, InvalidInput beyond 2**48 - 1.
        """
        if size > MAX_LENGTH:
            raise InvalidInput(f"a stream of {size} bytes: they end at {MAX_LENGTH}")
        region = self._small if size < SMALL else self._data
        if size >= LARGE and by_digest:
            self._sizes.setdefault(size, 0)
        if size >= LARGE and size not in self._sizes:
            stream = self._written(region, chunks, size, None)
            self._sizes[size] = stream.offset
            return stream
        pieces = iter(chunks)
        first = next(pieces, b"")
        if len(first) != size:
            return self._written(region, chain((first,), pieces), size, hashlib.sha256())
        known = self._nothing
        if size:
            key = hashlib.sha256(first).digest()[:_DIGEST]
            found = self._known(size, key)
            if found is None:
                found = self._stored[key] = region.put(first)
            known = found
        if any(pieces):
            raise SizeMismatch("content of a file in a CIM", expected=size, actual="more")
        return Stream(known, size)

    def _written(self, region: _Region, chunks: Iterable[Buffer], size: int, digest: _Hash | None) -> Stream:
        """Content in pieces. With ``digest`` it is taken back where it proves to have been there already."""
        before = region.size
        offset = region.align()
        done = 0
        for chunk in chunks:
            done += len(chunk)
            if done > size:
                raise SizeMismatch("content of a file in a CIM", expected=size, actual="more")
            if digest is not None:
                digest.update(chunk)
            region.append(chunk)
        if done != size:
            raise SizeMismatch("content of a file in a CIM", expected=size, actual=done)
        if not size:
            return Stream(self._nothing)
        if digest is not None:
            key = digest.digest()[:_DIGEST]
            found = self._known(size, key)
            if found is not None:
                region.back_to(before)
                return Stream(found, size)
            self._stored[key] = offset
        return Stream(offset, size)

    def _known(self, size: int, key: bytes) -> int | None:
        """Where content lies already. A digest of one of the same size is made now: most sizes are there once."""
        other = self._sizes.get(size)
        if other:
            self._sizes[size] = 0
            self._stored.setdefault(self._digest(other, size), other)
        return self._stored.get(key)

    def _digest(self, offset: int, size: int) -> bytes:
        """Of large content that has been written."""
        digest, end = hashlib.sha256(), place(offset)[1] + size
        for at in range(end - size, end, _STEP):
            digest.update(self._data.read(at, min(_STEP, end - at)))
        return digest.digest()[:_DIGEST]

    def zeros(self, size: int) -> Stream:
        """A stream of zeros, none of which is stored."""
        return Stream(0, size, StreamType.DATA, sparse=True) if size else Stream(self._nothing)

    # Files

    def lookup(self, path: str) -> FileRecord | None:
        """What is at ``path`` so far, the parent's included."""
        file = self._find(path)
        return None if file is None else self._record(file)

    def touched(self, path: str) -> bool:
        """Whether this image has put what is at ``path``, or something in it. Of a fork only."""
        file = self._find(path)
        return file is not None and (file in self._put_in or self._records.get(file) is not None)

    def names(self, path: str) -> Iterator[tuple[str, FileRecord]]:
        """What is in the directory ``path`` so far. Raises NotFound, InvalidInput."""
        for name, file in list(self._directories.names(self._directory(path)).values()):
            yield name, self._record(file)

    def put(self, path: str, metadata: Facts, stream: Stream | None) -> FileRecord | None:
        """A file with ``stream``, or a directory without one, in place of whatever is there, which is returned.

        A directory over a directory keeps what is in it. Raises NotFound where its directory is not there,
        InvalidInput for a name or metadata that an image cannot hold.
        """
        if not path:
            if stream is not None:
                raise InvalidInput("the root of an image is a directory")
            before = self._record(self._root)
            self._records.put(self._root, self._pack(metadata, before.data, 0))
            self._streams.pop(self._root, None)
            return before
        directory, name = self._split(path)
        key = self._key(name)
        link = self._directories.names(directory).get(key)
        old = None if link is None else self._record(link[1])
        if link is not None and old is not None and old.is_directory and stream is None:
            self._records.put(link[1], self._pack(metadata, old.data, directory))
            self._streams.pop(link[1], None)
            return old
        file = self._records.add(self._pack(metadata, stream or self._empty_directory(), directory))
        self._directories.changing(directory)[key] = name, file
        if self._parent is not None and directory not in self._put_in:
            self._note_put(path)
        if stream is None:
            self._directories.add(file)
        if old is not None:
            self._near = ("", self._root)
        return old

    def stream(self, path: str, name: str, stream: Stream) -> None:
        """An alternate data stream, ``name`` without colons. Raises NotFound, InvalidInput."""
        file = self._must_find(path)
        if stream.kind != StreamType.DATA:
            raise InvalidInput(f"{path!r}: an alternate data stream is plain data")
        self._streams_of(file)[self._key(name, of_stream=True)] = name, stream

    def link(self, path: str, target: str) -> None:
        """A further name for a file. Raises NotFound, InvalidInput for a directory."""
        file = self._must_find(target)
        if self._record(file).is_directory:
            raise InvalidInput(f"hard link {path!r}: its target {target!r} is a directory")
        directory, name = self._split(path)
        self._directories.changing(directory)[self._key(name)] = name, file
        if self._parent is not None and directory not in self._put_in:
            self._note_put(path)
        self._near = ("", self._root)

    def delete(self, path: str) -> None:
        """A file goes, a directory with all that is in it. Raises NotFound."""
        if not path:
            raise InvalidInput("the root of an image cannot be deleted")
        directory, name = self._split(path)
        key = self._key(name)
        if key not in self._directories.names(directory):
            raise NotFound(f"{path!r} is not there")
        del self._directories.changing(directory)[key]
        self._near = ("", self._root)

    # The end

    def write_tables(self) -> int:
        """Write what waited for the end; the region offset of the file system object. Nothing may follow but `file`."""
        metadata = self._metadata
        for file, streams in sorted(self._streams.items()):
            record = self._record(file)
            record.streams = metadata.put(self._stream_table(streams)) if streams else 0
            self._records.put(file, record.pack())
        for file in sorted(self._directories.changed):
            record = self._record(file)
            ordered = self._directories.in_order(file)
            ids = [child.to_bytes(4, "little") for _, child in ordered]
            table = _table(ids, [name for name, _ in ordered])
            record.data = Stream(metadata.put(table), len(table), StreamType.LINKS)
            self._records.put(file, record.pack())
        tables = b"".join(TABLE.pack(*each) for each in self._tables())
        directory = metadata.put(tables)
        parent = self._parent
        upcase = parent.upcase_offset if parent is not None else metadata.put(pack_upcase(self._upcase))
        return metadata.put(OBJECT.pack(upcase, directory, len(tables) // TABLE.size, self._root))

    def fingerprint(self, contents: bytes | None = None) -> bytes:
        """32 bytes that are the same for images with the same bytes, once `write_tables` has been called.

        ``contents`` stands for all that was stored, as a digest of what it was taken from does. Without it, what has no
        digest yet is read again.
        """
        assert self._metadata.digest is not None  # noqa: S101  # that of metadata
        state = self._metadata.digest.copy()
        state.update(b"".join(self._stored))
        if contents is None:
            contents = b"".join(self._digest(offset, size) for size, offset in self._sizes.items() if offset)
        state.update(contents)
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
            yield self._metadata.put(b"".join([self._packed(file) for file in ids])), count, RECORD.size

    def _packed(self, file: int) -> bytes:
        found = self._records.get(file)
        if found is not None:
            return found
        assert self._parent is not None  # noqa: S101  # files without a record are the parent's
        return self._parent.record(file).pack()

    def _stream_table(self, streams: dict[str, tuple[str, Stream]]) -> bytes:
        ordered = [streams[key] for key in sorted(streams)]
        return _table([STREAM.pack(*stream.words()) for _, stream in ordered], [name for name, _ in ordered])

    # Inside

    def _empty_directory(self) -> Stream:
        return Stream(self._nothing, 0, StreamType.LINKS)

    def _pack(self, metadata: Facts, data: Stream, parent: int) -> bytes:
        extended, point = metadata.extended_attributes, metadata.reparse
        if len(extended) > MAX_COUNTED:
            raise InvalidInput(f"{len(extended)} bytes of extended attributes; an image holds {MAX_COUNTED}")
        times = metadata.creation_time, metadata.write_time, metadata.change_time, metadata.access_time
        if min(times) < 0 or max(times) > _LAST_TIME:
            raise InvalidInput(f"the times {times} are not all FILETIMEs")
        offset, word = data.words()
        return RECORD.pack(
            metadata.flags,
            len(extended),
            int.from_bytes(point[_TAG], "little"),
            *times,
            offset,
            word,
            self._object(b"S", metadata.security, "a security descriptor"),
            self._object(b"E", extended, "") if extended else 0,
            self._object(b"R", point, "reparse data") if point else 0,
            0,
            parent,
            0,
        )

    def _object(self, kind: bytes, data: bytes, what: str) -> int:
        """The region offset of a piece of metadata that many files may share; 0 for none."""
        if not data:
            return 0
        shared = self._shared.get(data)
        if shared is not None and shared[0] == kind:
            return shared[1]
        if len(data) > MAX_COUNTED:
            raise InvalidInput(f"{what} of {len(data)} bytes; an image holds {MAX_COUNTED}")
        key = kind + hashlib.sha256(data).digest()
        known = self._stored.get(key)
        if known is None:
            raw = data if kind == b"E" else COUNTED.pack(len(data)) + data
            known = self._stored[key] = self._metadata.put(raw)
        if len(self._shared) >= _SHARED:
            self._shared.clear()
        self._shared[data] = kind, known
        return known

    def _record(self, file: int) -> FileRecord:
        packed = self._records.get(file)
        if packed is not None:
            return parse_record(packed)
        assert self._parent is not None  # noqa: S101  # files without a record are the parent's
        return self._parent.record(file)

    def _streams_of(self, file: int) -> dict[str, tuple[str, Stream]]:
        found = self._streams.get(file)
        if found is None:
            there = self._parent.streams(self._record(file)) if self._parent is not None else []
            found = self._streams[file] = {self._upcase.fold(name): (name, stream) for name, stream in there}
        return found

    def _note_put(self, path: str) -> None:
        """Note that something was put into the directories that lead to ``path``."""
        file: int | None = self._root
        for part in path.split("/"):
            if file is None:
                return
            self._put_in.add(file)
            file = self._child(file, part)

    def _loaded(self, directory: int) -> Names:
        assert self._parent is not None  # noqa: S101  # our own are there from the start
        return self._parent.children(self._record(directory))

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
        child = self._directories.names(directory).get(self._upcase.fold(name))
        return None if child is None else child[1]

    def _is_directory(self, file: int) -> bool:
        return self._directories.known(file) or self._record(file).is_directory

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

    def _key(self, name: str, *, of_stream: bool = False) -> str:
        """The folded name. Streams may be called ``.`` and ``..``."""
        if (name in ("", ".", "..") and not (name and of_stream)) or "\0" in name or "\\" in name or "/" in name:
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
