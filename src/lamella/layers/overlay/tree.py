# SPDX-License-Identifier: Apache-2.0
"""Reads overlay layers: the changes of one upper directory, and the merged tree of a stack."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Literal, Self

from lamella.changes.contracts import Seen
from lamella.changes.model import Change, Entry, Kind
from lamella.errors import InvalidInput, Unsupported
from lamella.layers.directory.tree import DirectoryTree
from lamella.layers.overlay.layer import OverlayLayer
from lamella.layers.overlay.rules import is_whiteout
from lamella.layers.overlay_view import UNCLEAR, StackTree, layer_changes
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath, split

_OPEN_DIRECTORIES: Final = 256
"""Of all layers together: a stack of 127 layers stays within the usual limit of 1,024 open files."""

_FILE: Final = Seen(Kind.FILE)
_DIRECTORY: Final = Seen(Kind.DIRECTORY)


class _Upper:
    """One layer (`ShownLayer`): its files, and the overlay's extended attributes."""

    __slots__ = ("identity", "marks", "open", "prefix", "tree")

    def __init__(
        self,
        layer: OverlayLayer,
        owners: Literal["actual", "recorded"] | None,
        xattrs: Literal["all", "capability", "none"],
        open_directories: int,
    ) -> None:
        self.prefix = layer.xattr_prefix()
        self.tree = DirectoryTree(layer.path, owners=owners, xattrs=xattrs, open_directories=open_directories)
        self.marks: dict[LayerPath, dict[str, bytes]] = {}
        """The overlay's attributes by path, found by the last call; see `DirectoryTree.marks`."""
        self.tree.marks = (self.prefix, self.marks)
        self.open, self.identity = self.tree.open, self.tree.identity

    def glance(self, path: LayerPath) -> Seen | None:
        status = self.tree.status(path)
        if status is None:
            return None
        form = stat.S_IFMT(status.st_mode)
        if form == stat.S_IFREG and status.st_size:
            return _FILE
        return _DIRECTORY if form == stat.S_IFDIR else UNCLEAR

    def close(self) -> None:
        self.tree.close()

    def lookup(self, path: LayerPath) -> Entry | None:
        self.marks.clear()
        entry = self.tree.lookup(path)
        if entry is not None:
            self._check(path)
        return entry

    def entries(self, directory: LayerPath) -> list[Entry]:
        self.marks.clear()
        found = self.tree.entries(directory)
        if self.marks:
            for path in self.marks:
                self._check(path)
        return found

    def is_opaque(self, path: LayerPath) -> bool:
        return bool(path) and self.marks.get(path, {}).get("opaque") == b"y"

    def whiteouts(self, directory: LayerPath, found: list[Entry]) -> set[LayerPath]:
        gone = {entry.path for entry in found if is_whiteout(entry)}
        marked = [path for path, marks in self.marks.items() if "whiteout" in marks]
        if marked and self.has_whiteout_files(directory):
            files = {entry.path for entry in found if entry.kind is Kind.FILE and not entry.size}
            gone.update(files.intersection(marked))
        return gone

    def is_whiteout(self, entry: Entry) -> bool:
        if is_whiteout(entry):
            return True
        if entry.kind is not Kind.FILE or entry.size or "whiteout" not in self.marks.get(entry.path, {}):
            return False
        return self.has_whiteout_files(split(entry.path)[0])

    def has_whiteout_files(self, directory: LayerPath) -> bool:
        """Whether the directory is marked as containing whiteouts that are files with an attribute."""
        self.marks.clear()
        self.tree.lookup(directory)
        return self.marks.get(directory, {}).get("opaque") == b"x"

    def _check(self, path: LayerPath) -> None:
        for mark in ("metacopy", "redirect"):
            if mark in self.marks.get(path, ()):
                raise Unsupported(
                    f"{path or '/'!r} has the attribute {self.prefix}{mark}: it depends on other layers",
                    hint="mount overlays with metacopy=off,redirect_dir=off, or read the mounted tree",
                )


class OverlayChanges:
    """The changes in an upper directory, in the order of a walk: each directory, its opaque marker, its entries.

    Directories that the kernel copied up only as parents are stated too: they look like others. A socket, which no
    layer can hold, becomes a whiteout, because it hides lower entries. Content can be read until `close`, or until the
    end of the block if this is used as a context manager.

    Iteration raises Unsupported for attributes ``metacopy`` and ``redirect``, and what `DirectoryTree` raises.
    """

    def __init__(
        self,
        layer: OverlayLayer,
        *,
        owners: Literal["actual", "recorded"] | None = None,
        xattrs: Literal["all", "capability", "none"] = "all",
        on_socket: Callable[[LayerPath], None] | None = None,
    ) -> None:
        """``on_socket`` is called for each socket, once or more often."""
        self._upper = _Upper(layer, owners, xattrs, 128)
        self._upper.tree.on_socket = on_socket

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory."""
        self._upper.tree.close()

    def lookup(self, path: LayerPath) -> Entry | None:
        """The entry of the upper directory at ``path``; a whiteout is a device."""
        return self._upper.tree.lookup(path)

    def __iter__(self) -> Iterator[Change]:
        return layer_changes(self._upper)


class OverlayTree(StackTree):
    """The merged tree of a stack, as a mount shows it. `close` it, or use it as a context manager.

    Raises what `DirectoryTree` raises, and Unsupported for attributes ``metacopy`` and ``redirect``.
    """

    def __init__(
        self,
        stack: LayerStack[OverlayLayer],
        *,
        owners: Literal["actual", "recorded"] | None = None,
        xattrs: Literal["all", "capability", "none"] = "all",
    ) -> None:
        super().__init__()
        each = max(3, _OPEN_DIRECTORIES // max(2, len(stack)))
        try:
            for layer in stack.nearest_first():
                self._layers.append(_Upper(layer, owners, xattrs, each))
        except BaseException:
            self.close()
            raise
        if not self._layers:
            raise InvalidInput("a tree needs at least one layer")
