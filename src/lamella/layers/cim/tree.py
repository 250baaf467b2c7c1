# SPDX-License-Identifier: Apache-2.0
"""The files of an image as a tree."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Final, Literal, Self

from msgspec import Struct

from lamella.changes.model import (
    NO_XATTRS,
    Buffer,
    Entry,
    Kind,
    StoredContent,
    Windows,
)
from lamella.errors import FormatError, InvalidInput, NotFound
from lamella.formats.cim.reader import CimReader
from lamella.formats.cim.structures import FileRecord, Flag, place
from lamella.formats.cim.structures import Stream as CimStream
from lamella.formats.ntfs import basic_information as bits
from lamella.formats.ntfs import extended_attributes, reparse
from lamella.layers.cim.image import CimLayer, OpenCim
from lamella.layers.overlay_view import Listings
from lamella.paths import LayerPath, Way, join

ATTRIBUTES: Final = (
    (Flag.READ_ONLY, bits.READONLY),
    (Flag.HIDDEN, bits.HIDDEN),
    (Flag.SYSTEM, bits.SYSTEM),
    (Flag.ARCHIVE, bits.ARCHIVE),
    (Flag.SPARSE, bits.SPARSE_FILE),
)
"""Bits of a file record, and the corresponding attributes."""
KEPT: Final = sum(attribute for _, attribute in ATTRIBUTES)
"""The attributes that a file record can hold."""

_OF_FLAGS: Final = [sum(attribute for flag, attribute in ATTRIBUTES if flags & flag) for flags in range(32)]
_NO_STREAMS: Final[Mapping[str, CimContent]] = {}
Links = dict[str, tuple[str, int]]


class CimContent(Struct):
    """The content of a file in an image, valid while the image is open."""

    reader: CimReader
    stream: CimStream

    @property
    def size(self) -> int:
        return self.stream.length

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        """No extents for a stream of zeros."""
        return () if self.stream.sparse else None

    @property
    def stored(self) -> Literal[True]:
        return True

    def chunks(self) -> Iterable[Buffer]:
        """Raises FormatError."""
        return () if self.stream.sparse else self.reader.read(self.stream)


class CimTree:
    """The files of an image (`Tree`). Names ignore case, and entries have a Windows facet."""

    any_case = True
    """Name patterns ignore case, too."""

    def __init__(self, image: OpenCim | CimLayer) -> None:
        """Open the image, or use an open one, which the caller closes."""
        self._owned = isinstance(image, CimLayer)
        self.image = OpenCim(image) if isinstance(image, CimLayer) else image
        self.reader = self.image.reader
        self._directories: Listings[Links] = Listings()
        self._near: tuple[str, int] = ("", self.reader.root)
        self._way = Way(self.reader.root)
        self._places: dict[int, tuple[int, str]] = {self.reader.root: (0, "")}
        self._recent: dict[int, FileRecord] = {}
        """The records in the last listed directory."""

    def lookup(self, path: LayerPath) -> Entry | None:
        file = self.find(path)
        return None if file is None else entry_of(self.reader, path, self.reader.record(file))

    def entries(self, directory: LayerPath) -> list[Entry]:
        file = self.find(directory)
        if file is None:
            raise NotFound(f"{directory!r} does not exist")
        if not self.reader.record(file).is_directory:
            raise InvalidInput(f"{directory!r} is not a directory")
        found = sorted(self.links(file).items(), key=lambda link: link[1][0].encode("utf-8", "surrogatepass"))
        reader, entries = self.reader, []
        self._recent = recent = {}
        for key, (name, child) in found:
            record = recent[child] = reader.record(child)
            if record.is_directory:
                self._claim(child, file, key)
            entries.append(entry_of(reader, join(directory, name), record))
        return entries

    def open(self, path: LayerPath) -> StoredContent:
        file = self.find(path)
        if file is None:
            raise NotFound(f"{path!r} does not exist")
        record = self._record(file)
        # A reparse point with an unknown tag is a plain file.
        if record.is_directory or (record.reparse and entry_of(self.reader, path, record).kind is not Kind.FILE):
            raise InvalidInput(f"{path!r} is not a file with content")
        return CimContent(self.reader, record.data)

    def identity(self, path: LayerPath) -> Hashable:
        """An image has no link counts, so every file may have several hard links."""
        return self.find(path)

    def streams(self, path: LayerPath) -> Mapping[str, CimContent]:
        """The alternate data streams of a file, by name. Raises NotFound."""
        file = self.find(path)
        if file is None:
            raise NotFound(f"{path!r} does not exist")
        record = self._record(file)
        if not record.streams:
            return _NO_STREAMS
        found = self.reader.streams(record)
        return {name: CimContent(self.reader, stream) for name, stream in found}

    def find(self, path: str) -> int | None:
        """The file id of ``path``."""
        parent, _, name = path.rpartition("/")
        if not path:
            return self.reader.root
        if parent != self._near[0]:
            file = self._way.find(parent, self._child)
            if file is None:
                return None
            self._near = parent, file
        return self._child(self._near[1], name)

    def _child(self, directory: int, name: str) -> int | None:
        if not self.reader.is_directory(directory):
            return None
        key = self.reader.upcase.fold(name)
        found = self.links(directory).get(key)
        if found is None:
            return None
        if self.reader.is_directory(found[1]):
            self._claim(found[1], directory, key)
        return found[1]

    def _record(self, file: int) -> FileRecord:
        return self._recent.get(file) or self.reader.record(file)

    def _claim(self, file: int, directory: int, key: str) -> None:
        """Record the parent of the directory ``file``. Raises FormatError if it has two: the walk could be endless."""
        if self._places.setdefault(file, (directory, key)) != (directory, key):
            raise duplicate_directory(self.reader, file, directory)

    def links(self, directory: int) -> Links:
        """The entries of a directory: folded name -> name, file id."""
        found = self._directories.get(directory)
        if found is None:
            found = self.reader.children(self.reader.record(directory))
            self._directories.keep(directory, found)
        return found

    def close(self) -> None:
        """Close the image if it was opened here."""
        if self._owned:
            self.image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def duplicate_directory(reader: CimReader, file: int, directory: int) -> FormatError:
    """The error for the link table of ``directory``, which contains the directory ``file`` of another one."""
    at = place(reader.record(directory).data.offset)[1]
    return FormatError(
        "CIM link table", at, f"the directory with the file id {file} is also in another directory or in itself"
    )


def entry_of(reader: CimReader, path: LayerPath, record: FileRecord) -> Entry:
    """The entry of a file record."""
    windows = Windows(
        _OF_FLAGS[record.flags & 31],
        bits.ns_from_ticks(record.creation_time),
        bits.ns_from_ticks(record.access_time),
        bits.ns_from_ticks(record.write_time),
        bits.ns_from_ticks(record.change_time),
        reader.security(record),
    )
    if record.ea_length:
        listed = extended_attributes.decode(reader.extended_attributes(record) or b"")
        windows.extended_attributes = {each.name.decode("utf-8", "surrogateescape"): each.value for each in listed}
    else:
        windows.extended_attributes = NO_XATTRS
    kind, size, target = Kind.FILE, record.data.length, ""
    if record.is_directory:
        kind, size = Kind.DIRECTORY, 0
        windows.attributes |= bits.DIRECTORY
    if record.reparse:
        windows.attributes |= bits.REPARSE_POINT
        windows.reparse = reader.reparse(record)
        point = reparse.decode(windows.reparse or b"")
        if isinstance(point, (reparse.Symlink, reparse.MountPoint)):
            kind, size, target = Kind.SYMLINK, 0, reparse.target(point)
    return Entry(path, kind, None, size, target, windows)
