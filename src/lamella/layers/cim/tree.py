# SPDX-License-Identifier: Apache-2.0
"""An image as a tree, and its files as changes: all of them, or those against the image that it was forked from."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Self

from msgspec import Struct

from lamella.changes.model import (
    NO_XATTRS,
    Buffer,
    Change,
    Entry,
    Kind,
    Link,
    Put,
    StoredContent,
    Stream,
    Whiteout,
    Windows,
)
from lamella.errors import Exhausted, FormatError, InvalidInput, NotFound
from lamella.formats.cim.reader import CimReader
from lamella.formats.cim.structures import RECORDS_IN_TABLE, FileRecord, Flag, place
from lamella.formats.cim.structures import Stream as CimStream
from lamella.formats.ntfs import attributes as bits
from lamella.formats.ntfs import extended_attributes, filetime, reparse
from lamella.layers.cim.image_files import CimLayer, OpenCim
from lamella.layers.overlay_view import Listings
from lamella.paths import ROOT, LayerPath, Way, join

ATTRIBUTES: Final = (
    (Flag.READ_ONLY, bits.READONLY),
    (Flag.HIDDEN, bits.HIDDEN),
    (Flag.SYSTEM, bits.SYSTEM),
    (Flag.ARCHIVE, bits.ARCHIVE),
    (Flag.SPARSE, bits.SPARSE_FILE),
)
"""A bit of a file record, and the attribute that it stands for."""

_OF_FLAGS: Final = [sum(attribute for flag, attribute in ATTRIBUTES if flags & flag) for flags in range(32)]
_NO_STREAMS: Final[Mapping[str, CimContent]] = {}
_DEEPEST: Final = 300
"""Levels that are walked; Windows' own programs end at 260 characters."""
_Links = dict[str, tuple[str, int]]


class CimContent(Struct):
    """The bytes of a file in an image, good as long as the image is open."""

    reader: CimReader
    stream: CimStream

    @property
    def size(self) -> int:
        """See `Content.size`."""
        return self.stream.length

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        """See `Content.extents`: nothing for a stream of zeros."""
        return () if self.stream.sparse else None

    @property
    def stored(self) -> bool:
        """True."""
        return True

    def chunks(self) -> Iterable[Buffer]:
        """See `Content.chunks`. Raises FormatError."""
        return () if self.stream.sparse else self.reader.read(self.stream)


class CimTree:
    """The files of an image (`Tree`); names are found without regard to case, and entries have a Windows facet."""

    any_case = True
    """Patterns of names match in any case too."""

    def __init__(self, image: OpenCim | CimLayer) -> None:
        """Open the image, or read from one that is open and stays the caller's."""
        self._owned = isinstance(image, CimLayer)
        self.image = OpenCim(image) if isinstance(image, CimLayer) else image
        self.reader = self.image.reader
        self._directories: Listings[_Links] = Listings()
        self._near: tuple[str, int] = ("", self.reader.root)
        self._way = Way(self.reader.root)
        self._places: dict[int, tuple[int, str]] = {self.reader.root: (0, "")}
        self._recent: dict[int, FileRecord] = {}
        """The records of what is in the directory that was listed last."""

    def lookup(self, path: LayerPath) -> Entry | None:
        """See `Tree.lookup`."""
        file = self.find(path)
        return None if file is None else entry_of(self.reader, path, self.reader.record(file))

    def entries(self, directory: LayerPath) -> list[Entry]:
        """See `Tree.entries`."""
        file = self.find(directory)
        if file is None:
            raise NotFound(f"{directory!r} is not there")
        if not self.reader.record(file).is_directory:
            raise InvalidInput(f"{directory!r} is no directory")
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
        """See `Tree.open`."""
        file = self.find(path)
        if file is None:
            raise NotFound(f"{path!r} is not there")
        record = self._record(file)
        # A reparse point that is no link is a file like others to whoever does not know its tag.
        if record.is_directory or (record.reparse and entry_of(self.reader, path, record).kind is not Kind.FILE):
            raise InvalidInput(f"{path!r} is not a file with content")
        return CimContent(self.reader, record.data)

    def identity(self, path: LayerPath) -> Hashable:
        """See `Tree.identity`. An image has no count of links, so every file may have a second name."""
        return self.find(path)

    def streams(self, path: LayerPath) -> Mapping[str, CimContent]:
        """The alternate data streams of a file, by name. Raises NotFound."""
        file = self.find(path)
        if file is None:
            raise NotFound(f"{path!r} is not there")
        record = self._record(file)
        if not record.streams:
            return _NO_STREAMS
        found = self.reader.streams(record)
        return {name: CimContent(self.reader, stream) for name, stream in found}

    def find(self, path: str) -> int | None:
        """The file id at ``path``."""
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
        """Note where the directory ``file`` is: one that is in two places could be in itself, or be walked for ever."""
        if self._places.setdefault(file, (directory, key)) != (directory, key):
            raise in_two_places(self.reader, file, directory)

    def links(self, directory: int) -> _Links:
        """What is in a directory: folded name -> name, file id."""
        found = self._directories.get(directory)
        if found is None:
            found = self.reader.children(self.reader.record(directory))
            self._directories.keep(directory, found)
        return found

    def close(self) -> None:
        """Let go of the image, where it was opened here."""
        if self._owned:
            self.image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def in_two_places(reader: CimReader, file: int, directory: int) -> FormatError:
    """What is wrong with the link table of ``directory``, which has the directory ``file`` of another one."""
    at = place(reader.record(directory).data.offset)[1]
    return FormatError(
        "CIM link table", at, f"the directory of file id {file} is in another directory too, or in itself"
    )


def entry_of(reader: CimReader, path: LayerPath, record: FileRecord) -> Entry:
    """The metadata of a file."""
    windows = Windows(
        _OF_FLAGS[record.flags & 31],
        filetime.ns_from_ticks(record.creation_time),
        filetime.ns_from_ticks(record.access_time),
        filetime.ns_from_ticks(record.write_time),
        filetime.ns_from_ticks(record.change_time),
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


def all_changes(image: OpenCim) -> Iterator[Change]:
    """Every file of an image as a layer without parents states it: parents first, names by their bytes."""
    yield from _Walk(image.reader, None).changes()


def changes_since(image: OpenCim, parent: OpenCim) -> Iterator[Change]:
    """What an image states against the one that it was forked from, told from the file tables alone.

    No content is read: a file whose record is the parent's is the parent's file. Whiteouts come right after their
    directory, before what is in it, and a directory that something changed in is stated before that: imports need it.
    Raises InvalidInput where ``image`` is not forked from ``parent``, or from another that is.
    """
    below = parent.reader.filesystem.sets
    if below != image.reader.filesystem.sets[: len(below)]:
        raise InvalidInput(
            f"{os.fspath(image.layer.path)!r} is not forked from {os.fspath(parent.layer.path)!r}",
            hint="'lamella cim info' shows the region sets that an image is forked from",
        )
    yield from _Walk(image.reader, parent.reader).changes()


class _Walk:
    def __init__(self, image: CimReader, parent: CimReader | None) -> None:
        self._image = image
        self._parent = parent
        self._paths: dict[int, LayerPath] = {}
        """The first name of each file that was stated."""
        self._unchanged: dict[int, LayerPath] | None = None
        self._entered = {image.root}
        """Directories that were come to: there is one way to each."""

    def changes(self) -> Iterator[Change]:
        image, parent = self._image, self._parent
        if parent is None:
            yield from self._added(ROOT, image.root)
        else:
            if self._differs(image.root, parent.root):
                yield from self._one(ROOT, image.root)
            yield from self._inside(ROOT, image.root, parent.root, stated=True)

    def _added(self, path: LayerPath, file: int) -> Iterator[Change]:
        yield from self._one(path, file)
        record = self._image.record(file)
        if record.is_directory:
            for name, child in self._links(path, file):
                yield from self._added(join(path, name), child)

    def _inside(self, path: LayerPath, file: int, old: int, *, stated: bool) -> Iterator[Change]:
        """What changed in a directory that is one on both sides; it is stated before anything in it."""
        changes = self._changed(path, file, old)
        first = next(changes, None)
        if first is None:
            return
        if not stated:
            yield from self._one(path, file)
        yield first
        yield from changes

    def _changed(self, path: LayerPath, file: int, old: int) -> Iterator[Change]:
        assert self._parent is not None  # noqa: S101  # there is another side
        image, parent = self._image, self._parent
        here, there = image.children(image.record(file)), parent.children(parent.record(old))
        for key in sorted(there.keys() - here.keys()):
            yield Whiteout(join(path, there[key][0]))
        fold = self._image.upcase.fold
        for name, child in self._links(path, file):
            inner = join(path, name)
            before = there.get(fold(name))
            if before is None:
                yield from self._added(inner, child)
                continue
            was, is_now = self._parent.record(before[1]), self._image.record(child)
            stated = before[0] != name or child != before[1] or self._differs(child, before[1])
            if stated:
                yield from self._one(inner, child)
            if is_now.is_directory and not is_now.reparse:
                if was.is_directory and not was.reparse:
                    yield from self._inside(inner, child, before[1], stated=stated)
                else:
                    for other, grandchild in self._links(inner, child):
                        yield from self._added(join(inner, other), grandchild)

    def _one(self, path: LayerPath, file: int) -> Iterator[Change]:
        image = self._image
        record = image.record(file)
        if not record.is_directory:
            first = self._paths.get(file) or self._kept(file)
            if first is not None and first != path:
                yield Link(path, first)
                return
            self._paths[file] = path
        entry = entry_of(image, path, record)
        yield Put(entry, CimContent(image, record.data) if entry.kind is Kind.FILE else None)
        for name, stream in image.streams(record):
            yield Stream(path, name, CimContent(image, stream))

    def _differs(self, file: int, old: int) -> bool:
        """Whether a file with the parent's id has another record than there; of a directory, apart from its names."""
        image, parent = self._image, self._parent
        assert parent is not None  # noqa: S101  # there is another side
        number = (file - 1) // RECORDS_IN_TABLE
        kept = file == old and number < min(image.table_count, parent.table_count)
        if kept and image.table(number) == parent.table(number):
            return False
        new, before = image.record(file), parent.record(old)
        if new.is_directory and before.is_directory:
            new.data = before.data
        return new != before

    def _kept(self, file: int) -> LayerPath | None:
        """A name under which the parent's file is still there unchanged, for one that gets a further name."""
        parent = self._parent
        if parent is None or file > parent.count or self._differs(file, file):
            return None
        if self._unchanged is None:
            self._unchanged = {}
            self._note(ROOT, self._image.root, parent.root, self._unchanged, {self._image.root})
        return self._unchanged.get(file)

    def _note(self, path: LayerPath, file: int, old: int, found: dict[int, LayerPath], entered: set[int]) -> None:
        assert self._parent is not None  # noqa: S101  # there is another side
        there = self._parent.children(self._parent.record(old))
        fold = self._image.upcase.fold
        for name, child in self._links(path, file, entered):
            before = there.get(fold(name))
            if before is None or before[1] != child:
                continue
            inner = join(path, name)
            if self._image.record(child).is_directory:
                self._note(inner, child, before[1], found, entered)
            else:
                found.setdefault(child, inner)

    def _links(self, path: LayerPath, file: int, entered: set[int] | None = None) -> Iterator[tuple[str, int]]:
        """What is in a directory, by the bytes of the names. Raises FormatError where a directory has two places."""
        if path.count("/") >= _DEEPEST:
            raise Exhausted(f"the directory {path[:200]!r} is more than {_DEEPEST} levels deep")
        entered = self._entered if entered is None else entered
        image = self._image
        for name, child in _sorted(image.children(image.record(file))):
            if image.is_directory(child):
                if child in entered:
                    raise in_two_places(image, child, file)
                entered.add(child)
            yield name, child


def _sorted(links: _Links) -> list[tuple[str, int]]:
    return sorted(links.values(), key=lambda link: link[0].encode("utf-8", "surrogatepass"))
