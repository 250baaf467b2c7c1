# SPDX-License-Identifier: Apache-2.0
"""Changes of a tar as values that `marshal` takes, for another process; the data of files does not travel with them.

A batch is ``(facets, records)``. A facet is a pair of the fields of a `Posix` and of a `Windows`, None for the one that
an entry lacks; records name it by its number in the batch. The record of a `Put` has the fields of its `Entry`, with
numbers for kind and facets, and the place of its content in the last one. The record of any other change has the number
of its class and its fields. Fields are taken and restored by position: a new field needs no edit here.
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
"""Positions in the record of a `Put`; that of the Windows facet has the place of the content instead."""

_MAPPING: Final = {
    Posix: Posix.__struct_fields__.index("xattrs"),
    Windows: Windows.__struct_fields__.index("extended_attributes"),
}
"""Positions of the fields that are mappings."""

_EMPTY_DATA: Final = False
"""The place of `lamella.layers.windows.tar_source.EMPTY_DATA`. Other contents have an offset in the stream, or offset,
stored size and extents."""


class ChangeEncoder:
    """Collects the changes of a tar stream in batches."""

    def __init__(self) -> None:
        self.end = 0
        """Offset in the stream up to which its data has arrived. Data beyond it is read when its change is encoded, so
        that an early end of the stream is an error of that file."""
        self._facets: list[tuple[Fields | None, Fields | None]] = []
        self._numbers: dict[int, int] = {}
        """Numbers of facets that are shared, by the identity of the `Posix`."""
        self._shared: list[Posix] = []
        """Keeps those objects alive, so that no other gets their identity."""
        self._records: list[Record] = []

    @property
    def batch(self) -> Batch:
        """The changes encoded since the last `clear`; it lives until the next one."""
        return self._facets, self._records

    def clear(self) -> None:
        """Begin a new batch."""
        self._facets.clear()
        self._numbers.clear()
        self._shared.clear()
        self._records.clear()

    def encode(self, changes: Iterable[Change]) -> None:
        """Add ``changes`` to the batch, which iterating may clear. Raises what iterating them raises."""
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
                record[_WINDOWS] = place = None if content is None else _place(content)
                add(record)
                if place is None or place is _EMPTY_DATA:
                    continue
            else:
                record = [_OTHERS.index(type(change)), *astuple(change)]
                add(record)
                if type(change) is not Stream:
                    continue
                content = change.content
                record[-1] = content.size, _place(content)
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
    """Restores changes; ``content`` makes their content of size, extents, offset in the stream and stored size."""

    def __init__(self, content: Callable[[int, Extents | None, int, int], Content]) -> None:
        self._content = content
        self.current: object = None
        """The content of the last change, whose data may be read."""

    def decode(self, batches: Iterable[Batch]) -> Iterator[Change]:
        """The changes of ``batches``, each of which is used up."""
        make, kinds = self._content, _KINDS
        for packed, records in batches:
            facets = [(_unpack(Posix, posix), _unpack(Windows, windows)) for posix, windows in packed]
            for record in records:
                if type(record[0]) is str:
                    place = record[_WINDOWS]
                    record[_KIND] = kinds[record[_KIND]]
                    record[_POSIX], record[_WINDOWS] = facets[record[_POSIX]]
                    if type(place) is int:
                        size = record[_SIZE]
                        content: Content | None = make(size, None, place, size)
                    else:
                        content = self._restore(record[_SIZE], place)
                    self.current = content
                    yield Put(Entry(*record), content)
                else:
                    yield self._other(record[0], record[1:])
        self.current = None

    def _other(self, number: int, fields: list[Any]) -> Change:
        kind: Any = _OTHERS[number]
        self.current = None
        if kind is Stream:
            *fields, (size, place) = fields
            self.current = self._restore(size, place)
            fields.append(self.current)
        change: Change = kind(*fields)
        return change

    def _restore(self, size: int, place: Any) -> Content | None:
        if place is None:
            return None
        if place is _EMPTY_DATA:
            from lamella.layers.windows.tar_source import EMPTY_DATA

            return EMPTY_DATA
        if type(place) is int:
            return self._content(size, None, place, size)
        offset, stored, extents = place
        return self._content(size, extents, offset, stored)


def _place(content: Content) -> object:
    if type(content) is not TarMember:
        return _EMPTY_DATA  # the only content in the changes of a tar stream that is not of its archive
    extents, stored = content.extents, content.stored_size
    if extents is None and stored == content.size:
        return content.data_offset
    return content.data_offset, stored, None if extents is None else list(extents)


def _pack(facet: Posix | Windows | None) -> Fields | None:
    if facet is None:
        return None
    fields = list(astuple(facet))
    at = _MAPPING[type(facet)]
    fields[at] = dict(fields[at])  # marshal takes no subclass, which the shared empty mapping is
    return fields


def _unpack(kind: Any, fields: Fields | None) -> Any:
    if fields is None:
        return None
    at = _MAPPING[kind]
    fields[at] = fields[at] or NO_XATTRS
    return kind(*fields)
