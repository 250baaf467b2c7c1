# SPDX-License-Identifier: Apache-2.0
"""Layers of a Windows image seen together: names are one in whatever case, as they are to NTFS."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from lamella.changes.contracts import Source
from lamella.changes.limits import Implied
from lamella.changes.model import Change, Entry, Kind, Link, Opaque, Put, StoredContent, Stream, Whiteout
from lamella.changes.tree import MemoryTree
from lamella.errors import InvalidInput
from lamella.formats.ntfs import names
from lamella.layers.windows.names import AS_WINDOWS
from lamella.layers.windows.tar_source import windows_tar_changes
from lamella.layers.windows.transforms import posix_from_windows
from lamella.paths import ROOT, LayerPath, join

if TYPE_CHECKING:
    from lamella.changes.losses import Losses
    from lamella.streams.seekable import SeekableBlob

_ROOTS = ("UtilityVM/Files", "Files")


class Spelling:
    """How the files of a stack of layers are spelled, as far as its layers have gone by.

    The first layer that has a file says how. Memory is in proportion to the files.
    """

    __slots__ = ("_directories", "_implied", "_known", "_links")

    def __init__(self) -> None:
        self._known: dict[str, LayerPath] = {}
        self._links: set[str] = set()
        self._directories: dict[str, LayerPath] = {}
        """Directories as they were asked for lately."""
        self._implied = Implied()

    def respelled(self, changes: Source) -> Iterator[Change]:
        """``changes`` with each path as the layers below spell it, or this one first did.

        Raises InvalidInput for what lies in a link: Windows takes no such layer.
        """
        for change in changes:
            match change:
                case Put(entry, content):
                    path = self._put(entry)
                    yield change if path == entry.path else Put(replace(entry, path=path), content)
                case Link(path, target):
                    target = self.find(target)
                    yield Link(self._claim(path), target)
                case Stream(path, name, content):
                    yield Stream(self.find(path), name, content)
                case Whiteout(path):
                    found = self.find(path)
                    key = names.folded(path)
                    self._known.pop(key, None)
                    if self._links:
                        self._links.discard(key)
                    self._directories.clear()
                    yield Whiteout(found)
                case Opaque(path):
                    yield Opaque(self.find(path))

    def find(self, path: LayerPath) -> LayerPath:
        """``path`` as it is spelled, as far as it is known."""
        if not path:
            return ROOT
        known = self._known.get(names.folded(path))
        if known is not None:
            return known
        parent, _, name = path.rpartition("/")
        return join(self._directory(parent), name)

    def _put(self, entry: Entry) -> LayerPath:
        path = entry.path
        if not path:
            return path
        found = self._claim(path)
        if entry.kind is Kind.SYMLINK:
            self._links.add(names.folded(path))
            self._directories.clear()
        elif self._links:
            self._links.discard(names.folded(path))
        return found

    def _claim(self, path: LayerPath) -> LayerPath:
        key = names.folded(path)
        known = self._known.get(key)
        if known is None:
            parent, _, name = path.rpartition("/")
            known = self._known[key] = join(self._directory(parent), name)
        return known

    def _directory(self, path: str) -> LayerPath:
        found = self._directories.get(path) if path else ROOT
        if found is not None:
            return found
        at, above, new = path, ROOT, []
        while at:
            known = self._directories.get(at)
            if known is not None:
                above = known
                break
            key = names.folded(at)
            if key in self._links:
                raise InvalidInput(f"something lies in {at!r}, which is a link: Windows does not follow it there")
            new.append((at, key))
            at = at.rpartition("/")[0]
        first = True
        for at, key in reversed(new):
            known = self._known.get(key)
            if known is None:
                if not first:
                    self._implied.add(at)
                first = False
                known = self._known[key] = join(above, at.rpartition("/")[2])
            if len(self._directories) >= 4096:
                self._directories.clear()
            self._directories[at] = above = known
        return above


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
