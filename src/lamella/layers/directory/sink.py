# SPDX-License-Identifier: Apache-2.0
"""Sink that applies a layer to a plain directory, which holds the lower layers; whiteouts remove files."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Final

from lamella import host
from lamella.changes.contracts import Seen
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import KIND_BY_TYPE_BITS, TYPE_BITS, Content, Entry, Kind, Posix
from lamella.changes.whiteouts import PutRecord, prune
from lamella.errors import Conflict, Denied, InvalidInput, MissingFacet, NotFound, SizeMismatch, from_os
from lamella.host import file_io
from lamella.layers.directory.attrs import (
    EARLIEST,
    LATEST,
    MOST_ID,
    OVERRIDE,
    PATH_ONLY,
    Metadata,
    encode_override,
)
from lamella.layers.directory.content import write_rest, write_sparse
from lamella.layers.directory.dirfd_cache import Descriptors, grant_access, open_root, remove_tree
from lamella.layers.policy import Devices, Policy
from lamella.paths import LayerPath, join, split

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | file_io.O_NOFOLLOW | file_io.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | file_io.O_DIRECTORY | file_io.O_NOFOLLOW | file_io.O_CLOEXEC


class DirectorySink:
    """Applies a layer to a directory, in place.

    Only `apply` may drive it. Every name is opened relative to the descriptor of its directory and without following
    links, so a directory that is swapped for a link meanwhile raises an error. `commit` sets the times of directories
    and restores those of implied ones. `abort` does not undo writes: apply to a new directory and rename it if a
    failure must leave nothing.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, policy: Policy | None = None, losses: Losses | None = None
    ) -> None:
        """Open the directory ``root``. ``losses`` collects what it cannot hold. Raises NotFound, Conflict, Denied."""
        self._policy = policy or Policy.default()
        self._losses = losses if losses is not None else Losses()
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._root_user = self._uid == 0
        self._modes: dict[str, int] = {}
        """Directory -> its mode, set by `commit` since it denies this user access until then (empty for root)."""
        self._descriptors = Descriptors(self._open_root(root), self._record_directory)
        self._known = self._descriptors.known
        self._metadata = Metadata(self._descriptors.root, self._policy, self._losses)
        self._umask, self._special = self._metadata.umask, self._metadata.special
        self._writable = 0 if self._root_user else stat.S_IWUSR
        """Mode bits that this user needs to set attributes of its files."""
        self._inheriting: set[int] = set()
        """Descriptors of directories that give new files their group or a default ACL."""
        self._plain: dict[str, set[str]] = {}
        """Parent -> names of directories that this layer made and that give new files nothing: no need to stat them.

        Names by parent take less memory than paths.
        """
        self._times: dict[str, dict[str, int]] = {}
        """Parent -> name of a directory -> mtime that `commit` sets. The root is "" in ""."""
        self._removed = False
        with os.scandir(self._descriptors.root) as scan:
            self._layered = next(scan, None) is not None
        self._record_directory("", self._descriptors.root)

    @property
    def view(self) -> DirectorySink:
        return self

    @property
    def layered(self) -> bool:
        return self._layered

    def seen(self, path: LayerPath) -> Seen | None:
        if not path:
            return Seen(Kind.DIRECTORY)
        parent, name = split(path)
        try:
            directory = self._known.get(parent)
            if directory is None:
                directory = self._open(parent)
            mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
            kind = KIND_BY_TYPE_BITS.get(stat.S_IFMT(mode))
            if kind is Kind.SYMLINK:
                return Seen(kind, os.readlink(name, dir_fd=directory))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os(error, f"look at {path!r}") from error
        return Seen(kind if kind is not None else Kind.FIFO)  # a socket: an existing name that is no link

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        if entry.kind is not Kind.FILE:
            return self._put_other(entry)
        path = entry.path
        posix = entry.posix
        if posix is None:
            raise MissingFacet(path, "POSIX")
        parent, _, name = path.rpartition("/")
        mode = posix.mode
        # Set-id bits come after owner and content, which clear them.
        working = mode & 0o777 | self._writable
        reshaped: bool | None = None
        try:
            directory = self._known.get(parent)
            if directory is None:
                directory = self._open(parent)
            try:
                file = os.open(name, _CREATE, working, dir_fd=directory)
            except FileExistsError:
                reshaped = self._clear(directory, name, path)
                file = os.open(name, _CREATE, working, dir_fd=directory)
            try:
                if content is not None:
                    if content.extents is None:
                        size = 0
                        for chunk in content.chunks():
                            done = os.write(file, chunk)
                            if done != len(chunk):
                                write_rest(file, chunk, done)
                            size += len(chunk)
                        if size != entry.size:
                            raise SizeMismatch(f"content of {path!r}", expected=entry.size, actual=size)
                    else:
                        write_sparse(file, content, path)
                inherits = directory in self._inheriting
                if posix.uid != self._uid or posix.gid != self._gid or inherits:
                    if inherits:
                        self._metadata.drop_xattrs(file, posix.xattrs)
                    self._metadata.set_owner(file, path, posix, inherits)
                if posix.xattrs:
                    self._metadata.set_xattrs(file, path, posix.xattrs)
                if mode != working or mode & self._umask or inherits or posix.xattrs:
                    os.fchmod(file, mode)
                mtime = posix.mtime
                os.utime(file, ns=(mtime, mtime))
                if not EARLIEST <= mtime <= LATEST:
                    self._metadata.check_time(os.fstat(file), path, mtime)
            finally:
                os.close(file)
        except OSError as error:
            raise from_os(error, f"write {path!r}") from error
        return reshaped

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        parent, name = split(path)
        from_parent, from_name = split(target)
        reshaped: bool | None = None
        try:
            directory, source = self._open_both(parent, from_parent)
            try:
                mode = os.stat(from_name, dir_fd=source, follow_symlinks=False).st_mode
            except FileNotFoundError:
                raise NotFound(f"hard link {path!r}: its target {target!r} is not there") from None
            if stat.S_ISDIR(mode):
                raise InvalidInput(f"hard link {path!r}: its target {target!r} is a directory")
            try:
                os.link(from_name, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
            except FileExistsError:
                if target.startswith(path + "/"):
                    raise InvalidInput(f"hard link {path!r}: it would replace its own target {target!r}") from None
                reshaped = self._clear(directory, name, path)
                os.link(from_name, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            raise from_os(error, f"link {path!r} to {target!r}") from error
        return reshaped

    def stream(self, path: LayerPath, name: str, content: Content) -> None:  # noqa: ARG002
        self._losses.record(Loss(path, f"alternate data stream {name!r}", "this file system has none"))

    def whiteout(self, path: LayerPath) -> bool | None:
        parent, name = split(path)
        try:
            return self._clear(self._open(parent), name, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os(error, f"remove {path!r}") from error

    def opaque(self, path: LayerPath, record: PutRecord) -> bool | None:
        return prune(self, path, record)

    def names(self, directory: LayerPath) -> Iterable[tuple[str, bool]]:
        try:
            with os.scandir(self._open(directory)) as scan:
                return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in scan]
        except OSError as error:
            raise from_os(error, f"list {directory!r}") from error

    def remove(self, path: LayerPath) -> None:
        self.whiteout(path)

    def commit(self) -> Losses:
        """Set the times and restrictive modes of directories; returns the losses."""
        try:
            self._finish_directories()
        except OSError as error:
            raise from_os(error, "set the times of directories") from error
        self._descriptors.close()
        return self._losses

    def abort(self) -> None:
        """Close the directories. What was written stays."""
        self._descriptors.close()

    # Directories

    def _open_root(self, root: str | os.PathLike[str]) -> int:
        try:
            return open_root(root)
        except Denied:
            if self._root_user:
                raise
            try:
                self._modes[""] = grant_access(None, root)
            except OSError:
                pass  # another user's: the second try raises the same error
            return open_root(root)

    def _open(self, path: str) -> int:
        """The descriptor of a directory, which gets the permissions that this user needs."""
        descriptor = self._known.get(path)
        if descriptor is not None:
            return descriptor
        try:
            return self._descriptors.open(path)
        except PermissionError:
            if self._root_user:
                raise
            return self._unlock(path)

    def _record_directory(self, path: str, descriptor: int) -> None:
        """Record the time of a directory and what it gives to new files, once, before anything in it changes."""
        parent, _, name = path.rpartition("/")
        if name in self._plain.get(parent, ()):
            self._inheriting.discard(descriptor)
            return
        status = os.fstat(descriptor)
        self._times.setdefault(parent, {}).setdefault(name, status.st_mtime_ns)
        if status.st_mode & stat.S_ISGID or self._has_default_acl(descriptor):
            self._inheriting.add(descriptor)
        else:
            self._inheriting.discard(descriptor)
        if not self._root_user and status.st_mode & 0o700 != 0o700 and status.st_uid == self._uid:
            self._modes.setdefault(path, stat.S_IMODE(status.st_mode))
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode) | 0o700)

    def _open_both(self, one: str, other: str) -> tuple[int, int]:
        """Open two directories, so that opening one does not evict the other."""
        known = self._known
        while True:
            first, second = self._open(one), self._open(other)
            if known.get(one) == first and known.get(other) == second:
                return first, second

    def _unlock(self, path: str) -> int:
        """Open a directory of this user whose mode denies access; `commit` restores the mode."""
        parent, name = split(path)
        directory = self._open(parent)
        self._modes.setdefault(path, grant_access(directory, name))
        return self._descriptors.open(path)

    def _has_default_acl(self, descriptor: int) -> bool:
        try:
            return "system.posix_acl_default" in host.list_xattrs(descriptor)
        except OSError:
            return False

    def _put_directory(self, entry: Entry, posix: Posix) -> bool | None:
        path = entry.path
        mode = posix.mode
        working = mode if self._root_user else mode | 0o700
        reshaped: bool | None = None
        existed = not path
        parent, _, name = path.rpartition("/")
        if path:
            directory = self._known.get(parent)
            if directory is None:
                directory = self._open(parent)
            try:
                os.mkdir(name, working, dir_fd=directory)
            except FileExistsError:
                if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                    existed = True
                else:
                    self._clear(directory, name, path)
                    os.mkdir(name, working, dir_fd=directory)
                    reshaped = True
            inherits = directory in self._inheriting
        else:
            inherits = False
        if (
            existed
            or inherits
            or posix.xattrs
            or mode & self._special
            or posix.uid != self._uid
            or posix.gid != self._gid
        ):
            if parent in self._plain:
                self._plain[parent].discard(name)
            descriptor = self._open(path)
            if existed or inherits:
                self._metadata.drop_xattrs(descriptor, posix.xattrs)
            self._metadata.set_owner(descriptor, path, posix, existed or inherits)
            if posix.xattrs:
                self._metadata.set_xattrs(descriptor, path, posix.xattrs)
            os.fchmod(descriptor, working)
            if mode & stat.S_ISGID or "system.posix_acl_default" in posix.xattrs:
                self._inheriting.add(descriptor)
            elif not inherits:
                self._inheriting.discard(descriptor)
        elif parent in self._plain:
            self._plain[parent].add(name)
        else:
            self._plain[parent] = {name}
        # After opening it, which records the time on disk.
        row = self._times.get(parent)
        if row is None:
            row = self._times[parent] = {}
        row[name] = posix.mtime
        if working != mode:
            self._modes[path] = mode
        else:
            self._modes.pop(path, None)
        return reshaped

    def _finish_directories(self) -> None:
        """Set times and restrictive modes, through parents that are opened without following links."""
        root = self._times[""].pop("")
        for parent, row in list(self._times.items()):
            try:
                self._finish_times(self._known.get(parent) or self._descriptors.open(parent), parent, row)
            except OSError as error:
                if not self._is_gone(error):
                    raise
        self._finish_modes()
        try:
            os.utime(self._descriptors.root, ns=(root, root))
        except PermissionError:
            self._losses.record(Loss("", "modification time", "the directory belongs to another user"))
            return
        if not EARLIEST <= root <= LATEST:
            self._metadata.check_time(os.fstat(self._descriptors.root), "", root)

    def _finish_times(self, directory: int, parent: str, row: Mapping[str, int]) -> None:
        for name, mtime in row.items():
            try:
                try:
                    # Opened, since the name may now be a hard link to a file elsewhere.
                    file = os.open(name, _DIRECTORY, dir_fd=directory)
                except PermissionError:
                    status = self._finish_time_unread(directory, name, mtime)
                    if not EARLIEST <= mtime <= LATEST:
                        self._metadata.check_time(status, join(parent, name), mtime)
                    continue
                try:
                    os.utime(file, ns=(mtime, mtime))
                    if not EARLIEST <= mtime <= LATEST:
                        self._metadata.check_time(os.fstat(file), join(parent, name), mtime)
                finally:
                    os.close(file)
            except OSError as error:
                if error.errno == errno.EPERM:  # another user's directory with write permission
                    why = "the directory belongs to another user"
                    self._losses.record(Loss(join(parent, name), "modification time", why))
                elif not self._is_gone(error):
                    raise

    def _finish_time_unread(self, directory: int, name: str, mtime: int) -> os.stat_result:
        """Set the time of a directory that this user may not read, and return its new status."""
        if not self._metadata.handles:
            os.utime(name, ns=(mtime, mtime), dir_fd=directory, follow_symlinks=False)
            return os.stat(name, dir_fd=directory, follow_symlinks=False)
        handle = os.open(name, PATH_ONLY | file_io.O_DIRECTORY, dir_fd=directory)
        try:
            os.utime(host.path_of(handle), ns=(mtime, mtime))
            return os.fstat(handle)
        finally:
            os.close(handle)

    def _is_gone(self, error: OSError) -> bool:
        """Whether the error means that the layer has replaced the directory, or one above it, since."""
        return self._removed and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

    def _finish_modes(self) -> None:
        """Set the modes that deny this user access, deepest directories first."""
        for path in sorted(self._modes, key=lambda path: path.count("/") if path else -1, reverse=True):
            try:
                os.fchmod(self._descriptors.open(path), self._modes[path])
            except OSError as error:
                if not self._is_gone(error):
                    raise

    # Other kinds

    def _put_other(self, entry: Entry) -> bool | None:
        path, posix = entry.path, entry.posix
        if posix is None:
            raise MissingFacet(path, "POSIX")
        try:
            if entry.kind is Kind.DIRECTORY:
                return self._put_directory(entry, posix)
            parent, name = split(path)
            directory = self._known.get(parent)
            if directory is None:
                directory = self._open(parent)
            reshaped: bool | None = None
            while True:
                try:
                    if entry.kind is Kind.SYMLINK:
                        os.symlink(entry.target, name, dir_fd=directory)
                    elif entry.kind is Kind.FIFO or self._policy.devices is Devices.CREATE:
                        major, minor = _device(path, posix)
                        os.mknod(name, posix.mode | TYPE_BITS[entry.kind], os.makedev(major, minor), dir_fd=directory)
                    elif self._policy.devices is Devices.RECORD:
                        self._record_device(directory, name, entry, posix)
                        return reshaped
                    else:
                        self._losses.record(Loss(path, entry.kind.phrase, "devices are skipped by choice"))
                        return self.whiteout(path)
                except FileExistsError:
                    if reshaped is not None:
                        raise
                    reshaped = bool(self._clear(directory, name, path))
                    continue
                break
            try:
                self._metadata.finish_node(directory, name, entry, posix, inherits=directory in self._inheriting)
            except (OSError, Denied):
                os.unlink(name, dir_fd=directory)
                raise
        except OSError as error:
            failed = from_os(error, f"make {entry.kind.phrase} {path or '/'!r}")
            if isinstance(failed, Denied) and entry.kind in (Kind.CHARACTER, Kind.BLOCK):
                failed.hint = "--devices record keeps devices in an attribute instead, --devices skip leaves them out"
            raise failed from error
        return reshaped

    def _record_device(self, directory: int, name: str, entry: Entry, posix: Posix) -> None:
        """Make an empty file whose attribute records the device, or record a loss if the file system has none."""
        path = entry.path
        _device(path, posix)
        inherits = directory in self._inheriting
        file = os.open(name, _CREATE, 0o600, dir_fd=directory)
        try:
            if inherits:
                self._metadata.drop_xattrs(file, posix.xattrs)
            if self._metadata.keep or posix.uid > MOST_ID or posix.gid > MOST_ID:
                self._metadata.set_owner(file, path, posix, inherits)
            try:
                host.set_xattr(file, OVERRIDE, encode_override(entry.kind, posix))
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise
                os.unlink(name, dir_fd=directory)
                self._losses.record(Loss(path, entry.kind.phrase, f"not recorded: {error.strerror}"))
                return
            self._metadata.set_xattrs(file, path, posix.xattrs)
            os.fchmod(file, posix.mode)
            os.utime(file, ns=(posix.mtime, posix.mtime))
            if not EARLIEST <= posix.mtime <= LATEST:
                self._metadata.check_time(os.fstat(file), path, posix.mtime)
        finally:
            os.close(file)

    def _clear(self, directory: int, name: str, path: str) -> bool:
        """Remove ``path``; True for a directory or a link. Raises FileNotFoundError."""
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        try:
            if not stat.S_ISDIR(mode):
                os.unlink(name, dir_fd=directory)
                return stat.S_ISLNK(mode)
            # Closes the descriptors of ``path`` and beneath; that of the parent stays open.
            self._descriptors.forget(path)
            self._removed = True
            remove_tree(directory, name)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Conflict(f"{path!r} cannot be removed: something is mounted there") from error
            if error.errno == errno.ENOENT:
                raise Conflict(f"{path!r} changed while it was removed") from error
            raise
        return True


def _device(path: str, posix: Posix) -> tuple[int, int]:
    """The device numbers, which Linux keeps in 12 and 20 bits. Raises InvalidInput."""
    major, minor = posix.device
    if major >= 1 << 12 or minor >= 1 << 20:
        raise InvalidInput(f"{path!r}: device {major}:{minor}: numbers end at 4095:1048575")
    return major, minor
