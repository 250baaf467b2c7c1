# SPDX-License-Identifier: Apache-2.0
"""The upper directory of an overlay mount as the place of a layer (Documentation/filesystems/overlayfs.rst)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from lamella import host
from lamella.changes.contracts import Seen
from lamella.changes.losses import Losses
from lamella.changes.model import Content, Entry, Kind
from lamella.errors import Conflict, from_os
from lamella.host import file_io
from lamella.layers.directory.dirfd_cache import Descriptors, open_root
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.overlay.rules import WHITEOUT, OverlayRules
from lamella.layers.policy import Owners, Policy
from lamella.paths import ROOT, LayerPath, split

if TYPE_CHECKING:
    from lamella.layers.overlay.tree import OverlayTree
    from lamella.layers.stack import LayerStack

TRUSTED: Final = "trusted.overlay."
USER: Final = "user.overlay."

_FEW: Final = 16
"""Directories that are open at once."""
_WHITEOUT_DEVICE: Final = 0  # of major and minor number 0; Windows has no os.makedev


class OverlayLayer(Struct, frozen=True):
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


class OverlaySink(OverlayRules, DirectorySink):
    """Applies a layer to the empty upper directory ``layer``, as the kernel would have left it (`OverlayRules`).

    A whiteout becomes a character device 0/0, or where the file system refuses that an empty file with the attribute
    ``overlay.whiteout`` (Linux 6.7); an opaque directory has the attribute ``overlay.opaque``.

    ``parents`` is what lies below. An empty stack is a base layer, None is for what is not known.
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
            """Whether whiteouts can be devices; else they are marked files."""
            self._marked: set[str] = set()
            """Directories whose marked whiteouts the kernel has been told to look for."""
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
        """See `Sink.view`."""
        return self

    def commit(self) -> Losses:
        """See `DirectorySink.commit`."""
        try:
            self.settle()
        except OSError as error:
            raise from_os(error, "hide what is below the root") from error
        losses = super().commit()
        self.close_below()
        return losses

    def abort(self) -> None:
        """See `DirectorySink.abort`."""
        super().abort()
        self.close_below()

    # See `OverlayRules`

    def _look(self, path: LayerPath) -> Seen | None:
        parent, name = split(path)
        try:
            directory = self._there(parent)
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
        """See `FlatPlace.names`."""
        return DirectorySink.names(self, directory)

    def _is_up(self, path: LayerPath) -> bool:
        parent, name = split(path)
        try:
            directory = self._there(parent)
            if directory is None:
                return False
            os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _there(self, path: str) -> int | None:
        """The open directory ``path`` of the upper layer; None where that has none. Raises OSError."""
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
        """See `DirectorySink`; directories that only the parents have are copied up, or made."""
        descriptor = self._known.get(path)
        if descriptor is not None:
            return descriptor
        try:
            return super()._open(path)
        except FileNotFoundError:
            if not self._bring_directory(LayerPath(path)):
                raise
            return super()._open(path)

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

    def _make_opaque(self, path: LayerPath) -> None:
        self._mark(self._open(path), path, b"y")

    def _make_whiteout(self, path: LayerPath) -> None:
        parent, name = split(path)
        directory = self._open(parent)
        while self._devices:
            try:
                os.mknod(name, stat.S_IFCHR, _WHITEOUT_DEVICE, dir_fd=directory)
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
            return status.st_rdev == _WHITEOUT_DEVICE
        if parent not in self._marked or not stat.S_ISREG(status.st_mode) or status.st_size:
            return False
        return self._prefix + "whiteout" in host.list_xattrs(host.path_beneath(directory, name))


def drop_whiteouts(layer: OverlayLayer, paths: Iterable[LayerPath]) -> None:
    """Remove whiteouts that turn out to be of nothing; what is at ``paths`` and is no whiteout stays.

    The directories that they are in keep their times. Raises Denied and the like.
    """
    mark = layer.prefix() + "whiteout"
    directories = Descriptors(open_root(layer.path), most=_FEW)
    try:
        for path in paths:
            parent, name = split(path)
            try:
                directory = directories.open(parent)
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat.S_ISREG(status.st_mode) and not status.st_size:
                gone = mark in host.list_xattrs(host.path_beneath(directory, name))
            else:
                gone = stat.S_ISCHR(status.st_mode) and status.st_rdev == _WHITEOUT_DEVICE
            if gone:
                mtime = os.fstat(directory).st_mtime_ns
                os.unlink(name, dir_fd=directory)
                os.utime(directory, ns=(mtime, mtime))
    except OSError as error:
        raise from_os(error, f"remove whiteouts in {os.fspath(layer.path)!r}") from error
    finally:
        directories.close()
