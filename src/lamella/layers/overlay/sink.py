# SPDX-License-Identifier: Apache-2.0
"""Applies a layer to the upper directory of an overlay (Documentation/filesystems/overlayfs.rst)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lamella import host
from lamella.changes.contracts import Seen
from lamella.changes.losses import Losses
from lamella.changes.model import Content, Entry, Kind
from lamella.errors import Conflict, from_os
from lamella.host import file_io
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.overlay.layer import TRUSTED, USER, WHITEOUT_DEVICE, OverlayLayer
from lamella.layers.overlay.rules import WHITEOUT, OverlayRules
from lamella.layers.policy import Owners, Policy
from lamella.paths import ROOT, LayerPath, split

if TYPE_CHECKING:
    from lamella.layers.overlay.tree import OverlayTree
    from lamella.layers.stack import LayerStack


class OverlaySink(OverlayRules, DirectorySink):
    """Applies a layer to the empty upper directory ``layer``; the result is what the kernel would have written.

    A whiteout is a character device 0/0 or, if this process may not create one, an empty file with the attribute
    ``overlay.whiteout`` (Linux 6.7). An opaque directory has the attribute ``overlay.opaque``.

    ``parents`` are the layers below. An empty stack means a base layer, None that the parents are unknown.
    """

    def __init__(
        self,
        layer: OverlayLayer,
        *,
        parents: LayerStack[OverlayLayer] | None = None,
        policy: Policy | None = None,
        losses: Losses | None = None,
    ) -> None:
        """Open the directory. Raises Conflict if it is not empty."""
        DirectorySink.__init__(self, layer.path, policy=policy, losses=losses)
        below: OverlayTree | None = None
        try:
            if self._layered:
                raise Conflict(f"{os.fspath(layer.path)!r} is not empty: an upper directory takes a single layer")
            if parents is not None and len(parents):
                from lamella.layers.overlay.tree import OverlayTree

                record = self._policy.owners is Owners.RECORD
                below = OverlayTree(parents, owners="recorded" if record else None)
            OverlayRules.__init__(self, below, parents_known=parents is not None, losses=self._losses)
            self._prefix = self._usable_prefix(layer)
            self._devices = True
            """Whether whiteouts are devices; otherwise they are files with an attribute."""
            self._marked: set[str] = set()
            """Directories marked as containing whiteouts that are files."""
            if below is not None:
                root = below.lookup(ROOT)
                if root is not None:
                    DirectorySink.put(self, root, None)
        except BaseException:
            DirectorySink.abort(self)
            if below is not None:
                below.close()
            raise

    @property
    def view(self) -> OverlaySink:
        return self

    def commit(self) -> Losses:
        try:
            self.settle()
        except OSError as error:
            raise from_os(error, "hide what is below the root") from error
        losses = super().commit()
        self.close_below()
        return losses

    def abort(self) -> None:
        super().abort()
        self.close_below()

    # The upper layer, as `OverlayRules` needs it

    def _look(self, path: LayerPath) -> Seen | None:
        parent, name = split(path)
        try:
            directory = self._open_existing(parent)
            if directory is None:
                return None
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os(error, f"look at {path!r}") from error
        if self._is_whiteout(directory, name, parent, status):
            return WHITEOUT
        return DirectorySink.seen(self, path)

    def _put(self, entry: Entry, content: Content | None) -> bool | None:
        if entry.kind is Kind.DIRECTORY:
            self._lacking = None
        return DirectorySink.put(self, entry, content)

    def _link(self, path: LayerPath, target: LayerPath) -> bool | None:
        return DirectorySink.link(self, path, target)

    def _drop(self, path: LayerPath) -> bool | None:
        return DirectorySink.whiteout(self, path)

    def names(self, directory: LayerPath) -> Iterable[tuple[str, bool]]:
        return DirectorySink.names(self, directory)

    def _is_up(self, path: LayerPath) -> bool:
        parent, name = split(path)
        try:
            directory = self._open_existing(parent)
            if directory is None:
                return False
            os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _open_existing(self, path: str) -> int | None:
        """The descriptor of the directory ``path`` of the upper layer; None if it does not exist. Raises OSError."""
        directory = self._known.get(path)
        if directory is None:
            if self._lacks(path):
                return None
            try:
                directory = self._descriptors.open(path)
            except FileNotFoundError:
                self._lacking = path
        return directory

    def _open(self, path: str) -> int:
        """As `DirectorySink`, after copying up or creating missing directories."""
        descriptor = self._known.get(path)
        if descriptor is not None:
            return descriptor
        try:
            return super()._open(path)
        except FileNotFoundError:
            if not self._copy_up_directory(LayerPath(path)):
                raise
            return super()._open(path)

    # Attributes

    def _usable_prefix(self, layer: OverlayLayer) -> str:
        """The prefix that this process can use: root in a user namespace cannot set ``trusted.*``."""
        prefix = layer.xattr_prefix()
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

    def _make_opaque(self, path: LayerPath) -> None:
        self._mark(self._open(path), path, b"y")

    def _make_whiteout(self, path: LayerPath) -> None:
        parent, name = split(path)
        directory = self._open(parent)
        while self._devices:
            try:
                os.mknod(name, stat.S_IFCHR, WHITEOUT_DEVICE, dir_fd=directory)
            except FileExistsError:
                self._clear(directory, name, path)
            except PermissionError:
                self._devices = False
            else:
                return
        if self._is_up(path):
            self._clear(directory, name, path)
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | file_io.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            host.set_xattr(file, self._prefix + "whiteout", b"y")
        finally:
            os.close(file)
        if parent not in self._marked and parent not in self._opaque:
            self._mark(directory, parent, b"x")
        self._marked.add(parent)

    def _is_whiteout(self, directory: int, name: str, parent: str, status: os.stat_result) -> bool:
        if stat.S_ISCHR(status.st_mode):
            return status.st_rdev == WHITEOUT_DEVICE
        if parent not in self._marked or not stat.S_ISREG(status.st_mode) or status.st_size:
            return False
        return self._prefix + "whiteout" in host.list_xattrs(host.path_beneath(directory, name))
