# SPDX-License-Identifier: Apache-2.0
"""Owners, extended attributes, modes and times of files on disk, by policy; records of owners and devices."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from lamella import host
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import KIND_BY_TYPE_BITS, Entry, Kind, Posix
from lamella.errors import Conflict, Denied, InvalidInput
from lamella.formats.container import encode_varint
from lamella.host import file_io
from lamella.layers.policy import Owners, Policy, refusal
from lamella.times import SECOND, format_rfc3339

ROOTLESS: Final = "user.rootlesscontainers"
OVERRIDE: Final = "user.containers.override_stat"

_SAME: Final = 0xFFFFFFFF
_LONGEST: Final = 256
"""Longest record that is read, in bytes; real ones have twelve, overrides about fifty."""


def encode_owner(uid: int, gid: int) -> bytes:
    """The record of an owner, with "unchanged" for an id of 0, as umoci writes it; 0:0 needs no record."""
    return b"\x08" + encode_varint(uid or _SAME) + b"\x10" + encode_varint(gid or _SAME)


def decode_owner(value: bytes) -> tuple[int | None, int | None]:
    """User and group of a record; None for "unchanged". Raises InvalidInput."""
    if len(value) > _LONGEST:
        raise InvalidInput(f"{ROOTLESS}: a record of {len(value)} bytes")
    ids = [0, 0]
    at = 0
    while at < len(value):
        tag, at = _read_varint(value, at)
        field, form = tag >> 3, tag & 7
        if form == 0 and field:
            number, at = _read_varint(value, at)
            if field in (1, 2):
                ids[field - 1] = number & 0xFFFFFFFF
            continue
        if form == 2:
            length, at = _read_varint(value, at)
            at += length
        elif form in (1, 5):
            at += 8 if form == 1 else 4
        if form not in (1, 2, 5) or field in (0, 1, 2) or at > len(value):
            raise InvalidInput(f"{ROOTLESS}: malformed record {value.hex()}")
    uid, gid = ids
    return None if uid == _SAME else uid, None if gid == _SAME else gid


def _read_varint(value: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(value):
            break
        byte = value[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise InvalidInput(f"{ROOTLESS}: malformed record {value.hex()}")


class Override(Struct):
    """The metadata that a record gives its file. ``mode`` has only the twelve permission bits."""

    uid: int
    gid: int
    mode: int
    kind: Kind | None = None
    """None: keep the kind found on disk."""
    device: tuple[int, int] = (0, 0)


_TYPES: Final = {
    Kind.FILE: "file",
    Kind.DIRECTORY: "dir",
    Kind.SYMLINK: "symlink",
    Kind.FIFO: "pipe",
    Kind.CHARACTER: "char",
    Kind.BLOCK: "block",
}
_KINDS: Final = {name: kind for kind, name in _TYPES.items()}
_FORM: Final = re.compile(
    rb"([0-9]{1,10}):([0-9]{1,10}):([0-7]{1,8})(?::(?:(file|dir|symlink|pipe)|(char|block)-([0-9]{1,10})-([0-9]{1,10})))?"
)


def encode_override(kind: Kind, posix: Posix) -> bytes:
    """The record of a file of ``kind`` with the owner, mode and device numbers of ``posix``."""
    text = f"{posix.uid}:{posix.gid}:{posix.mode:04o}:{_TYPES[kind]}"
    if kind in (Kind.CHARACTER, Kind.BLOCK):
        text += f"-{posix.device[0]}-{posix.device[1]}"
    return text.encode("ascii")


def decode_override(value: bytes) -> Override:
    """Decode a record; type bits in its mode, which some tools write, are dropped. Raises InvalidInput."""
    match = _FORM.fullmatch(value)
    if match is None:
        raise InvalidInput(f"{OVERRIDE}: malformed record {value[:_LONGEST]!r}")
    uid, gid, mode, plain, special, major, minor = match.groups()
    if int(uid) > _SAME or int(gid) > _SAME:
        raise InvalidInput(f"{OVERRIDE}: an id above {_SAME} in {value!r}")
    kind = plain or special
    return Override(
        int(uid),
        int(gid),
        int(mode, 8) & 0o7777,
        _KINDS[kind.decode("ascii")] if kind else None,
        (int(major), int(minor)) if special else (0, 0),
    )


PATH_ONLY: Final = file_io.O_PATH | file_io.O_NOFOLLOW | file_io.O_CLOEXEC
"""Flags for a descriptor that names a file of any kind without opening it."""
_REFUSED: Final = (errno.ENOTSUP, errno.EPERM, errno.EINVAL, errno.ERANGE, errno.E2BIG)
MOST_ID: Final = 0xFFFFFFFE
"""The largest id of a file; to chown(2) the next number means "unchanged"."""
EARLIEST: Final = -(1 << 31) * SECOND
LATEST: Final = ((1 << 31) - 1) * SECOND
"""Times in nanoseconds between which every file system can hold any second: 32 bits with a sign."""
_SET_ID: Final = 0o7000


class Metadata:
    """Sets the metadata of files beneath one directory; what the file system cannot hold is recorded in ``losses``.

    ``root`` is the descriptor of the directory, which the caller closes.
    """

    __slots__ = ("_losses", "_record", "_root", "gid", "handles", "keep", "special", "uid", "umask")

    def __init__(self, root: int, policy: Policy, losses: Losses) -> None:
        self._root = root
        self._losses = losses
        self.uid, self.gid = os.geteuid(), os.getegid()
        self.keep = policy.owners is Owners.KEEP
        self._record = policy.owners is Owners.RECORD
        self.umask = host.current_umask()
        self.special = self.umask | _SET_ID
        """Mode bits that open(2) and mknod(2) do not set on a new file."""
        self.handles = host.names_open_files()
        """Whether a file can be changed through a `PATH_ONLY` descriptor."""

    def finish_node(self, directory: int, name: str, entry: Entry, posix: Posix, *, inherits: bool) -> None:
        """Set owner, attributes, mode and times of a new file that is not open, such as a symbolic link or a device.

        ``inherits``: its directory gives new files its group or a default ACL.

        Another process may have replaced the file. Not following symbolic links is not enough, since the name may be a
        hard link to another file: where the system allows it, the file is pinned by a descriptor and checked.
        """
        path, kind = entry.path, entry.kind
        if posix.uid > MOST_ID or posix.gid > MOST_ID:
            raise owner_out_of_range(path, posix)
        handle = os.open(name, PATH_ONLY, dir_fd=directory) if self.handles else None
        try:
            at: str = name
            within: int | None = directory
            follow = False
            if handle is not None:
                status = os.fstat(handle)
                if KIND_BY_TYPE_BITS.get(stat.S_IFMT(status.st_mode)) is not kind or status.st_nlink > 1:
                    raise Conflict(f"{path!r} changed while it was made")
                at, within, follow = host.path_of(handle), None, True
            if self.keep and (posix.uid != self.uid or posix.gid != self.gid or inherits):
                try:
                    os.chown(at, posix.uid, posix.gid, dir_fd=within, follow_symlinks=follow)
                except OSError as error:
                    _refuse_owner(error, path, posix)
                    raise
            elif self._record and (posix.uid or posix.gid):
                self._losses.record(Loss(path, f"owner {posix.uid}:{posix.gid}", f"a {kind.phrase} takes no attribute"))
            inherits = inherits and kind is not Kind.SYMLINK
            if posix.xattrs or inherits:
                held = at if follow else host.path_beneath(directory, name)
                if inherits:
                    self.drop_xattrs(held, posix.xattrs)
                self.set_xattrs(held, path, posix.xattrs)
            if kind is not Kind.SYMLINK and (posix.mode & self.special or posix.xattrs or inherits):
                if follow:
                    os.chmod(at, posix.mode)
                else:
                    host.chmod_beneath(directory, name, posix.mode)
            os.utime(at, ns=(posix.mtime, posix.mtime), dir_fd=within, follow_symlinks=follow)
            if not EARLIEST <= posix.mtime <= LATEST:
                self.check_time(os.stat(at, dir_fd=within, follow_symlinks=follow), path, posix.mtime)
        finally:
            if handle is not None:
                os.close(handle)

    def set_owner(self, file: int, path: str, posix: Posix, anyway: bool) -> None:
        """Set owner and group of an open file; ``anyway``: also if they are this process's, which it may not have."""
        if posix.uid > MOST_ID or posix.gid > MOST_ID:
            raise owner_out_of_range(path, posix)
        if self.keep:
            if anyway or posix.uid != self.uid or posix.gid != self.gid:
                try:
                    os.fchown(file, posix.uid, posix.gid)
                except OSError as error:
                    _refuse_owner(error, path, posix)
                    raise
        elif self._record and (posix.uid or posix.gid):
            try:
                host.set_xattr(file, ROOTLESS, encode_owner(posix.uid, posix.gid))
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise
                self._losses.record(Loss(path, f"owner {posix.uid}:{posix.gid}", f"not recorded: {error.strerror}"))

    def check_time(self, status: os.stat_result, path: str, mtime: int) -> None:
        """Record a loss if a file, whose time was set to ``mtime``, has another one.

        Linux stores the nearest time that the file system can hold, without an error (utimensat(2)). Needed only for
        times outside of `EARLIEST` to `LATEST`.
        """
        if status.st_mtime_ns != mtime:
            why = f"this file system stores {_format_time(status.st_mtime_ns)} instead"
            self._losses.record(Loss(path, f"modification time {_format_time(mtime)}", why))

    def set_xattrs(self, file: int | str, path: str, xattrs: Mapping[str, bytes]) -> None:
        """Set the attributes that a layer may have; record the others, and those that are refused, as losses."""
        for name, value in xattrs.items():
            why = refusal(name)
            if why is None:
                try:
                    host.set_xattr(file, name, value)
                    continue
                except OSError as error:
                    why = self._why_refused(error)
                    if why is None:
                        raise
            self._losses.record(Loss(path, f"extended attribute {name}", why))

    def _why_refused(self, error: OSError) -> str | None:
        """Why the file system cannot hold an attribute; None for an error of another cause."""
        if error.errno in _REFUSED:
            return error.strerror or str(error)
        if error.errno == errno.ENOSPC and os.fstatvfs(self._root).f_bavail:
            return "the file system has no room for it beside the file's other attributes"
        return None

    def drop_xattrs(self, file: int | str, keep: Mapping[str, bytes]) -> None:
        """Remove the attributes that a layer may have, but those in ``keep``: a layer replaces all metadata."""
        try:
            for name in host.list_xattrs(file):
                if name == "user.rootlesscontainers" or (name not in keep and refusal(name) is None):
                    host.remove_xattr(file, name)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.ENODATA):
                raise


def _format_time(ns: int) -> str:
    try:
        return format_rfc3339(ns)
    except InvalidInput:
        return f"{ns // SECOND} s after 1970"


def _refuse_owner(error: OSError, path: str, posix: Posix) -> None:
    """Raise Denied if ``error`` means that this process may not give a file away to the owner."""
    hint = "--owner record keeps owners in an attribute instead, --owner ignore drops them"
    why = error.strerror
    if error.errno == errno.EINVAL:  # user_namespaces(7)
        why = "this user namespace has no such ids"
        hint = f"unshare --map-auto maps more ids; when files are unpacked, {hint}"
    elif error.errno != errno.EPERM:
        return
    raise Denied(f"give {path or '/'!r} the owner {posix.uid}:{posix.gid}: {why}", hint=hint) from error


def owner_out_of_range(path: str, posix: Posix) -> InvalidInput:
    """The error of an id that no file can have."""
    return InvalidInput(f"{path!r}: owner {posix.uid}:{posix.gid}: ids end at {MOST_ID}")
