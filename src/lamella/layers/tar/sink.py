# SPDX-License-Identifier: Apache-2.0
"""Writes changes as the tar of a POSIX layer (OCI image-spec, layer.md), byte for byte as containerd does."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final

from lamella.changes.losses import Loss, Losses
from lamella.changes.model import NO_XATTRS, Buffer, Content, Entry, Kind, Posix, dense
from lamella.changes.whiteouts import PutRecord
from lamella.errors import MissingFacet
from lamella.formats.tar.writer import TarWriter
from lamella.layers.policy import refusal
from lamella.layers.tar.source import OPAQUE, WHITEOUT
from lamella.paths import LayerPath, join, split
from lamella.times import SECOND


class PackedMap:
    """A compact map of paths to records of ``size`` bytes. A later record of a path replaces an earlier one."""

    __slots__ = ("_rows", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: dict[str, _Row] = {}

    def add(self, path: str, record: bytes) -> None:
        """Add a record."""
        parent, _, name = path.rpartition("/")
        row = self._rows.get(parent)
        if row is None:
            row = self._rows[parent] = _Row()
        row.names += name.encode("utf-8", "surrogateescape")
        row.names += b"/"
        row.records += record

    def find(self, path: str) -> bytes | None:
        """The record of ``path``, or None."""
        parent, name = split(path)
        row = self._rows.get(parent)
        place = None if row is None else row.find(name, self._size)
        return None if row is None or place is None else bytes(row.records[place : place + self._size])


class _Row:
    __slots__ = ("_done", "_places", "names", "records")

    def __init__(self) -> None:
        self.names = bytearray()
        self.records = bytearray()
        self._places: dict[bytes, int] = {}
        self._done = 0

    def find(self, name: str, size: int) -> int | None:
        """The offset of the record of ``name``, or None."""
        if self._done < len(self.names):
            new = self.names[self._done :].split(b"/")[:-1]
            first = len(self.records) - size * len(new)
            self._places.update((bytes(one), first + size * at) for at, one in enumerate(new))
            self._done = len(self.names)
        return self._places.get(name.encode("utf-8", "surrogateescape"))


_XATTR: Final = "SCHILY.xattr."
_FLAGS: Final = {
    Kind.FILE: "0",
    Kind.SYMLINK: "2",
    Kind.CHARACTER: "3",
    Kind.BLOCK: "4",
    Kind.DIRECTORY: "5",
    Kind.FIFO: "6",
}


class TarSink:
    """Writes the changes of a layer as a tar: PAX headers only as needed, times in seconds, whiteouts as empty files.

    ``write`` is called with each piece, which is valid until it returns. ``lookup`` returns the metadata of the target
    of a hard link, which the header of the link repeats; without it the sink stores the metadata of all files (about 50
    bytes each). ``root`` includes the root directory, which containerd omits. ``clamp`` is the latest time of a member,
    in nanoseconds (`lamella.times.source_date_epoch`). ``subsecond`` keeps fractions of seconds. ``whiteout_time`` is
    the time of whiteouts and opaque markers.

    Holes are written as zeros; with ``sparse`` they are kept, as GNU tar does in PAX (format 1.0). Metadata that a tar
    cannot hold is omitted and recorded as a loss. `commit` ends the archive and returns the losses.
    """

    __slots__ = (
        "_clamp",
        "_data",
        "_lookup",
        "_losses",
        "_lost",
        "_member",
        "_metadata",
        "_root",
        "_sparse",
        "_subsecond",
        "_whiteout_time",
        "_writer",
    )

    def __init__(
        self,
        write: Callable[[Buffer], object],
        *,
        lookup: Callable[[LayerPath], Entry | None] | None = None,
        root: bool = False,
        clamp: int | None = None,
        subsecond: bool = False,
        whiteout_time: int = 0,
        sparse: bool = False,
        losses: Losses | None = None,
    ) -> None:
        self._writer = TarWriter(write)
        self._member, self._data = self._writer.member, self._writer.data
        self._lookup = lookup
        self._metadata = _PosixMap() if lookup is None else None
        self._root = root
        self._clamp = clamp
        self._subsecond = subsecond
        self._whiteout_time = whiteout_time
        self._sparse = sparse
        self._losses = losses if losses is not None else Losses()
        self._lost: set[str] = set()

    @property
    def view(self) -> None:
        return

    @property
    def layered(self) -> bool:
        return True

    def put(self, entry: Entry, content: Content | None) -> None:
        """Write a member. Raises MissingFacet, SizeMismatch; InvalidInput for metadata that no header can hold."""
        path = entry.path
        posix = entry.posix
        if posix is None:
            raise MissingFacet(path, "POSIX")
        if WHITEOUT in path and self._reads_as_marker(path, entry.kind.value):
            return
        mtime = posix.mtime
        if self._clamp is not None and mtime > self._clamp:
            mtime = self._clamp
        if not self._subsecond:
            mtime -= mtime % SECOND
        records = self._records(path, posix.xattrs) if posix.xattrs else NO_XATTRS
        kind = entry.kind
        if kind is Kind.FILE:
            if self._sparse and content is not None and self._put_sparse(entry, posix, content, mtime, records):
                content = None
            else:
                self._member(
                    path,
                    "0",
                    mode=posix.mode,
                    uid=posix.uid,
                    gid=posix.gid,
                    size=entry.size,
                    mtime=mtime,
                    records=records,
                )
            if content is not None:
                data = self._data
                for chunk in content.chunks() if content.extents is None else dense(content):
                    data(chunk)
            self._writer.finish_member()
        else:
            name: str = path
            if kind is Kind.DIRECTORY:
                if not path and not self._root:
                    return
                name = f"{path}/" if path else "./"
            self._member(
                name,
                _FLAGS[kind],
                mode=posix.mode,
                uid=posix.uid,
                gid=posix.gid,
                size=0,
                mtime=mtime,
                linkname=entry.target,
                device=posix.device,
                records=records,
            )
        if self._metadata is not None and kind is not Kind.DIRECTORY:
            self._metadata.add(path, posix)

    def _put_sparse(
        self, entry: Entry, posix: Posix, content: Content, mtime: int, records: Mapping[str, bytes]
    ) -> bool:
        """Write a file with its holes; False if it has none, or more than readers accept."""
        extents = content.extents
        if extents is None or not self._writer.sparse_member(
            entry.path,
            mode=posix.mode,
            uid=posix.uid,
            gid=posix.gid,
            size=entry.size,
            mtime=mtime,
            extents=extents,
            records=records,
        ):
            return False
        for chunk in content.chunks():
            self._data(chunk)
        return True

    def link(self, path: LayerPath, target: LayerPath) -> None:
        """Write a hard link with the metadata of its target. Raises MissingFacet if that is unknown."""
        if WHITEOUT in path and self._reads_as_marker(path, "hard link"):
            return
        if target in self._lost:
            self._lost.add(path)
            self._losses.record(Loss(path, "hard link", f"its target {target!r} is not kept"))
            return
        posix: Posix | None
        if self._lookup is not None:
            entry = self._lookup(target)
            posix = entry.posix if entry is not None else None
        else:
            assert self._metadata is not None  # noqa: S101  # set if lookup is None
            posix = self._metadata.find(target)
        if posix is None:
            raise MissingFacet(target, "POSIX")
        mtime = posix.mtime if self._clamp is None else min(posix.mtime, self._clamp)
        self._member(
            path,
            "1",
            mode=posix.mode,
            uid=posix.uid,
            gid=posix.gid,
            size=0,
            mtime=mtime if self._subsecond else mtime - mtime % SECOND,
            linkname=target,
            device=posix.device,
            records=self._records(path, posix.xattrs) if posix.xattrs else NO_XATTRS,
        )
        if self._metadata is not None:
            self._metadata.add(path, posix)

    def stream(self, path: LayerPath, name: str, content: Content) -> None:  # noqa: ARG002
        """Record a loss."""
        self._losses.record(Loss(path, f"alternate data stream {name!r}", "a tar of a Linux layer has none"))

    def whiteout(self, path: LayerPath) -> None:
        if WHITEOUT in path and self._reads_as_marker(path, "whiteout"):
            return
        parent, name = split(path)
        self._mark(join(parent, WHITEOUT + name))

    def opaque(self, path: LayerPath, record: PutRecord) -> None:  # noqa: ARG002
        if WHITEOUT in path and self._reads_as_marker(path, "opaque marker"):
            return
        self._mark(join(path, OPAQUE))

    def commit(self) -> Losses:
        """End the archive and return the losses."""
        self._writer.close()
        return self._losses

    def abort(self) -> None:
        """Leave the archive without its end; the caller drops the pieces."""

    def _mark(self, name: str) -> None:
        self._member(name, "0", mode=0, uid=0, gid=0, size=0, mtime=self._whiteout_time, pax=False)

    def _reads_as_marker(self, path: LayerPath, what: str) -> bool:
        """Record a loss and return True if a component of ``path`` would be read as a whiteout or opaque marker."""
        if not any(part.startswith(WHITEOUT) for part in path.split("/")):
            return False
        self._lost.add(path)
        self._losses.record(Loss(path, what, "its name would be read as a whiteout"))
        return True

    def _records(self, path: str, xattrs: Mapping[str, bytes]) -> dict[str, bytes]:
        records: dict[str, bytes] = {}
        for name, value in xattrs.items():
            why = refusal(name)
            if why is None and "=" in name:
                why = "a tar cannot hold a name with '='"
            if why is None:
                records[_XATTR + name] = value
            else:
                self._losses.record(Loss(path, f"extended attribute {name}", why))
        return records


_PACKED: Final = struct.Struct("<HQQq")


class _PosixMap:
    """The metadata of all files so far, packed: few of them are linked to."""

    __slots__ = ("_odd", "_packed")

    def __init__(self) -> None:
        self._packed = PackedMap(_PACKED.size)
        self._odd: dict[str, Posix] = {}

    def add(self, path: LayerPath, posix: Posix) -> None:
        """Store the metadata of ``path``, replacing earlier metadata."""
        if posix.xattrs or posix.device != (0, 0):
            self._odd[path] = posix
        elif self._odd:
            self._odd.pop(path, None)
        try:
            record = _PACKED.pack(posix.mode, posix.uid, posix.gid, posix.mtime)
        except struct.error:
            record = bytes(_PACKED.size)
            self._odd[path] = posix
        self._packed.add(path, record)

    def find(self, path: LayerPath) -> Posix | None:
        """The metadata of ``path``, or None."""
        posix = self._odd.get(path)
        if posix is not None:
            return posix
        record = self._packed.find(path)
        if record is None:
            return None
        mode, uid, gid, mtime = _PACKED.unpack(record)
        return Posix(mode, uid, gid, mtime)
