# SPDX-License-Identifier: Apache-2.0
"""Layers that lie over each other as an overlay mount has them, read: as the tree that they come to, one as changes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from types import TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar

from lamella.changes.contracts import Seen
from lamella.changes.model import Change, Entry, Kind, Link, Opaque, Put, StoredContent, Whiteout
from lamella.errors import InvalidInput, NotFound
from lamella.paths import ROOT, LayerPath, split

T = TypeVar("T")

_MOST: Final = 4096
_AGAIN: Final = 4
"""Times that a directory is read; from then on it is kept, or each name in it could cost as much as all of them."""


class Listings(Generic[T]):
    """Directories by number: the last few thousand, and those that had to be read again and again."""

    __slots__ = ("_known", "_reads", "_staying")

    def __init__(self) -> None:
        self._known: dict[int, T] = {}
        self._staying: dict[int, T] = {}
        self._reads: dict[int, int] = {}

    def get(self, directory: int) -> T | None:
        """What is in a directory; None where it has to be read."""
        found = self._known.get(directory)
        return found if found is not None else self._staying.get(directory)

    def keep(self, directory: int, names: T) -> None:
        """Take in what was read."""
        reads = self._reads[directory] = self._reads.get(directory, 0) + 1
        if reads >= _AGAIN:
            self._staying[directory] = names
            return
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[directory] = names


_KNOWN: Final = 4096


class ShownLayer(Protocol):
    """One layer of a stack: its files, and what it says to an overlay mount.

    A socket, which no layer has, is a whiteout here: a mount shows it, and nothing that is below.
    """

    def glance(self, path: LayerPath) -> Seen | None:
        """What is at ``path``, which is not the root; `UNCLEAR` where that takes `lookup` to tell, None for nothing."""
        ...

    def lookup(self, path: LayerPath) -> Entry | None:
        """The entry, whiteouts included."""
        ...

    def entries(self, directory: LayerPath) -> list[Entry]:
        """The entries, whiteouts included."""
        ...

    def is_opaque(self, path: LayerPath) -> bool:
        """Whether the directory looked at last hides what is below. The kernel takes no such mark on the root."""
        ...

    def whiteouts(self, directory: LayerPath, found: list[Entry]) -> set[LayerPath]:
        """Which of the entries listed last are whiteouts."""
        ...

    def is_whiteout(self, entry: Entry) -> bool:
        """Whether the entry looked at last is a whiteout."""
        ...

    def open(self, path: LayerPath) -> StoredContent:
        """See `Tree.open`."""
        ...

    def identity(self, path: LayerPath) -> Hashable:
        """See `Tree.identity`."""
        ...

    def close(self) -> None:
        """Nothing can be asked any more."""
        ...


UNCLEAR: Final = Seen(Kind.FIFO)
"""See `ShownLayer.glance`."""


class StackTree:
    """The tree that a mount of layers would show, each of which is looked into when it is asked for.

    `close` it, or use it as a context manager.
    """

    def __init__(self) -> None:
        """Whoever inherits appends the layers."""
        self._layers: list[ShownLayer] = []
        """The nearest first."""
        self._merged: dict[str, tuple[ShownLayer, ...]] = {}
        """Directory -> the layers that show in it, the nearest first."""
        self._from: dict[str, dict[LayerPath, ShownLayer]] = {}
        """The directories listed last that several layers show in -> whose each file is."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all layers."""
        for layer in self._layers:
            layer.close()

    def lookup(self, path: LayerPath) -> Entry | None:
        """See `Tree.lookup`."""
        if not path:
            return self._layers[0].lookup(path)
        found = self._find(path)
        return None if found is None else found[1]

    def seen(self, path: LayerPath) -> Seen | None:
        """What `lookup` finds, as far as walking needs it; most of the time with less effort."""
        for layer in self._showing(LayerPath(path.rpartition("/")[0])):
            found = layer.glance(path)
            if found is None:
                continue
            if found is not UNCLEAR:
                return found
            entry = self.lookup(path)
            return None if entry is None else Seen(entry.kind, entry.target)
        return None

    def entries(self, directory: LayerPath) -> list[Entry]:
        """See `Tree.entries`."""
        layers = self._showing(directory)
        if not layers:
            entry = self.lookup(directory)
            if entry is None:
                raise NotFound(f"{directory!r} is not there")
            raise InvalidInput(f"{directory!r} is a {entry.kind.phrase}, not a directory")
        merged: list[Entry] = []
        whose: dict[LayerPath, ShownLayer] = {}
        hidden: set[LayerPath] = set()
        for layer in layers:
            found = layer.entries(directory)
            gone = layer.whiteouts(directory, found)
            for entry in found:
                path = entry.path
                if path not in hidden:
                    hidden.add(path)
                    if path not in gone:
                        merged.append(entry)
                        whose[path] = layer
        if len(layers) > 1:
            merged.sort(key=_order)
            if len(self._from) >= 256:
                self._from.pop(next(iter(self._from)))
            self._from[directory] = whose
        return merged

    def open(self, path: LayerPath) -> StoredContent:
        """See `Tree.open`."""
        layer = self._whose(path)
        if layer is None:
            raise NotFound(f"{path!r} is not there")
        return layer.open(path)

    def identity(self, path: LayerPath) -> Hashable:
        """See `Tree.identity`: of one layer, that is; a name further up or down is another file."""
        layer = self._whose(path)
        found = None if layer is None else layer.identity(path)
        return None if found is None else (id(layer), found)

    def _whose(self, path: LayerPath) -> ShownLayer | None:
        """The layer that shows at ``path``."""
        parent = path.rpartition("/")[0]
        listed = self._from.get(parent)
        if listed is not None:
            return listed.get(path)
        layers = self._showing(LayerPath(parent))
        if len(layers) == 1:
            return layers[0]
        found = self._find(path)
        return None if found is None else found[0]

    def _find(self, path: LayerPath) -> tuple[ShownLayer, Entry] | None:
        for layer in self._showing(split(path)[0]):
            entry = layer.lookup(path)
            if entry is not None:
                return None if layer.is_whiteout(entry) else (layer, entry)
        return None

    def _showing(self, directory: LayerPath) -> tuple[ShownLayer, ...]:
        """The layers that show in ``directory``, nearest first; none where it is not there, or no directory."""
        known = self._merged
        if not directory:
            return tuple(self._layers)
        showing = known.get(directory)
        if showing is not None:
            return showing
        if len(known) > _KNOWN:
            known.clear()
        way: list[LayerPath] = []
        at = directory
        while at and at not in known:
            way.append(at)
            at = split(at)[0]
        showing = known[at] if at else tuple(self._layers)
        for at in reversed(way):
            showing = known[at] = tuple(_directories(showing, at))
        return showing


def stated(layer: ShownLayer) -> Iterator[Change]:
    """What a layer states, in the order of a walk: each directory, its opaque marker, what is in it, whiteouts first.

    Raises what the layer does.
    """
    root = layer.lookup(ROOT)
    assert root is not None  # noqa: S101  # a layer has a root
    identity_of, content_of = layer.identity, layer.open
    firsts: dict[Hashable, LayerPath] = {}
    todo: list[tuple[Entry, bool]] = [(root, False)]
    while todo:
        entry, opaque = todo.pop()
        path = entry.path
        if entry.kind is Kind.DIRECTORY:
            yield Put(entry, None)
            if opaque:
                yield Opaque(path)
            found = layer.entries(path)
            inside = [(one, one.kind is Kind.DIRECTORY and layer.is_opaque(one.path)) for one in found]
            gone = layer.whiteouts(path, found)
            for one in found:
                if one.path in gone:
                    yield Whiteout(one.path)
            todo.extend(one for one in reversed(inside) if one[0].path not in gone)
            continue
        identity = identity_of(path)
        if identity is not None:
            first = firsts.setdefault(identity, path)
            if first != path:
                yield Link(path, first)
                continue
        yield Put(entry, content_of(path) if entry.kind is Kind.FILE else None)


def _directories(layers: tuple[ShownLayer, ...], path: LayerPath) -> Iterator[ShownLayer]:
    for layer in layers:
        entry = layer.lookup(path)
        if entry is None:
            continue
        if entry.kind is not Kind.DIRECTORY:
            return
        yield layer
        if layer.is_opaque(path):
            return


def _order(entry: Entry) -> bytes:
    return entry.path.encode("utf-8", "surrogateescape")
