# SPDX-License-Identifier: Apache-2.0
"""What whiteouts and opaque markers hide: entries of lower layers, never those of the layer itself.

OCI image-spec layer.md, "Whiteouts": a whiteout applies to lower layers only, wherever in the layer it stands. The
driver therefore records what a layer has put, and a place that stores no markers (a plain directory) removes the
rest by that record.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Protocol

from lamella.changes.limits import DEFAULT_LIMITS, Implied, Limits
from lamella.changes.model import Content, Entry, implied_directory
from lamella.paths import LayerPath, join, split

_NOTHING: AbstractSet[str] = frozenset()


class PutRecord:
    """What a layer has put so far, recorded while it is applied.

    The names of a directory are kept in one bytearray, at a tenth of the memory of a set of strings, and become a set
    only when a marker needs that directory.
    """

    __slots__ = ("_implied", "_limits", "_rows", "_stated", "clean")

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._implied = Implied()
        self._rows: dict[LayerPath, bytearray | set[str]] = {}
        self._stated: set[LayerPath] = set()
        self.clean: set[LayerPath] = set()
        """Directories that `prune` has cleared of lower entries."""

    def add(self, directory: LayerPath, name: str) -> None:
        """Record that the layer has put ``name`` in ``directory``."""
        row = self._rows.get(directory)
        if row is None:
            row = self.enter(directory)
        if type(row) is bytearray:
            row += name.encode("utf-8", "surrogateescape")
            row += b"/"
        else:
            row.add(name)  # type: ignore[union-attr]

    def state(self, path: LayerPath) -> None:
        """Record that the layer states the directory ``path`` itself."""
        self._stated.add(path)

    def enter(self, directory: LayerPath) -> bytearray | set[str]:
        """Record that the layer has entries in ``directory``, and its parents. Raises Exhausted."""
        rows = self._rows
        row = rows.get(directory)
        if row is not None:  # and so are its parents
            return row
        row = rows[directory] = bytearray()
        while directory:
            parent, name = split(directory)
            above = rows.get(parent)
            known = above is not None
            if above is None:
                self._implied.add(parent, self._limits)
                above = rows[parent] = bytearray()
            if type(above) is bytearray:
                above += name.encode("utf-8", "surrogateescape") + b"/"
            else:
                above.add(name)  # type: ignore[union-attr]
            if known:
                break
            directory = parent
        return row

    def names(self, directory: LayerPath) -> AbstractSet[str]:
        """Names in ``directory`` that the layer has put, and parent directories of what it has put."""
        row = self._rows.get(directory)
        if row is None:
            return _NOTHING
        if isinstance(row, bytearray):
            row = self._rows[directory] = set(row.decode("utf-8", "surrogateescape").split("/")[:-1])
        return row

    def stated(self, path: LayerPath) -> bool:
        """Whether the layer states the directory ``path`` itself, and does not just imply it."""
        return path in self._stated


class FlatPlace(Protocol):
    """A place that holds files and no markers, where hiding means removing."""

    def names(self, directory: LayerPath) -> Iterable[tuple[str, bool]]:
        """The current names in ``directory``, each with whether it is a directory."""
        ...

    def remove(self, path: LayerPath) -> None:
        """Remove ``path`` with everything beneath it."""
        ...

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        """As `Sink.put`."""
        ...


def prune(place: FlatPlace, directory: LayerPath, record: PutRecord) -> bool:
    """Remove from ``directory`` everything that the layer has not put; returns false if there was nothing to remove.

    A directory that remains only because the layer has entries in it gets the metadata of an implied one. Each
    directory is scanned once, however many markers the layer has: removed entries do not come back.
    """
    removed = False
    clean = record.clean
    todo = [directory]
    while todo:
        parent = todo.pop()
        if parent in clean:
            continue
        clean.add(parent)
        keep = record.names(parent)
        for name, is_directory in list(place.names(parent)):
            path = join(parent, name)
            if name not in keep:
                place.remove(path)
                removed = True
            elif is_directory:
                if not record.stated(path):
                    place.put(implied_directory(path), None)
                todo.append(path)
    return removed
