# SPDX-License-Identifier: Apache-2.0
"""Merged view of a stack of overlay layers, and the changes of one layer."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from types import TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar

from lamella.changes.contracts import Seen
from lamella.changes.model import Change, Entry, Kind, Link, Opaque, Put, StoredContent, Whiteout
from lamella.errors import InvalidInput, NotFound
from lamella.paths import ROOT, LayerPath, split

T = TypeVar("T")

_CACHED: Final = 4096
_KEEP_AFTER: Final = 4
"""After this many reads a directory stays cached: else each lookup in a large directory could read all of it."""


class Listings(Generic[T]):
    """Cache of directory listings, by inode number; listings that were read several times are never dropped."""

    __slots__ = ("_known", "_reads", "_staying")

    def __init__(self) -> None:
        self._known: dict[int, T] = {}
        self._staying: dict[int, T] = {}
        self._reads: dict[int, int] = {}

    def get(self, directory: int) -> T | None:
        """The cached listing; None if the directory has to be read."""
        found = self._known.get(directory)
        return found if found is not None else self._staying.get(directory)

    def keep(self, directory: int, names: T) -> None:
        """Add a listing that was read."""
        reads = self._reads[directory] = self._reads.get(directory, 0) + 1
        if reads >= _KEEP_AFTER:
            self._staying[directory] = names
            return
        if len(self._known) >= _CACHED:
            self._known.clear()
        self._known[directory] = names


_PATHS_CACHED: Final = 4096


class ShownLayer(Protocol):
    """One layer of a stack, whiteouts and opaque markers included.

    A socket, which no layer can hold, counts as a whiteout: in a mount it hides lower entries.
    """

    def glance(self, path: LayerPath) -> Seen | None:
        """The kind of the entry at ``path``, never the root; `UNCLEAR` if only `lookup` can tell; None if missing."""
        ...

    def lookup(self, path: LayerPath) -> Entry | None:
        """The entry, whiteouts included."""
        ...

    def entries(self, directory: LayerPath) -> list[Entry]:
        """The entries, whiteouts included."""
        ...

    def is_opaque(self, path: LayerPath) -> bool:
        """Whether the directory found by the last call is opaque. The root never is, as in the kernel."""
        ...

    def whiteouts(self, directory: LayerPath, found: list[Entry]) -> set[LayerPath]:
        """The paths of the whiteouts in ``found``, the result of the last call of `entries`."""
        ...

    def is_whiteout(self, entry: Entry) -> bool:
        """Whether ``entry``, the result of the last call of `lookup`, is a whiteout."""
        ...

    def open(self, path: LayerPath) -> StoredContent: ...

    def identity(self, path: LayerPath) -> Hashable: ...

    def close(self) -> None:
        """Close the layer."""
        ...


UNCLEAR: Final = Seen(Kind.FIFO)
"""The result of `ShownLayer.glance` for entries that only `lookup` can classify."""


class StackTree:
    """The merged tree of a stack of layers, read on demand. `close` it, or use it as a context manager."""

    def __init__(self) -> None:
        """A subclass appends the layers."""
        self._layers: list[ShownLayer] = []
        """Nearest first."""
        self._merged: dict[str, tuple[ShownLayer, ...]] = {}
        """Cache: directory -> the layers that contribute to it, nearest first."""
        self._from: dict[str, dict[LayerPath, ShownLayer]] = {}
        """Cache: recently listed directory of several layers -> path -> its layer."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the layers."""
        for layer in self._layers:
            layer.close()

    def lookup(self, path: LayerPath) -> Entry | None:
        if not path:
            return self._layers[0].lookup(path)
        found = self._find(path)
        return None if found is None else found[1]

    def seen(self, path: LayerPath) -> Seen | None:
        """The kind and link target of the entry at ``path``; usually cheaper than `lookup`."""
        for layer in self._layers_of(LayerPath(path.rpartition("/")[0])):
            found = layer.glance(path)
            if found is None:
                continue
            if found is not UNCLEAR:
                return found
            entry = self.lookup(path)
            return None if entry is None else Seen(entry.kind, entry.target)
        return None

    def entries(self, directory: LayerPath) -> list[Entry]:
        layers = self._layers_of(directory)
        if not layers:
            entry = self.lookup(directory)
            if entry is None:
                raise NotFound(f"{directory!r} does not exist")
            raise InvalidInput(f"{directory!r} is a {entry.kind.phrase}, not a directory")
        merged: list[Entry] = []
        sources: dict[LayerPath, ShownLayer] = {}
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
                        sources[path] = layer
        if len(layers) > 1:
            merged.sort(key=_order)
            if len(self._from) >= 256:
                self._from.pop(next(iter(self._from)))
            self._from[directory] = sources
        return merged

    def open(self, path: LayerPath) -> StoredContent:
        layer = self._layer_of(path)
        if layer is None:
            raise NotFound(f"{path!r} does not exist")
        return layer.open(path)

    def identity(self, path: LayerPath) -> Hashable:
        """Within one layer: names in different layers are different files."""
        layer = self._layer_of(path)
        found = None if layer is None else layer.identity(path)
        return None if found is None else (id(layer), found)

    def _layer_of(self, path: LayerPath) -> ShownLayer | None:
        """The layer that the entry at ``path`` comes from."""
        parent = path.rpartition("/")[0]
        listed = self._from.get(parent)
        if listed is not None:
            return listed.get(path)
        layers = self._layers_of(LayerPath(parent))
        if len(layers) == 1:
            return layers[0]
        found = self._find(path)
        return None if found is None else found[0]

    def _find(self, path: LayerPath) -> tuple[ShownLayer, Entry] | None:
        for layer in self._layers_of(split(path)[0]):
            entry = layer.lookup(path)
            if entry is not None:
                return None if layer.is_whiteout(entry) else (layer, entry)
        return None

    def _layers_of(self, directory: LayerPath) -> tuple[ShownLayer, ...]:
        """The layers that contribute to ``directory``, nearest first; empty if it is missing or not a directory."""
        known = self._merged
        if not directory:
            return tuple(self._layers)
        layers = known.get(directory)
        if layers is not None:
            return layers
        if len(known) > _PATHS_CACHED:
            known.clear()
        way: list[LayerPath] = []
        at = directory
        while at and at not in known:
            way.append(at)
            at = split(at)[0]
        layers = known[at] if at else tuple(self._layers)
        for at in reversed(way):
            layers = known[at] = tuple(_directories(layers, at))
        return layers


def layer_changes(layer: ShownLayer) -> Iterator[Change]:
    """The changes of one layer, in the order of a walk: each directory, its opaque marker, its entries.

    The whiteouts of a directory come before its other entries. Raises what the layer raises.
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
