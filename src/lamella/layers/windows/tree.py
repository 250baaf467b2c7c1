# SPDX-License-Identifier: Apache-2.0
"""Layers of a Windows image merged: names ignore case, as on NTFS."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TYPE_CHECKING

from lamella.changes.model import Change, Entry, Kind, StoredContent
from lamella.changes.tree import MemoryTree
from lamella.formats.ntfs import names
from lamella.layers.windows.names import AS_WINDOWS, Spelling
from lamella.layers.windows.tar_source import windows_tar_changes
from lamella.layers.windows.transforms import posix_from_windows
from lamella.paths import ROOT, LayerPath, join

if TYPE_CHECKING:
    from lamella.changes.losses import Losses
    from lamella.streams.seekable import SeekableBlob

_ROOTS = ("UtilityVM/Files", "Files")


def view_changes(
    next_buffer: Callable[[], memoryview],
    spelling: Spelling,
    *,
    stored: SeekableBlob | None = None,
    end: Callable[[], object] | None = None,
    losses: Losses | None = None,
) -> Iterator[Change]:
    """The changes in the tar of a Windows layer for a merged view: respelled by ``spelling``, with both facets.

    The parameters and errors are those of `windows_tar_changes` and `posix_from_windows`.
    """
    changes = windows_tar_changes(next_buffer, stored=stored, end=end, rules=AS_WINDOWS)
    return posix_from_windows(spelling.respell(changes), losses=losses)


class WindowsTree:
    """The merged tree of a Windows image, in which paths ignore case.

    Entries keep their own spelling. An absolute link leads into `Files`, or into that of the utility VM.
    """

    any_case = True
    """`lamella.operations.trees.find` matches patterns in any case."""

    def __init__(self, tree: MemoryTree) -> None:
        self._tree = tree
        self._inside: dict[LayerPath, dict[str, LayerPath]] = {}

    def lookup(self, path: LayerPath) -> Entry | None:
        found = self._tree.lookup(path)
        return found if found is not None else self._tree.lookup(self._spelled(path))

    def entries(self, directory: LayerPath) -> list[Entry]:
        return self._tree.entries(self._spelled(directory))

    def open(self, path: LayerPath) -> StoredContent:
        return self._tree.open(self._spelled(path))

    def identity(self, path: LayerPath) -> Hashable:
        return self._tree.identity(self._spelled(path))

    def streams(self, path: LayerPath) -> Mapping[str, StoredContent]:
        return self._tree.streams(self._spelled(path))

    def link_root(self, path: LayerPath) -> LayerPath:
        """The directory in which an absolute link at ``path`` starts."""
        key = names.folded(path)
        for root in _ROOTS:
            if key.startswith(names.folded(root) + "/"):
                return LayerPath(root)
        return ROOT

    def _spelled(self, path: LayerPath) -> LayerPath:
        """``path`` with each existing component in the spelling of the tree."""
        if not path or self._tree.lookup(path) is not None:
            return path
        at = ROOT
        for name in path.split("/"):
            exact = join(at, name)
            if self._tree.lookup(exact) is not None:
                at = exact
                continue
            at = self._children(at).get(names.folded(name), exact)
        return at

    def _children(self, directory: LayerPath) -> dict[str, LayerPath]:
        found = self._inside.get(directory)
        if found is None:
            entry = self._tree.lookup(directory)
            there = self._tree.entries(directory) if entry is not None and entry.kind is Kind.DIRECTORY else ()
            found = {names.folded(one.path.rpartition("/")[2]): one.path for one in there}
            self._inside[directory] = found
        return found
