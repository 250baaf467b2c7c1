# SPDX-License-Identifier: Apache-2.0
"""The upper directory of an overlay mount as the place of a layer (Documentation/filesystems/overlayfs.rst)."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lamella import host
from lamella.changes.contracts import Mine, Seen
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Content, Entry, Kind, implied_directory
from lamella.changes.semantics import prune
from lamella.errors import Conflict, InvalidInput, NotFound, from_os
from lamella.host import flags
from lamella.layers.directory import DirectorySink
from lamella.layers.policy import Owners, Policy
from lamella.paths import ROOT, LayerPath, join, split

if TYPE_CHECKING:
    from lamella.layers.overlay_tree import OverlayTree
    from lamella.layers.stack import LayerStack

TRUSTED: Final = "trusted.overlay."
USER: Final = "user.overlay."

_WHITEOUT_DEVICE: Final = 0  # of major and minor number 0; Windows has no os.makedev
_KNOWN_HIDDEN: Final = 16384


@dataclass(slots=True, frozen=True)
class OverlayLayer:
    """A layer in the form of an upper directory; a plain directory will do as the lowest one."""

    path: Path
    user_xattrs: bool | None = None
    """Whether marks are ``user.overlay.*``, as mounts with ``userxattr`` have them, or ``trusted.overlay.*``.

    None is what this process can use: the latter for root.
    """

    def prefix(self) -> str:
        """What the names of the marks begin with."""
        user = os.geteuid() != 0 if self.user_xattrs is None else self.user_xattrs
        return USER if user else TRUSTED


class OverlaySink(DirectorySink):
    """Applies a layer to the empty upper directory ``layer``, as the kernel would have left it.

    A whiteout becomes a character device 0/0, or where the file system refuses that an empty file with the attribute
    ``overlay.whiteout`` (Linux 6.7); an opaque directory has the attribute ``overlay.opaque``. Neither is made where
    nothing lies below, since the kernel would show it.

    ``parents`` is what lies below: directories that the layer leads through keep the metadata that they have there,
    links are read there, and a file of theirs that gets a further name is copied up. An empty stack is a base layer.
    With None it is not known: then a directory that the layer does not state has mode 0755, symbolic links below are
    not seen, and every marker is kept.
    """

    def __init__(
        self,
        layer: OverlayLayer,
        *,
        parents: LayerStack[OverlayLayer] | None = None,
        policy: Policy | None = None,
        losses: Losses | None = None,
    ) -> None:
        """Open the directory. Raises Conflict where it is not empty."""
        self._below: OverlayTree | None = None
        super().__init__(layer.path, policy=policy, losses=losses)
        try:
            if self._layered:
                raise Conflict(f"{os.fspath(layer.path)!r} is not empty: an upper directory takes a single layer")
            self._layered = parents is None or len(parents) > 0
            self._parents_known = parents is not None
            if parents is not None and len(parents):
                from lamella.layers.overlay_tree import OverlayTree

                record = self._policy.owners is Owners.RECORD
                self._below = OverlayTree(parents, owners="recorded" if record else None)
            self._prefix = self._usable_prefix(layer)
            self._devices = True
            """Whether whiteouts can be devices; else they are marked files."""
            self._marked: set[str] = set()
            """Directories whose marked whiteouts the kernel has been told to look for."""
            self._opaque: set[str] = set()
            self._hidden: dict[str, bool] = {}
            self._lost: set[LayerPath] = set()
            self.assumed: set[LayerPath] = set()
            """Where the parents are not known: directories that the layer does not state, taken to be there."""
            self.covered: set[LayerPath] = set()
            """Where the parents are not known: what whiteouts were made for."""
            self.root: Entry | None = None
            """Where the parents are not known: the root as the layer states it."""
            if self._below is not None:
                root = self._below.lookup(ROOT)
                if root is not None:
                    super().put(root, None)
        except BaseException:
            self.abort()
            raise

    @property
    def view(self) -> OverlaySink:
        """See `Sink.view`."""
        return self

    def seen(self, path: LayerPath) -> Seen | None:
        """See `View.seen`. Where nobody knows what is below, a directory is taken to be there."""
        if not path:
            return Seen(Kind.DIRECTORY)
        parent, name = split(path)
        try:
            directory = self._known.get(parent)
            if directory is None:
                directory = self._descriptors.open(parent)
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            below = self._seen_below(path)
            if not self._parents_known and below is not None:
                self.assumed.add(path)
            return below
        except OSError as error:
            raise from_os(error, f"look at {path!r}") from error
        if self._is_whiteout(directory, name, parent, status):
            return None
        return super().seen(path)

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        """See `Sink.put`. A device 0/0 is recorded as lost, since it would be a whiteout, and is made one."""
        kind, path = entry.kind, entry.path
        if kind is Kind.DIRECTORY:
            if not path and not self._parents_known:
                self.root = entry
            reshaped = super().put(entry, None)
            if reshaped and self._below_is_directory(path):
                # It came in the place of a whiteout or a file, which hid what is below: so must it.
                self._mark_opaque(path)
            return reshaped or self._reshapes_below(path, kind)
        if kind is Kind.CHARACTER and entry.posix is not None and entry.posix.device == (0, 0):
            self._losses.record(Loss(path, "character device 0:0", "an overlay would take it for a whiteout"))
            return self._lose(path)
        reshaped = super().put(entry, content)
        return self._reshapes_below(path, kind) if reshaped is None else reshaped

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        """See `Sink.link`. What only the parents have is copied up first."""
        if target in self._lost:
            self._losses.record(Loss(path, "hard link", f"its target {target!r} is not kept"))
            return self._lose(path)
        if self.seen(target) is None:
            raise NotFound(f"hard link {path!r}: its target {target!r} is not there")
        if not self._in_upper(*split(target)):
            entry = self._below.lookup(target) if self._below is not None else None
            if entry is None:
                raise NotFound(
                    f"hard link {path!r}: its target {target!r} is not in this layer, and what is below is not known",
                    hint="say which layers are below",
                )
            if entry.kind is Kind.DIRECTORY:
                raise InvalidInput(f"hard link {path!r}: its target {target!r} is a directory")
            self._copy_up(entry)
        reshaped = super().link(path, target)
        return self._reshapes_below(path, Kind.FILE) if reshaped is None else reshaped

    def whiteout(self, path: LayerPath) -> bool | None:
        """See `Sink.whiteout`."""
        parent, name = split(path)
        try:
            below = self._seen_below(path)
            if below is None:
                return super().whiteout(path) if self._in_upper(parent, name) else None
            self._make_whiteout(self._open(parent), parent, name, path)
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

    def _lose(self, path: LayerPath) -> bool | None:
        """Let nothing be at ``path``, where the layer has something that cannot be kept."""
        self._lost.add(path)
        return self.whiteout(path)

    def remove(self, path: LayerPath) -> None:
        """See `FlatPlace.remove`."""
        super().whiteout(path)

    def commit(self) -> Losses:
        """See `DirectorySink.commit`."""
        try:
            if "" in self._opaque:
                self._hide_root()
            for path in self._lost:
                if self._is_hidden(split(path)[0]) and self.seen(path) is None:
                    super().whiteout(path)
        except OSError as error:
            raise from_os(error, "hide what is below the root") from error
        losses = super().commit()
        self._close()
        return losses

    def abort(self) -> None:
        """See `DirectorySink.abort`."""
        super().abort()
        self._close()

    def _close(self) -> None:
        if self._below is not None:
            self._below.close()

    # What is below

    def _seen_below(self, path: LayerPath) -> Seen | None:
        if self._is_hidden(split(path)[0]):
            return None
        if self._below is not None:
            return self._below.seen(path)
        return None if self._parents_known else Seen(Kind.DIRECTORY)

    def _reshapes_below(self, path: LayerPath, kind: Kind) -> bool:
        """Whether a file of ``kind``, put where the upper directory had nothing, is what `Sink.put` tells about."""
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

    # The upper directory

    def _open(self, path: str) -> int:
        """See `DirectorySink`; directories that only the parents have are copied up, or made."""
        descriptor = self._known.get(path)
        if descriptor is not None:
            return descriptor
        try:
            return super()._open(path)
        except FileNotFoundError:
            missing: list[LayerPath] = []
            at = LayerPath(path)
            while at and not self._in_upper(*split(at)):
                missing.append(at)
                at = split(at)[0]
            if not missing:
                raise
            for at in reversed(missing):
                super().put(self._directory_below(at), None)
            return super()._open(path)

    def _directory_below(self, path: LayerPath) -> Entry:
        if self._below is not None and not self._is_hidden(split(path)[0]):
            entry = self._below.lookup(path)
            if entry is not None and entry.kind is Kind.DIRECTORY:
                return entry
        return implied_directory(path)

    def _in_upper(self, parent: str, name: str) -> bool:
        """Whether the upper directory has ``name`` in ``parent``, be it a whiteout."""
        try:
            directory = self._known.get(parent)
            if directory is None:
                directory = self._descriptors.open(parent)
            os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _copy_up(self, entry: Entry) -> None:
        """Put into the upper directory what is below."""
        below, path = self._below, entry.path
        assert below is not None  # noqa: S101  # the entry comes from there
        if entry.kind is not Kind.DIRECTORY and below.identity(path) is not None:
            self._losses.record(
                Loss(path, "being one file with its other names below", "an overlay links within a layer only")
            )
        super().put(entry, below.open(path) if entry.kind is Kind.FILE else None)

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
                if not self._in_upper(parent, name):
                    entry = self._below.lookup(path)
                    if entry is not None:
                        self._copy_up(entry)
                seen = self.seen(path)
                if seen is not None and seen.kind is Kind.DIRECTORY:
                    todo.append(path)

    # Marks

    def _usable_prefix(self, layer: OverlayLayer) -> str:
        """The attributes to mark with; root in a user namespace cannot use those of root."""
        prefix = layer.prefix()
        if prefix == TRUSTED and layer.user_xattrs is None:
            probe = TRUSTED + "lamella"
            try:
                host.set_xattr(self._descriptors.root, probe, b"")
                host.remove_xattr(self._descriptors.root, probe)
            except OSError as error:
                if error.errno == errno.EPERM:
                    return USER
        return prefix

    def _mark(self, descriptor: int, path: str, value: bytes) -> None:
        try:
            host.set_xattr(descriptor, self._prefix + "opaque", value)
        except OSError as error:
            raise from_os(error, f"mark {path or '/'!r} with {self._prefix}opaque") from error

    def _mark_opaque(self, path: LayerPath) -> None:
        self._mark(self._open(path), path, b"y")
        self._opaque.add(path)
        self._hidden.clear()

    def _make_whiteout(self, directory: int, parent: str, name: str, path: LayerPath) -> None:
        while self._devices:
            try:
                os.mknod(name, stat.S_IFCHR, _WHITEOUT_DEVICE, dir_fd=directory)
            except FileExistsError:
                self._clear(directory, name, path)
            except PermissionError:
                self._devices = False
            else:
                return
        if self._in_upper(parent, name):
            self._clear(directory, name, path)
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            host.set_xattr(file, self._prefix + "whiteout", b"y")
        finally:
            os.close(file)
        if parent not in self._marked and parent not in self._opaque:
            self._mark(directory, parent, b"x")
        self._marked.add(parent)

    def _is_whiteout(self, directory: int, name: str, parent: str, status: os.stat_result) -> bool:
        if stat.S_ISCHR(status.st_mode):
            return status.st_rdev == _WHITEOUT_DEVICE
        if parent not in self._marked or not stat.S_ISREG(status.st_mode) or status.st_size:
            return False
        return self._prefix + "whiteout" in host.list_xattrs(host.path_beneath(directory, name))

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
            seen = self.seen(entry.path) if self._in_upper("", entry.path) else None
            if seen is None:
                self.whiteout(entry.path)
            elif seen.kind is Kind.DIRECTORY and entry.kind is Kind.DIRECTORY:
                self._mark_opaque(entry.path)
