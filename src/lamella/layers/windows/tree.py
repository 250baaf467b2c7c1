# SPDX-License-Identifier: Apache-2.0
"""Layers of a Windows image seen together: names are one in whatever case, as they are to NTFS."""

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
    """The tar of a Windows layer as a merged view needs it: with ``spelling``, and a POSIX facet on each entry too.

    The arguments are those of `windows_tar_changes` and `posix_from_windows`, and so are the errors.
    """
    changes = windows_tar_changes(next_buffer, stored=stored, end=end, rules=AS_WINDOWS)
    return posix_from_windows(spelling.respelled(changes), losses=losses)


class WindowsTree:
    """The merged view ``tree`` of a Windows image: paths are found in whatever case.

    Entries have the paths that they have. A link to a path from the root of a drive leads into `Files`, or into the
    utility VM's own.
    """

    any_case = True
    """To `lamella.operations.trees.find`: so are names that a pattern has."""

    def __init__(self, tree: MemoryTree) -> None:
        self._tree = tree
        self._inside: dict[LayerPath, dict[str, LayerPath]] = {}

    def lookup(self, path: LayerPath) -> Entry | None:
        """See `Tree.lookup`."""
        found = self._tree.lookup(path)
        return found if found is not None else self._tree.lookup(self._spelled(path))

    def entries(self, directory: LayerPath) -> list[Entry]:
        """See `Tree.entries`."""
        return self._tree.entries(self._spelled(directory))

    def open(self, path: LayerPath) -> StoredContent:
        """See `Tree.open`."""
        return self._tree.open(self._spelled(path))

    def identity(self, path: LayerPath) -> Hashable:
        """See `Tree.identity`."""
        return self._tree.identity(self._spelled(path))

    def streams(self, path: LayerPath) -> Mapping[str, StoredContent]:
        """See `MemoryTree.streams`."""
        return self._tree.streams(self._spelled(path))

    def link_root(self, path: LayerPath) -> LayerPath:
        """Where an absolute link at ``path`` starts."""
        key = names.folded(path)
        for root in _ROOTS:
            if key.startswith(names.folded(root) + "/"):
                return LayerPath(root)
        return ROOT

    def _spelled(self, path: LayerPath) -> LayerPath:
        """``path`` as the tree has it, as far as it does."""
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
