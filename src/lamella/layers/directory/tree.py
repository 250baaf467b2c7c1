# SPDX-License-Identifier: Apache-2.0
"""A directory on disk as a `Tree`, with a walk and a comparison that open each file once."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from lamella.changes.losses import Loss, Losses
from lamella.changes.model import EMPTY, Buffer, Change, Content, Entry, Kind, Link, Put
from lamella.errors import Conflict, NotFound
from lamella.host import file_io
from lamella.layers.directory.content import Facts, FileOnDisk
from lamella.layers.directory.reader import DirectoryReader
from lamella.paths import ROOT, LayerPath
from lamella.times import SECOND

if TYPE_CHECKING:
    from lamella.layers.directory.compare import DirectoriesComparison

_AT_ONCE: Final = 64 << 10
"""Files up to this size are read when they are met."""
_SETTLED: Final = 600 * SECOND
"""A file whose status changed longer ago is not being written to, even if the clock of a file server differs."""


class DirectoryTree(DirectoryReader):
    """A `Tree` over the directory ``root``; see `DirectoryReader` for its arguments and promises."""

    def changes(self) -> Walk:
        """The changes of `lamella.changes.tree.walk`, faster if the content of each file is read as it comes."""
        return Walk(self)

    def comparison(self, lower: DirectoryTree, *, exact: bool) -> DirectoriesComparison | None:
        """A comparison of both trees for a diff from ``lower``; see `lamella.changes.diff.Comparison`.

        None if the trees would make different entries of the same metadata on disk.
        """
        from lamella.layers.directory.compare import DirectoriesComparison

        if self.settings != lower.settings:
            return None
        return DirectoriesComparison(lower, self, exact=exact, xattrs=self.asks_for_xattrs)


def record_sockets(losses: Losses | None, below: DirectoryTree | None = None) -> Callable[[LayerPath], None] | None:
    """A function for `DirectoryTree.on_socket` that records each socket once, unless ``below`` has it already."""
    if losses is None:
        return None
    seen: set[LayerPath] = set()

    def on_socket(path: LayerPath) -> None:
        if path in seen:
            return
        seen.add(path)
        status = None if below is None else below.status(path)
        if status is None or not stat.S_ISSOCK(status.st_mode):
            losses.record(Loss(path, "socket", "no layer can hold one"))

    return on_socket


class Walk:
    """The changes of `lamella.changes.tree.walk`, the same in every respect; for one iteration.

    `walk` asks for the metadata of a file by its name and opens the file later for its content. This opens small files
    once and takes both from the descriptor.
    """

    def __init__(self, tree: DirectoryReader) -> None:
        self.tree = tree
        self._buffer = bytearray(_AT_ONCE + 1)
        self._view = memoryview(self._buffer)
        self.turn = 0
        """The number of the file whose content the buffer holds."""
        self._settled = time.time_ns() - _SETTLED

    def __iter__(self) -> Iterator[Change]:
        tree = self.tree
        root = tree.lookup(ROOT)
        if root is None:
            raise NotFound("the tree has no root")
        yield Put(root, None)
        firsts: dict[Hashable, LayerPath] = {}
        above: list[tuple[str, Iterator[Entry | str]]] = []
        directory, rest = "", self._contents(ROOT)
        while True:
            for found in rest:
                content: Content | None = None
                if type(found) is str:
                    entry, content, identity = self._file(directory, found)
                else:
                    entry = found  # type: ignore[assignment]  # the other half of the union
                    if entry.kind is Kind.DIRECTORY:
                        yield Put(entry, None)
                        above.append((directory, rest))
                        directory, rest = entry.path, self._contents(entry.path)
                        break
                    identity = tree.identity(entry.path)
                if identity is not None:
                    first = firsts.setdefault(identity, entry.path)
                    if first != entry.path:
                        yield Link(entry.path, first)
                        continue
                yield Put(entry, content)
            else:
                if not above:
                    return
                directory, rest = above.pop()

    def _contents(self, directory: LayerPath) -> Iterator[Entry | str]:
        """The contents of ``directory`` in the order of the names: a regular file as its name, others as entries."""
        with os.scandir(self.tree.descriptor(directory)) as scan:
            files = {found.name: None if found.is_file(follow_symlinks=False) else found for found in scan}
        others = self.tree.list_names(directory, [name for name, found in files.items() if found is not None])
        if not others:
            return iter(_in_order(list(files)))
        start = len(directory) + 1 if directory else 0
        known = {entry.path[start:]: entry for entry in others}
        names = _in_order([name for name, found in files.items() if found is None or name in known])
        return iter([known.get(name, name) for name in names])

    def _file(self, directory: str, name: str) -> tuple[Entry, Content | None, Hashable]:
        """The entry of a regular file, its content, and its identity if it has several names."""
        tree = self.tree
        path = LayerPath(f"{directory}/{name}" if directory else name)
        self.turn += 1
        try:
            file = os.open(name, file_io.READ_FILE, dir_fd=tree.descriptor(directory))
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status[0]):
                    return self._by_name(path)
                size, mtime = status[6], status.st_mtime_ns
                small = size <= _AT_ONCE
                if small and size:
                    if os.readv(file, (self._buffer,)) != size:
                        return self._by_name(path)
                    if status.st_ctime_ns > self._settled:
                        after = os.fstat(file)
                        if after.st_mtime_ns != mtime or after[6] != size:
                            return self._by_name(path)
                entry = tree.open_file_entry(path, status, file)
            finally:
                os.close(file)
        except OSError:
            return self._by_name(path)  # meets the same error, and reports it
        identity = (status[2], status[1]) if status[3] > 1 else None
        if entry.kind is not Kind.FILE:
            return entry, None, identity
        if not size:
            return entry, EMPTY, identity
        holes = size >= 4096 and status.st_blocks << 9 < size
        facts = (size, mtime, status[1], status[2], holes)
        if holes or not small:
            return entry, FileOnDisk(tree.descriptor, path, facts), identity
        return entry, _HeldFile(path, facts, self, self._view[:size]), identity

    def _by_name(self, path: LayerPath) -> tuple[Entry, Content | None, Hashable]:
        """The same by the name of the file, as `lamella.changes.tree.walk` does it."""
        entry, status = self.tree.lookup(path), self.tree.status(path)
        if entry is None or entry.kind is Kind.DIRECTORY or status is None:
            raise Conflict(f"{path!r} changed while its directory was listed")
        content = self.tree.open(path) if entry.kind is Kind.FILE else None
        return entry, content, (status.st_dev, status.st_ino) if status.st_nlink > 1 else None


class _HeldFile(FileOnDisk):
    """A file whose content is in the buffer of a walk until the walk goes on; after that it is opened again."""

    __slots__ = ("_data", "_turn", "_walk")

    def __init__(self, path: str, facts: Facts, walk: Walk, data: memoryview) -> None:
        super().__init__(walk.tree.descriptor, path, facts)
        self._walk = walk
        self._turn = walk.turn
        self._data = data

    def chunks(self) -> Iterable[Buffer]:
        return (self._data,) if self._turn == self._walk.turn else super().chunks()


def _in_order(names: list[str]) -> list[str]:
    if "".join(names).isascii():
        names.sort()
    else:
        names.sort(key=lambda name: name.encode("utf-8", "surrogateescape"))
    return names
