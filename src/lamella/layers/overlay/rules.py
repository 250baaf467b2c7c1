# SPDX-License-Identifier: Apache-2.0
"""Rules for writing a layer as the upper layer of an overlay, whether in a directory or in an EROFS image.

Linux, Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories".

*Upper* is the layer being written, *below* the merged view of its parents. A `PutRecord` has what the layer itself has
put; the upper layer also has implied directories and entries that were copied up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Final, Protocol

from lamella.changes.contracts import Seen, Tree
from lamella.changes.limits import Implied
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Content, Entry, Kind, implied_directory
from lamella.changes.whiteouts import PutRecord, prune
from lamella.errors import InvalidInput, NotFound, from_os
from lamella.paths import ROOT, LayerPath, beneath, join, split

WHITEOUT: Final = Seen(Kind.CHARACTER)
"""The result of `OverlayRules._look` for a whiteout."""

_HIDDEN_CACHED: Final = 16384


def is_whiteout(entry: Entry) -> bool:
    """Whether an overlay takes the entry for a whiteout: a character device 0/0."""
    return entry.kind is Kind.CHARACTER and entry.posix is not None and entry.posix.device == (0, 0)


class Below(Tree, Protocol):
    """The merged tree of the layers below."""

    def seen(self, path: LayerPath) -> Seen | None:
        """The kind and link target of the entry at ``path``."""
        ...

    def close(self) -> None:
        """Close the layers."""
        ...


class OverlayRules(ABC):
    """Writes one layer to an empty upper layer: all of `Sink` except `view`, `stream`, `commit` and `abort`.

    Whiteouts and opaque markers are written only over existing lower entries; elsewhere the kernel would show them.
    Implied parent directories keep the metadata that they have below, links are resolved through the lower layers, and
    a lower file that is the target of a hard link is copied up. If the lower layers are unknown, an implied directory
    has mode 0755, lower symbolic links are not seen, and every marker is kept.

    A subclass implements the upper layer by the abstract methods. Of these, `_put`, `_link` and `_drop` return None if
    they replaced no entry of the upper layer: then the lower layers decide what `Sink.put` returns. Otherwise they
    return that result, and `_put` also returns true if a directory replaced any other kind of file.
    """

    def __init__(self, below: Below | None, *, parents_known: bool, losses: Losses) -> None:
        """``below`` is None for a base layer, and if the lower layers are unknown."""
        self._below = below
        self._parents_known = parents_known
        self._layered = below is not None or not parents_known
        self._losses = losses
        self._opaque: set[str] = set()
        self._hidden: dict[str, bool] = {}
        """Cache of `_is_hidden`."""
        self._lost: set[LayerPath] = set()
        """Paths of entries that cannot be kept; a whiteout hides the lower entry, if there is one."""
        self._lacking: str | None = None
        """A directory known to be missing from the upper layer; reset when a directory is created."""
        self.assumed: set[LayerPath] = set()
        """Unknown parents only: directories that the layer implies and that are assumed to exist below."""
        self.whiteouts: set[LayerPath] = set()
        """Unknown parents only: paths of the whiteouts."""
        self.root: Entry | None = None
        """Unknown parents only: the root, if the layer states it."""
        self._implied = Implied()
        """Charge for the implied directories that were copied up (`Limits.implied`)."""

    # The upper layer

    @abstractmethod
    def _look(self, path: LayerPath) -> Seen | None:
        """The entry at ``path`` of the upper layer: the object `WHITEOUT` for a whiteout, None if there is none."""

    @abstractmethod
    def _put(self, entry: Entry, content: Content | None) -> bool | None:
        """Put a file in the upper layer, with its missing parents."""

    @abstractmethod
    def _link(self, path: LayerPath, target: LayerPath) -> bool | None:
        """Link a file in the upper layer, which has the target."""

    @abstractmethod
    def _drop(self, path: LayerPath) -> bool | None:
        """Remove ``path`` from the upper layer, without a whiteout."""

    @abstractmethod
    def _make_whiteout(self, path: LayerPath) -> None:
        """Write a whiteout at ``path``, replacing an entry of the upper layer."""

    @abstractmethod
    def _make_opaque(self, path: LayerPath) -> None:
        """Mark a directory other than the root as opaque; copy it up first if the upper layer lacks it."""

    @abstractmethod
    def names(self, directory: LayerPath) -> Iterable[tuple[str, bool]]:
        """The names that the upper layer has in ``directory``, each with whether it is a directory."""

    def _is_up(self, path: LayerPath) -> bool:
        """Whether the upper layer has an entry at ``path``, whiteouts included."""
        return self._look(path) is not None

    def _lacks(self, directory: str) -> bool:
        """Whether the directory is known to be missing from the upper layer."""
        return self._lacking is not None and beneath(directory, self._lacking)

    # The sink

    @property
    def layered(self) -> bool:
        return self._layered

    def seen(self, path: LayerPath) -> Seen | None:
        """Look up a path in the merged view. If the parents are unknown, a missing entry is taken for a directory."""
        if not path:
            return Seen(Kind.DIRECTORY)
        found = self._look(path)
        if found is WHITEOUT:
            return None
        if found is not None:
            return found
        below = self._seen_below(path)
        if not self._parents_known and below is not None:
            self.assumed.add(path)
        return below

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        """Put a file. A device 0/0 cannot be kept: it becomes a whiteout and a loss."""
        kind, path = entry.kind, entry.path
        if kind is Kind.DIRECTORY:
            if not path and not self._parents_known:
                self.root = entry
            reshaped = self._put(entry, None)
            if reshaped and self._below_is_directory(path):
                # It replaces a whiteout or a file, which hid the lower directory; keep that hidden.
                self._mark_opaque(path)
            return reshaped or self._reshapes_below(path, kind)
        if is_whiteout(entry):
            self._losses.record(Loss(path, "character device 0:0", "an overlay would take it for a whiteout"))
            return self._lose(path)
        reshaped = self._put(entry, content)
        return self._reshapes_below(path, kind) if reshaped is None else reshaped

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        """Link a file. A target that only the parents have is copied up first."""
        if target in self._lost:
            self._losses.record(Loss(path, "hard link", f"its target {target!r} is not kept"))
            return self._lose(path)
        if self.seen(target) is None:
            raise NotFound(f"hard link {path!r}: its target {target!r} does not exist")
        if not self._is_up(target):
            entry = self._below.lookup(target) if self._below is not None else None
            if entry is None:
                raise NotFound(
                    f"hard link {path!r}: its target {target!r} is not in this layer, and the layers below are unknown",
                    hint="give the layers below as parents",
                )
            if entry.kind is Kind.DIRECTORY:
                raise InvalidInput(f"hard link {path!r}: its target {target!r} is a directory")
            self._copy_up(entry)
        reshaped = self._link(path, target)
        return self._reshapes_below(path, Kind.FILE) if reshaped is None else reshaped

    def whiteout(self, path: LayerPath) -> bool | None:
        try:
            below = self._seen_below(path)
            if below is None:
                return self._drop(path) if self._is_up(path) else None
            self._make_whiteout(path)
            if not self._parents_known:
                self.whiteouts.add(path)
        except OSError as error:
            raise from_os(error, f"make the whiteout {path!r}") from error
        return below.kind in (Kind.DIRECTORY, Kind.SYMLINK)

    def opaque(self, path: LayerPath, record: PutRecord) -> bool:
        if path in self._opaque or not self._below_is_directory(path):
            return False
        self._copy_up_links(path, record)
        if path:
            self._mark_opaque(path)
        else:
            self._opaque.add("")
            self._hidden.clear()
        # In an opaque directory whiteouts would be visible, and copied-up entries must disappear.
        prune(self, path, record)
        return True

    def remove(self, path: LayerPath) -> None:
        self._drop(path)

    def settle(self) -> None:
        """Write the markers that depend on the whole layer; call it first in `commit`. Raises OSError."""
        if "" in self._opaque:
            self._hide_root()
        for path in self._lost:
            # Its whiteout is visible if its directory became opaque later.
            if self._is_hidden(split(path)[0]) and self.seen(path) is None:
                self._drop(path)

    def close_below(self) -> None:
        """Close the lower layers. May be called again."""
        if self._below is not None:
            self._below.close()

    def _lose(self, path: LayerPath) -> bool | None:
        """Hide ``path``, whose entry cannot be kept."""
        self._lost.add(path)
        return self.whiteout(path)

    # The lower layers

    def _seen_below(self, path: LayerPath) -> Seen | None:
        if self._is_hidden(split(path)[0]):
            return None
        if self._below is not None:
            return self._below.seen(path)
        return None if self._parents_known else Seen(Kind.DIRECTORY)

    def _reshapes_below(self, path: LayerPath, kind: Kind) -> bool:
        """The result of `Sink.put` for a file of ``kind`` at a path at which the upper layer had no entry."""
        below = self._seen_below(path)
        if below is None:
            return False
        if Kind.DIRECTORY in (kind, below.kind):
            return below.kind is not kind
        return below.kind is Kind.SYMLINK

    def _below_is_directory(self, path: LayerPath) -> bool:
        """Whether ``path`` is, or is assumed to be, a directory in the lower layers."""
        if not path:
            return self._layered
        seen = self._seen_below(path)
        return seen is not None and seen.kind is Kind.DIRECTORY

    def _is_hidden(self, directory: str) -> bool:
        """Whether ``directory`` or one of its parents is opaque."""
        if not self._opaque:
            return False
        hidden, opaque = self._hidden, self._opaque
        if len(hidden) > _HIDDEN_CACHED:
            hidden.clear()
        way: list[str] = []
        while (known := hidden.get(directory)) is None:
            if directory in opaque:
                known = True
            elif not directory:
                known = False
            if known is not None:
                hidden[directory] = known
                break
            way.append(directory)
            directory = directory.rpartition("/")[0]
        for path in way:
            hidden[path] = known
        return known

    # Copy-up

    def _copy_up_directory(self, path: LayerPath) -> bool:
        """Copy ``path`` and its missing parents up, or create them. Return whether any was missing."""
        missing: list[LayerPath] = []
        while path and not self._is_up(path):
            missing.append(path)
            path = split(path)[0]
        for number, path in enumerate(reversed(missing)):
            if number:  # the first is free, by `Limits.implied`
                self._implied.add(path)
            self._put(self._directory_below(path), None)
        return bool(missing)

    def _directory_below(self, path: LayerPath) -> Entry:
        if self._below is not None and not self._is_hidden(split(path)[0]):
            entry = self._below.lookup(path)
            if entry is not None and entry.kind is Kind.DIRECTORY:
                return entry
        return implied_directory(path)

    def _copy_up(self, entry: Entry) -> None:
        """Copy an entry of the lower layers to the upper layer."""
        below, path = self._below, entry.path
        assert below is not None  # noqa: S101  # where the entry comes from
        if entry.kind is not Kind.DIRECTORY and below.identity(path) is not None:
            self._losses.record(
                Loss(path, "hard links to its other names below", "an overlay links within one layer only")
            )
        self._put(entry, below.open(path) if entry.kind is Kind.FILE else None)

    def _copy_up_links(self, directory: LayerPath, record: PutRecord) -> None:
        """Copy up what the layer keeps of ``directory`` by hard links of a path to itself.

        `apply` records such a link in ``record`` and does not call `link`, so the upper layer may lack the entry.
        """
        if self._below is None:
            return
        todo = [directory]
        while todo:
            parent = todo.pop()
            if self._is_hidden(parent):
                continue
            for name in record.names(parent):
                path = join(parent, name)
                if not self._is_up(path):
                    entry = self._below.lookup(path)
                    if entry is not None:
                        self._copy_up(entry)
                seen = self.seen(path)
                if seen is not None and seen.kind is Kind.DIRECTORY:
                    todo.append(path)

    def _mark_opaque(self, path: LayerPath) -> None:
        self._make_opaque(path)
        self._opaque.add(path)
        self._hidden.clear()

    def _hide_root(self) -> None:
        """Hide each lower entry of the root by itself: the kernel ignores an opaque marker on the root."""
        if self._below is None:
            self._losses.record(
                Loss("", "opaque marker", "an overlay ignores it on the root, and the layers below are unknown")
            )
            return
        self._opaque.discard("")
        self._hidden.clear()
        for entry in self._below.entries(ROOT):
            seen = self.seen(entry.path) if self._is_up(entry.path) else None
            if seen is None:
                self.whiteout(entry.path)
            elif seen.kind is Kind.DIRECTORY and entry.kind is Kind.DIRECTORY:
                self._mark_opaque(entry.path)
