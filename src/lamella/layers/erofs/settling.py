# SPDX-License-Identifier: Apache-2.0
"""What is put right in an image that was made before it was known what lies below: the root, whiteouts of nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from lamella.changes.apply import apply
from lamella.changes.model import Change, Entry, Put, Whiteout, implied_directory
from lamella.errors import from_os
from lamella.formats.erofs.writer import restated
from lamella.host import flags
from lamella.layers.erofs.files import ErofsLayer
from lamella.layers.erofs.stack import ErofsStack
from lamella.layers.erofs.tree import ErofsChanges, ErofsImage
from lamella.layers.erofs.upper import ErofsUpperSink
from lamella.layers.stack import LayerStack
from lamella.paths import ROOT, LayerPath

_OTHER: Final = ".rooted"


def has_root_unstated(layer: ErofsLayer) -> bool:
    """Whether the root of an image is the one that is implied. Raises as opening an image does."""
    with ErofsImage(layer) as image:
        root = image.lookup(ROOT)
    return root is not None and root.posix == implied_directory(ROOT).posix


def with_root(layer: ErofsLayer, below: LayerStack[ErofsLayer]) -> None:
    """Give the root of an image of `ErofsUpperSink`, which is nobody else's, the metadata of the root of ``below``.

    Raises FormatError, Exhausted, Denied.
    """
    with ErofsStack(below) as tree:
        root = tree.lookup(ROOT)
    assert root is not None  # noqa: S101  # a tree has a root
    assert root.posix is not None  # noqa: S101  # images have nothing else
    if root.posix.xattrs:  # which need room
        _rewrite(layer, lambda changes: _rooted(changes, root))
        return
    with ErofsImage(layer) as image:
        at, raw = image.reader.raw(image.reader.superblock.root)
    posix = root.posix
    try:
        file = os.open(layer.path, os.O_WRONLY | flags.O_NOFOLLOW | flags.O_CLOEXEC | flags.O_BINARY)
        try:
            os.pwrite(file, restated(raw, posix.mode, posix.uid, posix.gid, posix.mtime), at)
        finally:
            os.close(file)
    except OSError as error:
        raise from_os(error, f"write the root of {os.fspath(layer.path)!r}") from error


def without_whiteouts(layer: ErofsLayer, paths: Iterable[LayerPath]) -> None:
    """Remove whiteouts that turn out to be of nothing; what is at ``paths`` and is no whiteout stays.

    The image is written anew, from itself. Raises FormatError, Exhausted, Denied.
    """
    gone = frozenset(paths)
    _rewrite(layer, lambda changes: (one for one in changes if not isinstance(one, Whiteout) or one.path not in gone))


def _rewrite(layer: ErofsLayer, change: Callable[[Iterable[Change]], Iterable[Change]]) -> None:
    other = ErofsLayer(layer.path.with_name(layer.path.name + _OTHER))
    other.path.unlink(missing_ok=True)
    with ErofsChanges(layer) as changes:
        apply(change(changes), ErofsUpperSink(other, parents=None))
    os.replace(other.path, layer.path)


def _rooted(changes: Iterable[Change], root: Entry) -> Iterator[Change]:
    for change in changes:
        yield Put(root, None) if isinstance(change, Put) and not change.entry.path else change
