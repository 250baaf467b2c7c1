# SPDX-License-Identifier: Apache-2.0
"""Encodes the changes of a tar stream as values that `marshal` takes, for another process, without the data of files.

A batch is ``(facets, records)``. An item of ``facets`` is a pair: the fields of a `Posix` and of a `Windows`, each None
if the entry lacks it. A record is a list; the type of its first item distinguishes the two forms:

- A `Put` is the fields of its `Entry`, the path (a string) first. ``kind`` is an index of `_KINDS`, ``posix`` one of
  ``facets``, and ``windows`` the location of the content.
- Any other change is the index of its class in `_OTHERS` (an integer), and its fields. The content of a `Stream` is a
  pair of its size and location.

A location is the offset of the data in the stream; ``(offset, stored size, extents)`` for a sparse file; `_EMPTY_DATA`;
or None without content. Fields are packed and restored by position: a new field needs no edit here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias

from msgspec.structs import astuple

from lamella.changes.model import (
    NO_XATTRS,
    Change,
    Content,
    Entry,
    Kind,
    Link,
    Opaque,
    Posix,
    Put,
    Stream,
    Whiteout,
    Windows,
)
from lamella.formats.tar.reader import TarMember

Record: TypeAlias = list[Any]
Fields: TypeAlias = list[Any]
Batch: TypeAlias = tuple[list[tuple[Fields | None, Fields | None]], list[Record]]
Extents: TypeAlias = Sequence[tuple[int, int]]

_KINDS: Final = tuple(Kind)
_OTHERS: Final[tuple[type[Change], ...]] = (Link, Stream, Whiteout, Opaque)
_FIELDS: Final = Entry.__struct_fields__
_KIND, _POSIX, _SIZE, _WINDOWS = map(_FIELDS.index, ("kind", "posix", "size", "windows"))
"""Positions in the record of a `Put`."""

_MAPPING: Final = {
    Posix: Posix.__struct_fields__.index("xattrs"),
    Windows: Windows.__struct_fields__.index("extended_attributes"),
}
"""Position of the field that is a mapping, for each facet."""

_EMPTY_DATA: Final = False
"""The location of `lamella.layers.windows.tar_source.EMPTY_DATA`, the content of an empty file with a data stream."""


class ChangeEncoder:
    """Collects the changes of a tar stream in batches."""

    def __init__(self) -> None:
        self.end = 0
        """Offset of the end of the current buffer; the caller advances it with each buffer. Data of a file beyond it is
        read, and dropped, when the change is encoded: that sends the buffers that hold it, and a stream that ends early
        is reported with the path of that file."""
        self._facets: list[tuple[Fields | None, Fields | None]] = []
        self._numbers: dict[int, int] = {}
        """Index of the facets by the `id` of a `Posix`, which entries with equal metadata share."""
        self._shared: list[Posix] = []
        """Keeps these objects alive, so that their ids are not reused."""
        self._records: list[Record] = []

    @property
    def batch(self) -> Batch:
        """The changes encoded since the last `clear`; valid until the next."""
        return self._facets, self._records

    def clear(self) -> None:
        """Begin a new batch."""
        self._facets.clear()
        self._numbers.clear()
        self._shared.clear()
        self._records.clear()

    def encode(self, changes: Iterable[Change]) -> None:
        """Add ``changes`` to the batch. Their iterator may send and `clear` it. Raises what the iterator raises."""
        add, numbers, kinds = self._records.append, self._numbers, _KINDS
        for change in changes:
            if type(change) is Put:
                entry = change.entry
                windows = entry.windows
                number = numbers.get(id(entry.posix)) if windows is None else None
                if number is None:
                    number = self._facet(entry.posix, windows)
                record = list(astuple(entry))
                record[_KIND] = kinds.index(entry.kind)
                record[_POSIX] = number
                content = change.content
                record[_WINDOWS] = location = None if content is None else _location(content)
                add(record)
                if location is None or location is _EMPTY_DATA:
                    continue
            else:
                record = [_OTHERS.index(type(change)), *astuple(change)]
                add(record)
                if type(change) is not Stream:
                    continue
                content = change.content
                record[-1] = content.size, _location(content)
            if content.data_offset + content.stored_size > self.end:  # type: ignore[union-attr]  # a `TarMember`
                for _ in content.chunks():  # type: ignore[union-attr]
                    pass

    def _facet(self, posix: Posix | None, windows: Windows | None) -> int:
        number = len(self._facets)
        self._facets.append((_pack(posix), _pack(windows)))
        if windows is None and posix is not None:
            self._numbers[id(posix)] = number
            self._shared.append(posix)
        return number


class ChangeDecoder:
    """Rebuilds changes from batches."""

    def __init__(self, content: Callable[[int, Extents | None, int, int], Content]) -> None:
        """``content`` makes a content; its arguments are size, extents, offset in the stream, and stored size."""
        self._content = content
        self.current: object = None
        """The content of the last change, the only one whose data may be read."""

    def decode(self, batches: Iterable[Batch]) -> Iterator[Change]:
        """The changes of ``batches``, whose lists are modified."""
        make, kinds = self._content, _KINDS
        for packed, records in batches:
            facets = [(_unpack(Posix, posix), _unpack(Windows, windows)) for posix, windows in packed]
            for record in records:
                if type(record[0]) is str:
                    location = record[_WINDOWS]
                    record[_KIND] = kinds[record[_KIND]]
                    record[_POSIX], record[_WINDOWS] = facets[record[_POSIX]]
                    if type(location) is int:
                        size = record[_SIZE]
                        content: Content | None = make(size, None, location, size)
                    else:
                        content = self._restore(record[_SIZE], location)
                    self.current = content
                    yield Put(Entry(*record), content)
                else:
                    yield self._other(record[0], record[1:])
        self.current = None

    def _other(self, number: int, fields: list[Any]) -> Change:
        kind: Any = _OTHERS[number]
        self.current = None
        if kind is Stream:
            *fields, (size, location) = fields
            self.current = self._restore(size, location)
            fields.append(self.current)
        change: Change = kind(*fields)
        return change

    def _restore(self, size: int, location: Any) -> Content | None:
        if location is None:
            return None
        if location is _EMPTY_DATA:
            from lamella.layers.windows.tar_source import EMPTY_DATA

            return EMPTY_DATA
        if type(location) is int:
            return self._content(size, None, location, size)
        offset, stored, extents = location
        return self._content(size, extents, offset, stored)


def _location(content: Content) -> object:
    if type(content) is not TarMember:
        return _EMPTY_DATA  # the only content in the changes of a tar stream that is not a member of the archive
    extents, stored = content.extents, content.stored_size
    if extents is None and stored == content.size:
        return content.data_offset
    return content.data_offset, stored, None if extents is None else list(extents)


def _pack(facet: Posix | Windows | None) -> Fields | None:
    if facet is None:
        return None
    fields = list(astuple(facet))
    at = _MAPPING[type(facet)]
    fields[at] = dict(fields[at])  # marshal takes no subclass of dict, such as `NO_XATTRS`
    return fields


def _unpack(kind: Any, fields: Fields | None) -> Any:
    if fields is None:
        return None
    at = _MAPPING[kind]
    fields[at] = fields[at] or NO_XATTRS
    return kind(*fields)
