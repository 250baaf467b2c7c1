# SPDX-License-Identifier: Apache-2.0
"""What an upper layer of an overlay has to say for a layer to mean what it means, wherever the upper layer lies.

See Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Final, Protocol

from lamella.changes.contracts import Mine, Seen, Tree
from lamella.changes.limits import Implied
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Content, Entry, Kind, implied_directory
from lamella.changes.whiteouts import prune
from lamella.errors import InvalidInput, NotFound, from_os
from lamella.paths import ROOT, LayerPath, beneath, join, split

WHITEOUT: Final = Seen(Kind.CHARACTER)
"""What `OverlayRules._look` gives for a whiteout."""

_KNOWN_HIDDEN: Final = 16384


def is_whiteout(entry: Entry) -> bool:
    """Whether an overlay takes the file for a whiteout: a character device 0/0."""
    return entry.kind is Kind.CHARACTER and entry.posix is not None and entry.posix.device == (0, 0)


class Below(Tree, Protocol):
    """The tree that the layers below show."""

    def seen(self, path: LayerPath) -> Seen | None:
        """What `lookup` finds, as far as walking needs it."""
        ...

    def close(self) -> None:
        """Nothing can be asked any more."""
        ...


class OverlayRules(ABC):
    """Takes one layer into an upper layer that is empty: all of `Sink` but `commit` and `abort`.

    A whiteout is made only where something lies below, and a directory made opaque likewise, since the kernel would
    show them elsewhere. Directories that the layer leads through keep the metadata that they have below, links are read
    there, and a file from below that gets a further name is copied up. Where it is not known what lies below, a
    directory that the layer does not state has mode 0755, symbolic links below are not seen, and every marker is kept.

    Whoever inherits keeps the upper layer, by the methods that are abstract.
    """

    def __init__(self, below: Below | None, *, parents_known: bool, losses: Losses) -> None:
        """``below`` is None for a base layer, and where it is not known."""
        self._below = below
        self._parents_known = parents_known
        self._layered = below is not None or not parents_known
        self._losses = losses
        self._opaque: set[str] = set()
        self._hidden: dict[str, bool] = {}
        self._lost: set[LayerPath] = set()
        self._lacking: str | None = None
        """A directory that the upper layer was found to lack, since when it got no other."""
        self.assumed: set[LayerPath] = set()
        """Where the parents are not known: directories that the layer does not state, taken to be there."""
        self.covered: set[LayerPath] = set()
        """Where the parents are not known: what whiteouts were made for."""
        self.root: Entry | None = None
        """Where the parents are not known: the root as the layer states it."""
        self._brought = Implied()
        """Directories that a marker, say, has brought up."""

    # The upper layer

    @abstractmethod
    def _look(self, path: LayerPath) -> Seen | None:
        """What the upper layer has at ``path``: `WHITEOUT` itself for a whiteout, None where it has nothing."""

    @abstractmethod
    def _put(self, entry: Entry, content: Content | None) -> bool | None:
        """See `Sink.put`, of the upper layer alone."""

    @abstractmethod
    def _link(self, path: LayerPath, target: LayerPath) -> bool | None:
        """See `Sink.link`, of the upper layer alone, which has the target."""

    @abstractmethod
    def _drop(self, path: LayerPath) -> bool | None:
        """See `Sink.whiteout`: the upper layer has nothing at ``path`` any more."""

    @abstractmethod
    def _make_whiteout(self, path: LayerPath) -> None:
        """Have a whiteout at ``path``, in place of whatever the upper layer has there."""

    @abstractmethod
    def _make_opaque(self, path: LayerPath) -> None:
        """Let a directory hide what is below; it is not the root, and may have to be brought up first."""

    @abstractmethod
    def names(self, directory: LayerPath) -> Iterable[tuple[str, bool]]:
        """See `FlatPlace.names`, of the upper layer alone."""

    def _is_up(self, path: LayerPath) -> bool:
        """Whether the upper layer has something at ``path``, be it a whiteout."""
        return self._look(path) is not None

    def _lacks(self, directory: str) -> bool:
        """Whether the upper layer is known to lack a directory, which spares looking for it on a long way."""
        return self._lacking is not None and beneath(directory, self._lacking)

    # See `Sink`

    @property
    def layered(self) -> bool:
        """See `Sink.layered`."""
        return self._layered

    def seen(self, path: LayerPath) -> Seen | None:
        """See `View.seen`. Where nobody knows what is below, a directory is taken to be there."""
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
        """See `Sink.put`. A device 0/0 is recorded as lost, since it would be a whiteout, and is made one."""
        kind, path = entry.kind, entry.path
        if kind is Kind.DIRECTORY:
            if not path and not self._parents_known:
                self.root = entry
            reshaped = self._put(entry, None)
            if reshaped and self._below_is_directory(path):
                # It came in the place of a whiteout or a file, which hid what is below: so must it.
                self._mark_opaque(path)
            return reshaped or self._reshapes_below(path, kind)
        if is_whiteout(entry):
            self._losses.record(Loss(path, "character device 0:0", "an overlay would take it for a whiteout"))
            return self._lose(path)
        reshaped = self._put(entry, content)
        return self._reshapes_below(path, kind) if reshaped is None else reshaped

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        """See `Sink.link`. What only the parents have is copied up first."""
        if target in self._lost:
            self._losses.record(Loss(path, "hard link", f"its target {target!r} is not kept"))
            return self._lose(path)
        if self.seen(target) is None:
            raise NotFound(f"hard link {path!r}: its target {target!r} is not there")
        if not self._is_up(target):
            entry = self._below.lookup(target) if self._below is not None else None
            if entry is None:
                raise NotFound(
                    f"hard link {path!r}: its target {target!r} is not in this layer, and what is below is not known",
                    hint="say which layers are below",
                )
            if entry.kind is Kind.DIRECTORY:
                raise InvalidInput(f"hard link {path!r}: its target {target!r} is a directory")
            self._copy_up(entry)
        reshaped = self._link(path, target)
        return self._reshapes_below(path, Kind.FILE) if reshaped is None else reshaped

    def whiteout(self, path: LayerPath) -> bool | None:
        """See `Sink.whiteout`."""
        try:
            below = self._seen_below(path)
            if below is None:
                return self._drop(path) if self._is_up(path) else None
            self._make_whiteout(path)
            if not self._parents_known:
                self.covered.add(path)
        except OSError as error:
            raise from_os(error, f"make the whiteout {path!r}") from error
        return below.kind in (Kind.DIRECTORY, Kind.SYMLINK)

    def opaque(self, path: LayerPath, mine: Mine) -> bool:
        """See `Sink.opaque`."""
        if path in self._opaque or not self._below_is_directory(path):
            return False
        self._bring_up(path, mine)
        if path:
            self._mark_opaque(path)
        else:
            self._opaque.add("")
            self._hidden.clear()
        # Whiteouts would show in an opaque directory, and what was copied up is no longer there to be seen.
        prune(self, path, mine)
        return True

    def remove(self, path: LayerPath) -> None:
        """See `FlatPlace.remove`."""
        self._drop(path)

    def settle(self) -> None:
        """Do what has to wait for the end of the layer. Raises OSError."""
        if "" in self._opaque:
            self._hide_root()
        for path in self._lost:
            if self._is_hidden(split(path)[0]) and self.seen(path) is None:
                self._drop(path)

    def close_below(self) -> None:
        """Let go of what is below. May be called again."""
        if self._below is not None:
            self._below.close()

    def _lose(self, path: LayerPath) -> bool | None:
        """Let nothing be at ``path``, where the layer has something that cannot be kept."""
        self._lost.add(path)
        return self.whiteout(path)

    # What is below

    def _seen_below(self, path: LayerPath) -> Seen | None:
        if self._is_hidden(split(path)[0]):
            return None
        if self._below is not None:
            return self._below.seen(path)
        return None if self._parents_known else Seen(Kind.DIRECTORY)

    def _reshapes_below(self, path: LayerPath, kind: Kind) -> bool:
        """Whether a file of ``kind``, put where the upper layer had nothing, is what `Sink.put` tells about."""
        below = self._seen_below(path)
        if below is None:
            return False
        if Kind.DIRECTORY in (kind, below.kind):
            return below.kind is not kind
        return below.kind is Kind.SYMLINK

    def _below_is_directory(self, path: LayerPath) -> bool:
        """Whether there is something in ``path`` below, as far as is known."""
        if not path:
            return self._layered
        seen = self._seen_below(path)
        return seen is not None and seen.kind is Kind.DIRECTORY

    def _is_hidden(self, directory: str) -> bool:
        """Whether ``directory``, or one above it, is opaque."""
        if not self._opaque:
            return False
        hidden, opaque = self._hidden, self._opaque
        if len(hidden) > _KNOWN_HIDDEN:
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

    # From below into the upper layer

    def _bring_directory(self, path: LayerPath) -> bool:
        """Copy up, or make, a directory and those on the way to it that the upper layer lacks; False for none."""
        missing: list[LayerPath] = []
        while path and not self._is_up(path):
            missing.append(path)
            path = split(path)[0]
        for number, path in enumerate(reversed(missing)):
            if number:
                self._brought.add(path)
            self._put(self._directory_below(path), None)
        return bool(missing)

    def _directory_below(self, path: LayerPath) -> Entry:
        if self._below is not None and not self._is_hidden(split(path)[0]):
            entry = self._below.lookup(path)
            if entry is not None and entry.kind is Kind.DIRECTORY:
                return entry
        return implied_directory(path)

    def _copy_up(self, entry: Entry) -> None:
        """Put into the upper layer what is below."""
        below, path = self._below, entry.path
        assert below is not None  # noqa: S101  # the entry comes from there
        if entry.kind is not Kind.DIRECTORY and below.identity(path) is not None:
            self._losses.record(
                Loss(path, "being one file with its other names below", "an overlay links within a layer only")
            )
        self._put(entry, below.open(path) if entry.kind is Kind.FILE else None)

    def _bring_up(self, directory: LayerPath, mine: Mine) -> None:
        """Copy up what the layer has in ``directory`` without having put it: what it states to be a link to itself."""
        if self._below is None:
            return
        todo = [directory]
        while todo:
            parent = todo.pop()
            if self._is_hidden(parent):
                continue
            for name in mine.names(parent):
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
        """Say name by name that nothing below is left: the kernel takes no mark on the root."""
        if self._below is None:
            self._losses.record(
                Loss("", "opaque marker", "an overlay takes none on the root, and what is below is not known")
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
