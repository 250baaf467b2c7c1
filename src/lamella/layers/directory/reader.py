# SPDX-License-Identifier: Apache-2.0
"""Reads a directory on disk. Links are not followed; only directories and regular files are opened."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Final, Literal, Self

from lamella import host
from lamella.changes.model import KIND_BY_TYPE_BITS, NO_XATTRS, Entry, Kind, Posix
from lamella.errors import Conflict, Denied, InvalidInput, LamellaError, NotFound, StreamConsumed, Unsupported, from_os
from lamella.layers.directory.attrs import OVERRIDE, ROOTLESS, Override, decode_override, decode_owner
from lamella.layers.directory.content import Facts, FileOnDisk, same_bytes
from lamella.layers.directory.dirfd_cache import Descriptors, open_root
from lamella.layers.policy import refusal
from lamella.paths import ROOT, LayerPath, split

_KEPT_LISTINGS: Final = 256
_KEPT_FACTS: Final = 65536
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
_STANDS_FOR: Final = frozenset({Kind.CHARACTER, Kind.BLOCK, Kind.FIFO})


class _Listing:
    """Facts of the files in a listed directory, kept for `open` and `identity`."""

    __slots__ = ("files", "linked", "size")

    def __init__(self) -> None:
        self.files: dict[str, Facts] = {}
        self.linked: dict[str, tuple[int, int]] = {}
        self.size = 0


class DirectoryReader:
    """A `Tree` over the directory ``root``. Use it as a context manager, or `close` it; for one thread at a time.

    Directories are opened component by component without following links, so a link put in place while the tree is
    read is never followed. A file that vanishes, grows, shrinks or is replaced meanwhile raises Conflict. Sockets are
    not listed, since no layer can hold them; `on_socket` is called for each.

    ``owners``: ``"actual"`` takes the ids on disk. ``"recorded"`` takes ids and devices from the attributes that
    `directory.attrs` writes; files without them that belong to this user or to the owner of the root belong to 0. The
    default is ``"recorded"`` for all users but root: a privileged process must not trust attributes that the owner of a
    file can set.

    ``xattrs``: the extended attributes that are reported: ``"all"`` that a layer may have
    (`lamella.layers.policy.refusal`), only file capabilities (``"capability"``), as containerd does, or ``"none"``.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        owners: Literal["actual", "recorded"] | None = None,
        xattrs: Literal["all", "capability", "none"] = "all",
        open_directories: int = 128,
    ) -> None:
        """Open ``root``; at most ``open_directories`` are open at once. Raises NotFound, Conflict, Denied."""
        if os.stat not in os.supports_dir_fd:
            raise Unsupported("this system cannot open files relative to a directory")
        self._descriptors = Descriptors(open_root(root), most=open_directories)
        self._known = self._descriptors.known
        self._recorded = (os.geteuid() != 0) if owners is None else owners == "recorded"
        self._xattrs = xattrs
        self._without_xattrs: set[int] = set()
        """Device numbers of file systems without extended attributes."""
        self._listings: dict[str, _Listing] = {}
        self._facts = 0
        self._near = ""
        self.marks: tuple[str, dict[LayerPath, dict[str, bytes]]] | None = None
        """For a layer of an overlay: a prefix of attribute names, and a mapping in which `entries` and `lookup` record
        such attributes, by path and by the rest of the name. A socket is a whiteout then, as it hides lower files."""
        self.on_socket: Callable[[LayerPath], None] | None = None
        """Called for each socket whenever `entries` or `lookup` meets it."""
        self._own_users: frozenset[int] = frozenset()
        self._own_groups: frozenset[int] = frozenset()
        if self._recorded:
            status = os.fstat(self._descriptors.root)
            self._own_users = frozenset({os.geteuid(), status.st_uid})
            self._own_groups = frozenset({os.getegid(), *os.getgroups(), status.st_gid})

    @property
    def settings(self) -> Hashable:
        """Equal if two trees make the same entries of the same metadata on disk."""
        return self._recorded, self._xattrs, self._own_users, self._own_groups

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all directories; the tree and its files cannot be read any more."""
        self._descriptors.close()
        self._listings.clear()

    def lookup(self, path: LayerPath) -> Entry | None:
        if not path:
            return self._root()
        parent, name = split(path)
        try:
            found = self._read(parent, self._open(parent), [name], _Listing())
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise from_os(error, f"look at {path!r}") from error
        return found[0] if found else None

    def status(self, path: LayerPath) -> os.stat_result | None:
        """The status of ``path``, which is not the root; None if it does not exist."""
        parent, _, name = path.rpartition("/")
        try:
            descriptor = self._known.get(parent)
            if descriptor is None:
                descriptor = self._open(parent)
            return os.lstat(name, dir_fd=descriptor)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise from_os(error, f"look at {path!r}") from error

    def entries(self, directory: LayerPath) -> list[Entry]:
        return self.list_names(directory, None)

    def list_names(self, directory: LayerPath, names: list[str] | None) -> list[Entry]:
        """The entries of ``names`` in ``directory``, None for all. Raises as `entries`; Conflict if a name vanishes."""
        if names is not None and not names:
            return []
        descriptor = self.descriptor(directory)
        listing = _Listing()
        try:
            if names is None:
                names = os.listdir(descriptor)
            if "".join(names).isascii():
                names.sort()
            else:
                names.sort(key=_bytes)
            found = self._read(directory, descriptor, names, listing)
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise Conflict(
                    f"{directory or '/'!r} changed while it was listed: {error.filename!r} is gone"
                ) from error
            raise from_os(error, f"list {directory or '/'!r}") from error
        self._remember(directory, listing)
        return found

    def open_file_entry(self, path: LayerPath, status: os.stat_result, file: int) -> Entry:
        """The entry of a regular file that is open; `open` and `identity` do not know it. Raises OSError."""
        posix = Posix(status[0] & 0o7777, status[4], status[5], status.st_mtime_ns)
        entry = Entry(path, Kind.FILE, posix, status[6])
        if self._recorded:
            self._map_own_ids(posix)
        if self.asks_for_xattrs and not (self._without_xattrs and status[2] in self._without_xattrs):
            held: list[str] = []
            try:
                held = host.list_xattrs(file)
            except OSError as error:
                self._record_without_xattrs(error, status[2])
            if held:
                self._add_xattrs(entry, posix, held, file, _Listing())
        return entry

    def open(self, path: LayerPath) -> FileOnDisk:
        return FileOnDisk(self.descriptor, path, self._facts_of(path))

    def identity(self, path: LayerPath) -> Hashable:
        parent = path.rpartition("/")[0]
        listing = self._listings.get(parent)
        if listing is not None:
            if parent != self._near:
                self._touch(parent, listing)
            return listing.linked.get(path)
        listing = _Listing()
        try:
            self._read(parent, self._open(parent), [split(path)[1]], listing)
        except OSError as error:
            raise from_os(error, f"look at {path!r}") from error
        return listing.linked.get(path)

    def same_content(self, path: LayerPath, other: DirectoryReader, other_path: LayerPath) -> bool:
        """Whether two regular files have the same bytes. Raises as `FileOnDisk`."""
        return same_bytes(
            FileOnDisk(self.descriptor, path, self._facts_of(path)),
            FileOnDisk(other.descriptor, other_path, other._facts_of(other_path)),
        )

    def descriptor(self, directory: str) -> int:
        """The open directory, valid until the next call of any method. Raises NotFound, InvalidInput (no directory)."""
        descriptor = self._known.get(directory)
        if descriptor is not None:
            return descriptor
        try:
            return self._open(directory)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise self._no_directory(LayerPath(directory)) from error
            raise from_os(error, f"open directory {directory!r}") from error

    def _open(self, directory: str) -> int:
        if not self._known:
            raise StreamConsumed("the tree is closed")
        return self._descriptors.open(directory)

    def _no_directory(self, path: LayerPath) -> LamellaError:
        entry = self.lookup(path)
        if entry is None:
            return NotFound(f"{path!r} is not there")
        return InvalidInput(f"{path!r} is a {entry.kind.phrase}, not a directory")

    # Listings

    def _remember(self, directory: str, listing: _Listing) -> None:
        listings = self._listings
        old = listings.pop(directory, None)
        listing.size = len(listing.files) + len(listing.linked)
        self._facts += listing.size - (old.size if old is not None else 0)
        while listings and (self._facts > _KEPT_FACTS or len(listings) >= _KEPT_LISTINGS):
            self._facts -= listings.pop(next(iter(listings))).size
        listings[directory] = listing
        self._near = directory

    def _touch(self, directory: str, listing: _Listing) -> None:
        """Move a listing to the end of the queue: a walk comes back to the directories above."""
        del self._listings[directory]
        self._listings[directory] = listing
        self._near = directory

    def _facts_of(self, path: LayerPath) -> Facts:
        parent = path.rpartition("/")[0]
        listing = self._listings.get(parent)
        if listing is not None:
            if parent != self._near:
                self._touch(parent, listing)
            facts = listing.files.get(path)
            if facts is not None:
                return facts
        listing = _Listing()
        entry = self._root() if not path else None
        if path:
            try:
                found = self._read(parent, self._open(parent), [split(path)[1]], listing)
            except OSError as error:
                if error.errno in _NOT_THERE:
                    raise NotFound(f"{path!r} is not there") from error
                raise from_os(error, f"look at {path!r}") from error
            entry = found[0] if found else None
        facts = listing.files.get(path)
        if facts is None:
            if entry is None:
                raise NotFound(f"{path!r} is not there")
            raise InvalidInput(f"{path or '/'!r} is a {entry.kind.phrase}, not a file")
        return facts

    # Entries

    def _read(self, directory: str, descriptor: int, names: list[str], listing: _Listing) -> list[Entry]:
        """The entries of ``names``; the hot loop of every walk. Raises OSError."""
        prefix = f"{directory}/" if directory else ""
        look, attributes = os.lstat, host.xattr_lister(descriptor)
        asks, without_xattrs, recorded = self.asks_for_xattrs, self._without_xattrs, self._recorded
        directory_kind, file_kind, nothing = Kind.DIRECTORY, Kind.FILE, NO_XATTRS
        files, linked = listing.files, listing.linked
        found: list[Entry] = []
        add = found.append
        for name in names:
            status = look(name, dir_fd=descriptor)
            mode = status[0]
            path = LayerPath(prefix + name)
            mtime = status.st_mtime_ns
            posix = Posix(mode & 0o7777, status[4], status[5], mtime, nothing)
            form = mode & 0o170000
            if form == 0o100000:
                size = status[6]
                entry = Entry(path, file_kind, posix, size)
                holes = size >= 4096 and status.st_blocks << 9 < size
                files[path] = (size, mtime, status[1], status[2], holes)
                if status[3] > 1:
                    linked[path] = (status[2], status[1])
            elif form == 0o040000:
                entry = Entry(path, directory_kind, posix)
            else:
                kind = KIND_BY_TYPE_BITS.get(form)
                if kind is None:
                    if self.on_socket is not None:
                        self.on_socket(path)
                    if self.marks is not None:
                        add(Entry(path, Kind.CHARACTER, posix))
                    continue
                target = ""
                if kind is Kind.SYMLINK:
                    target = os.readlink(name, dir_fd=descriptor)
                    posix.mode = 0o777
                elif kind is not Kind.FIFO:
                    posix.device = (os.major(status.st_rdev), os.minor(status.st_rdev))
                entry = Entry(path, kind, posix, 0, target)
                if status[3] > 1:
                    linked[path] = (status[2], status[1])
            if recorded:
                self._map_own_ids(posix)
            if asks and not (without_xattrs and status[2] in without_xattrs):
                try:
                    held = attributes(name)
                except OSError as error:
                    self._record_without_xattrs(error, status[2])
                    held = None
                if held:
                    self._add_xattrs(entry, posix, held, host.path_beneath(descriptor, name), listing)
            add(entry)
        return found

    def _root(self) -> Entry:
        descriptor = self._open("")
        status = os.fstat(descriptor)
        posix = Posix(status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime_ns)
        entry = Entry(ROOT, Kind.DIRECTORY, posix)
        if self._recorded:
            self._map_own_ids(posix)
        if self.asks_for_xattrs and status.st_dev not in self._without_xattrs:
            held: list[str] = []
            try:
                held = host.list_xattrs(descriptor)
            except OSError as error:
                self._record_without_xattrs(error, status.st_dev)
            if held:
                self._add_xattrs(entry, posix, held, descriptor, _Listing())
        return entry

    @property
    def asks_for_xattrs(self) -> bool:
        """Whether extended attributes matter for the entries."""
        return host.HAS_XATTRS and (self._xattrs != "none" or self._recorded or self.marks is not None)

    def _map_own_ids(self, posix: Posix) -> None:
        """Give the ids of this user to root."""
        if posix.uid in self._own_users:
            posix.uid = 0
        if posix.gid in self._own_groups:
            posix.gid = 0

    def _record_without_xattrs(self, error: OSError, device: int) -> None:
        """Record that a file system has no extended attributes, so that it is asked only once; raise other errors."""
        if error.errno == errno.ENOTSUP:
            self._without_xattrs.add(device)
            return
        raise error

    def _add_xattrs(self, entry: Entry, posix: Posix, held: list[str], file: int | str, listing: _Listing) -> None:
        """Complete a new ``entry`` by its extended attributes."""
        xattrs: dict[str, bytes] = {}
        path = entry.path
        try:
            for name in sorted(held):
                if self.marks is not None and name.startswith(self.marks[0]):
                    prefix, noted = self.marks
                    noted.setdefault(path, {})[name[len(prefix) :]] = host.get_xattr(file, name)
                if refusal(name) is not None:
                    continue
                if self._xattrs == "all" or (self._xattrs == "capability" and name == "security.capability"):
                    xattrs[name] = host.get_xattr(file, name)
            if self._recorded:
                if ROOTLESS in held:
                    uid, gid = decode_owner(host.get_xattr(file, ROOTLESS))
                    posix.uid = posix.uid if uid is None else uid
                    posix.gid = posix.gid if gid is None else gid
                if OVERRIDE in held:
                    self._apply_override(entry, posix, decode_override(host.get_xattr(file, OVERRIDE)), listing)
        except PermissionError as error:
            raise Denied(f"{path!r}: its extended attributes cannot be read: {error.strerror}") from error
        except InvalidInput as error:
            raise InvalidInput(f"{path!r}: {error}") from error
        except OSError as error:
            if error.errno == errno.ENODATA:
                raise Conflict(f"{path!r} changed while it was read: an extended attribute is gone") from error
            raise
        if xattrs:
            posix.xattrs = xattrs

    def _apply_override(self, entry: Entry, posix: Posix, override: Override, listing: _Listing) -> None:
        """Give ``entry`` the owner, the mode and the kind of its record."""
        posix.mode, posix.uid, posix.gid = override.mode, override.uid, override.gid
        kind = override.kind
        if kind is None or kind is entry.kind:
            return
        if entry.kind is not Kind.FILE or kind not in _STANDS_FOR:
            raise Unsupported(f"{entry.path!r} is a {entry.kind.phrase}, and is recorded as a {kind.phrase}")
        entry.kind, entry.size, posix.device = kind, 0, override.device
        listing.files.pop(entry.path, None)


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
