# SPDX-License-Identifier: Apache-2.0
"""Reads the tar of a POSIX layer as changes (OCI image-spec, layer.md)."""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Buffer, Change, Entry, Kind, Link, Opaque, Posix, Put, Whiteout
from lamella.errors import FormatError, UnsafePath
from lamella.formats.tar.reader import TarLimits, TarMember, TarReader
from lamella.paths import LayerPath, join, parse_path

if TYPE_CHECKING:
    from lamella.streams.seekable import SeekableBlob

WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"
_AUFS: Final = ".wh..wh."
_XATTR: Final = "SCHILY.xattr."
_LIBARCHIVE_XATTR: Final = "LIBARCHIVE.xattr."
_OF_WINDOWS: Final = "MSWINDOWS.fileattr"
"""A PAX record of every file in a Windows layer."""
_READ_AS_LINUX: Final = "this is a Windows layer read as a Linux layer; --as windows keeps its metadata"
_PARENTS_CACHED: Final = 16384
_LENGTH_CACHED: Final = 1024
"""The longest parent that is cached, in characters."""
_NODES: Final = {"3": Kind.CHARACTER, "4": Kind.BLOCK, "6": Kind.FIFO}


def tar_changes(
    next_buffer: Callable[[], memoryview],
    *,
    limits: TarLimits | None = None,
    stored: SeekableBlob | None = None,
    end: Callable[[], object] | None = None,
    losses: Losses | None = None,
) -> Iterator[Change]:
    """The changes in a tar, in its order. Content streams from the buffers without a copy.

    ``next_buffer`` is as for `lamella.formats.tar.TarReader`. With ``stored``, content consists of extents of that
    blob, which can be read again. ``end`` is called after the archive and before the iteration ends, so that its errors
    (a wrong digest) keep the sink from committing. ``losses`` gets one entry for the tar of a Windows layer, whose
    files have no owners and modes.

    Raises FormatError, UnsafePath, Exhausted.
    """
    reader = TarReader(next_buffer, facet=Posix, limits=limits)
    parents: dict[str, LayerPath | None] = {}
    file = Kind.FILE
    for member in reader:
        head, _, base = member.name.rpartition("/")
        if not base or base == "." or base == "..":
            path = parse_path(member.name)
            head, _, base = path.rpartition("/")
        try:
            where = parents[head]
        except KeyError:
            where = _parent(head)
            if len(head) <= _LENGTH_CACHED:
                if len(parents) >= _PARENTS_CACHED:
                    parents.clear()
                parents[head] = where
        if where is None:
            continue
        if base[:4] == WHITEOUT:
            marker = _marker(where, base)
            if marker is not None:
                yield marker
            continue
        path = LayerPath(f"{where}/{base}" if where else base)
        flag = member.typeflag
        posix = member.facet
        if member.records is not None:
            posix = _with_xattrs(posix, member.records, member.header_offset)
            if losses is not None and _OF_WINDOWS in member.records:
                losses.record(Loss(path, "Windows metadata of files", _READ_AS_LINUX))
                losses = None
        if flag == "0":
            size = member.size
            if stored is None:
                yield Put(Entry(path, file, posix, size), member)
            else:
                content = BlobExtent(stored, size, member.data_offset, member.stored_size, member.extents)
                yield Put(Entry(path, file, posix, size), content)
        else:
            yield _other(member, path, posix)
    if end is not None:
        end()


def _parent(head: str) -> LayerPath | None:
    """The parsed parent; None in a directory of aufs, which no engine unpacks."""
    path = parse_path(head)
    if WHITEOUT in path:
        for part in path.split("/"):
            if part.startswith(_AUFS):
                return None
            if part.startswith(WHITEOUT):
                raise UnsafePath(head, "a component is named like a whiteout")
    return path


def _marker(where: LayerPath, base: str) -> Change | None:
    if base == OPAQUE:
        return Opaque(where)
    if base.startswith(_AUFS):
        return None
    name = base[len(WHITEOUT) :]
    if name in ("", ".", ".."):
        raise UnsafePath(join(where, base), "this whiteout names its own directory or its parent")
    return Whiteout(join(where, name))


def _other(member: TarMember[Posix], path: LayerPath, posix: Posix) -> Change:
    flag = member.typeflag
    if flag == "5":
        return Put(Entry(path, Kind.DIRECTORY, posix), None)
    if not path:
        raise UnsafePath(member.name, "the root must be a directory")
    if flag == "1":
        target = parse_path(member.linkname)
        if not target:
            raise UnsafePath(member.linkname, f"{path!r} is a hard link to the root")
        return Link(path, target)
    if flag == "2":
        if not member.linkname or "\0" in member.linkname:
            raise FormatError("tar header", member.header_offset, f"the symbolic link {path!r} has no valid target")
        return Put(Entry(path, Kind.SYMLINK, posix, 0, member.linkname), None)
    kind = _NODES.get(flag)
    if kind is None:
        raise FormatError(
            "tar header", member.header_offset, f"{path!r} has the type {flag!r}, which is not allowed in layers"
        )
    if kind is not Kind.FIFO:
        posix = Posix(posix.mode, posix.uid, posix.gid, posix.mtime, posix.xattrs, member.device)
    return Put(Entry(path, kind, posix), None)


def _with_xattrs(posix: Posix, records: Mapping[str, bytes], offset: int) -> Posix:
    """``posix`` with the extended attributes in PAX records; star's form takes precedence over libarchive's."""
    xattrs: dict[str, bytes] = {}
    for key, value in records.items():
        if key.startswith(_XATTR):
            xattrs[key[len(_XATTR) :]] = value
        elif key.startswith(_LIBARCHIVE_XATTR):
            from urllib.parse import unquote

            name = unquote(key[len(_LIBARCHIVE_XATTR) :])
            if _XATTR + name not in records:
                try:
                    xattrs[name] = binascii.a2b_base64(value + b"=" * (-len(value) % 4))
                except binascii.Error as error:
                    raise FormatError("PAX record", offset, f"{key[:80]!r} is not base64: {error}") from error
    if not xattrs:
        return posix
    for name in xattrs:
        if not name or "\0" in name:
            raise FormatError("PAX record", offset, f"malformed name of an extended attribute: {name[:80]!r}")
    return Posix(posix.mode, posix.uid, posix.gid, posix.mtime, xattrs)


class BlobExtent(Struct):
    """Content at an offset of the uncompressed stream of a blob."""

    blob: SeekableBlob
    size: int
    offset: int
    """The offset of the stored bytes in the uncompressed stream."""
    length: int
    """Stored bytes; fewer than ``size`` if the file has holes."""
    extents: Sequence[tuple[int, int]] | None = None

    @property
    def stored(self) -> Literal[True]:
        return True

    def chunks(self) -> Iterable[Buffer]:
        return self.blob.chunks(self.offset, self.length) if self.length else ()
