# SPDX-License-Identifier: Apache-2.0
"""One layer seen without those below: hard links to what it does not have are shown, and not refused."""

from __future__ import annotations

from collections.abc import Iterator

from lamella.changes.contracts import Source
from lamella.changes.model import Buffer, Change, Content, Entry, Kind, Link, Put
from lamella.changes.tree import MemoryTree, resolve
from lamella.errors import NotFound
from lamella.paths import LayerPath, join, split


class ContentBelow(Content):
    """The content of a hard link to a file in a layer below, which is not there."""

    __slots__ = ("_path", "_target")

    def __init__(self, path: LayerPath, target: LayerPath) -> None:
        self._path = path
        self._target = target

    @property
    def size(self) -> int:
        """0, as that of the link in its layer."""
        return 0

    @property
    def extents(self) -> None:
        """None are known."""
        return

    @property
    def stored(self) -> bool:
        """True: asking again gives the same."""
        return True

    def chunks(self) -> Iterator[Buffer]:
        """Raise NotFound."""
        raise NotFound(
            f"'/{self._path}' is a hard link to '/{self._target}', which a layer below has, and not this one",
            hint="look into the image that the layer belongs to",
        )


def links_shown(changes: Source, tree: MemoryTree) -> Iterator[Change]:
    """``changes`` as a sink of ``tree`` can take them alone; the tree must have each before the next is asked for.

    A hard link to what is not in it becomes an entry without metadata whose ``target`` is the file, and whose content
    raises NotFound when it is read.
    """
    for change in changes:
        if type(change) is Link and not _has(tree, change.target):
            path, target = change.path, change.target
            yield Put(Entry(path, Kind.FILE, None, 0, target), ContentBelow(path, target))
        else:
            yield change


def _has(tree: MemoryTree, path: LayerPath) -> bool:
    if tree.lookup(path) is not None:
        return True
    parent, name = split(path)
    try:
        return tree.lookup(join(resolve(tree, parent), name)) is not None
    except NotFound:
        return False
