# SPDX-License-Identifier: Apache-2.0
"""The view of a single layer without its parents, in which hard links into lower layers are shown, not refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from lamella.changes.contracts import Source
from lamella.changes.model import Buffer, Change, Content, Entry, Kind, Link, Put
from lamella.changes.tree import MemoryTree, resolve
from lamella.errors import NotFound
from lamella.paths import LayerPath, join, split


class ContentBelow(Content):
    """Content of a hard link to a file of a lower layer: reading it raises NotFound."""

    __slots__ = ("_path", "_target")

    def __init__(self, path: LayerPath, target: LayerPath) -> None:
        self._path = path
        self._target = target

    @property
    def size(self) -> int:
        return 0

    @property
    def extents(self) -> None:
        return

    @property
    def stored(self) -> Literal[True]:
        return True

    def chunks(self) -> Iterator[Buffer]:
        raise NotFound(
            f"'/{self._path}' is a hard link to '/{self._target}', which is not in this layer but in a lower one",
            hint="read the file from the image that the layer belongs to",
        )


def show_links(changes: Source, tree: MemoryTree) -> Iterator[Change]:
    """Replace each hard link to a file that ``tree`` lacks by an entry without metadata, with the file as ``target``.

    ``tree`` must have taken each change before the next is requested. The content of such an entry raises NotFound.
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
