# SPDX-License-Identifier: Apache-2.0
"""Writes the changes of a Windows layer as a tar, byte for byte as go-winio's backuptar writes it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.losses import Loss, Losses
from lamella.changes.model import NO_XATTRS, Buffer, Content, Entry, Kind, Windows, dense
from lamella.changes.whiteouts import PutRecord
from lamella.errors import FormatError, InvalidInput, MissingFacet, UnsafePath, Unsupported
from lamella.formats.ntfs import basic_information, extended_attributes, reparse
from lamella.formats.ntfs.basic_information import DIRECTORY, REPARSE_POINT, SPARSE_FILE
from lamella.formats.tar.windows import RecordWriter, times
from lamella.formats.tar.writer import TarWriter
from lamella.layers.tar.sink import PackedMap
from lamella.layers.tar.source import WHITEOUT
from lamella.layers.windows.names import LayerNames, NameRules, lost_stream
from lamella.layers.windows.tar_source import EmptyData
from lamella.paths import LayerPath, join, split

_DIRECTORY_MODE: Final = 0o040000
_DATA_MODE: Final = 0o100000
_REPARSE_MODE: Final = 0o120000
_LINK_MODE: Final = 0o644


class TarDialect(Struct, frozen=True):
    """Variants of the tar."""

    wrap_times: bool = True
    """Let times overflow as in go-winio, which itself reads correct times with the same overflow.

    `windows_tar_changes` takes the overflow back.
    """
    print_names_only: bool = False
    """Write no target for a mount point without a print name, as go-winio; otherwise write its substitute name."""
    empty_sparse_data: bool = False
    """Give each empty sparse file a data stream, as BackupRead does on newer Windows; `EMPTY_DATA` has one anyway."""


class WindowsTarSink:
    """Writes the tar of a Windows layer. Every entry needs a Windows facet; other facets are ignored.

    ``write``, ``lookup`` and ``clamp`` are those of `lamella.layers.tar.sink.TarSink`. ``rules`` say which unusual
    names are written; `windows_tar_changes` needs the same rules to read them. ``dialect`` chooses between variants of
    the tar.

    Holes are written as zeros. The sink records as lost what a tar cannot hold: names that NTFS cannot have, devices,
    and reparse points other than links and mount points. `commit` ends the archive and returns the losses.
    """

    __slots__ = (
        "_clamp",
        "_dialect",
        "_lookup",
        "_losses",
        "_lost",
        "_names",
        "_owner",
        "_records",
        "_remembered",
        "_writer",
    )

    def __init__(
        self,
        write: Callable[[Buffer], object],
        *,
        lookup: Callable[[LayerPath], Entry | None] | None = None,
        clamp: int | None = None,
        rules: NameRules | None = None,
        dialect: TarDialect | None = None,
        losses: Losses | None = None,
    ) -> None:
        self._writer = TarWriter(write)
        self._records = RecordWriter()
        self._names = LayerNames(rules)
        self._lookup = lookup
        self._remembered = LinkMetadata() if lookup is None else None
        self._clamp = clamp
        self._dialect = TarDialect() if dialect is None else dialect
        self._losses = losses if losses is not None else Losses()
        self._lost: set[str] = set()
        self._owner: tuple[LayerPath, int, Windows] | None = None

    @property
    def view(self) -> None:
        return

    @property
    def layered(self) -> bool:
        return True

    def put(self, entry: Entry, content: Content | None) -> None:
        """Raises MissingFacet, SizeMismatch, InvalidInput (the metadata does not fit a tar header)."""
        path, kind = entry.path, entry.kind
        windows = entry.windows
        if windows is None:
            raise MissingFacet(path, "Windows")
        self._owner = None
        if not path or not self._claimed(path, kind.value):
            return
        if kind not in (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK):
            self._lose(path, kind.value, "Windows has none")
            return
        windows = self._timed(windows)
        attributes = windows.attributes | (DIRECTORY if kind is Kind.DIRECTORY else 0)
        point = self._reparse(entry, windows)
        if isinstance(point, reparse.Unknown):
            what = f"reparse point with the tag {point.tag:#x}"
            if kind is not Kind.DIRECTORY:
                self._lose(path, what, "a tar can hold links and mount points only")
                return
            self._losses.record(Loss(path, what, "a tar can hold links and mount points only"))
            attributes &= ~REPARSE_POINT
            point = None

        mode = _DIRECTORY_MODE if attributes & DIRECTORY else 0
        size, flag, target = 0, "0", ""
        if point is not None:
            flag = "2"
            mode |= _REPARSE_MODE
            target = point.print_name if self._dialect.print_names_only else reparse.target(point)
        elif kind is Kind.DIRECTORY:
            flag = "5"
        else:
            size = entry.size
            if attributes & DIRECTORY:
                raise InvalidInput(f"{path!r} is a file, but has the attribute of a directory")
            if size or type(content) is EmptyData or (self._dialect.empty_sparse_data and attributes & SPARSE_FILE):
                mode = _DATA_MODE
        self._writer.member(
            path,
            flag,
            mode=mode,
            uid=0,
            gid=0,
            size=size,
            mtime=windows.write_time or 0,
            linkname=target,
            records=self._records.make(
                attributes,
                creation_time=windows.creation_time,
                access_time=windows.access_time,
                change_time=windows.change_time,
                security_descriptor=windows.security_descriptor,
                extended_attributes=self._kept(path, windows.extended_attributes),
                mount_point=isinstance(point, reparse.MountPoint),
            ),
        )
        if size and content is not None:
            self._data(content)
        self._writer.finish_member()
        self._owner = path, mode, windows
        if self._remembered is not None and kind is not Kind.DIRECTORY:
            self._remembered.add(path, windows)

    def link(self, path: LayerPath, target: LayerPath) -> None:
        """The header repeats the metadata of the target; raises MissingFacet if that is unknown."""
        self._owner = None
        if not self._claimed(path, "hard link"):
            return
        if target in self._lost:
            self._lose(path, "hard link", f"its target {target!r} was dropped")
            return
        windows: Windows | None
        if self._lookup is not None:
            entry = self._lookup(target)
            windows = None if entry is None or entry.windows is None else self._timed(entry.windows)
        else:
            assert self._remembered is not None  # noqa: S101  # one of the two is set
            windows = self._remembered.find(target)
        if windows is None:
            raise MissingFacet(target, "Windows")
        self._writer.member(
            path,
            "1",
            mode=_LINK_MODE,
            uid=0,
            gid=0,
            size=0,
            mtime=windows.write_time or 0,
            linkname=target,
            records=self._records.make(
                windows.attributes,
                creation_time=windows.creation_time,
                access_time=windows.access_time,
                change_time=windows.change_time,
            ),
        )
        if self._remembered is not None:
            self._remembered.add(path, windows)

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        """The stream must follow its file. Raises InvalidInput, SizeMismatch."""
        loss = lost_stream(path, name, self._lost)
        if loss is not None:
            self._losses.record(loss)
            return
        if self._owner is None or self._owner[0] != path:
            raise InvalidInput(f"the alternate data stream {name!r} does not follow its file {path!r}")
        _, mode, windows = self._owner
        size = content.size
        self._writer.member(
            f"{path}:{name}",
            "0",
            mode=mode,
            uid=0,
            gid=0,
            size=size,
            mtime=windows.write_time or 0,
            records=times(windows.access_time, windows.change_time),
        )
        if size:
            self._data(content)
        self._writer.finish_member()

    def whiteout(self, path: LayerPath) -> None:
        self._owner = None
        parent, name = split(path)
        try:
            self._names.directory(parent)
            self._names.check(path, name)
        except UnsafePath as error:
            self._losses.record(Loss(path, "whiteout", str(error)))
            return
        self._writer.member(join(parent, WHITEOUT + name), "0", mode=0, uid=0, gid=0, size=0, mtime=0, pax=False)

    def opaque(self, path: LayerPath, record: PutRecord) -> None:  # noqa: ARG002
        """Raises Unsupported: Windows reads the marker as the whiteout of a file called ``.wh..opq``."""
        raise Unsupported(
            f"{path!r}: Windows layers have no opaque directories",
            hint="compare with the layers below, which gives a whiteout for each removed file",
        )

    def commit(self) -> Losses:
        """End the archive."""
        self._writer.close()
        return self._losses

    def abort(self) -> None:
        """Leave the archive without an end; the caller drops the bytes written so far."""

    def _data(self, content: Content) -> None:
        data = self._writer.data
        for chunk in content.chunks() if content.extents is None else dense(content):
            data(chunk)

    def _lose(self, path: LayerPath, what: str, why: str) -> None:
        self._lost.add(path)
        self._losses.record(Loss(path, what, why))

    def _claimed(self, path: LayerPath, what: str) -> bool:
        """Whether the tar can hold ``path``; otherwise records the loss."""
        parent, _, name = path.rpartition("/")
        try:
            directory = self._names.directory(parent)
            if directory.path != parent:
                raise InvalidInput(f"its directory is spelled {directory.path!r}, which differs in case only")
            if name.startswith(WHITEOUT):
                raise InvalidInput("its name reads as a whiteout")
            self._names.claim(directory, name)
        except InvalidInput as error:
            self._lose(path, what, str(error) if error.hint is None else f"{error} ({error.hint})")
            return False
        return True

    def _reparse(self, entry: Entry, windows: Windows) -> reparse.Reparse | None:
        if windows.reparse is None:
            return reparse.symlink(entry.target) if entry.kind is Kind.SYMLINK else None
        try:
            return reparse.decode(windows.reparse)
        except FormatError as error:
            raise InvalidInput(f"{entry.path!r}: {error}") from None

    def _kept(self, path: LayerPath, attributes: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """The extended attributes that PAX records can hold; records the others as lost."""
        if not attributes:
            return NO_XATTRS
        kept: dict[str, bytes] = {}
        for name, value in attributes.items():
            why = extended_attributes.check(name.encode("utf-8", "surrogateescape"), value)
            if why is None and "=" in name:
                why = "a tar cannot hold a name with '='"
            if why is None:
                kept[name] = value
            else:
                self._losses.record(Loss(path, f"extended attribute {name}", why))
        return kept

    def _timed(self, windows: Windows) -> Windows:
        """``windows`` with clamped and wrapped times."""
        if self._clamp is None and not self._dialect.wrap_times:
            return windows
        return replace(
            windows,
            creation_time=self._time(windows.creation_time),
            access_time=self._time(windows.access_time),
            write_time=self._time(windows.write_time),
            change_time=self._time(windows.change_time),
        )

    def _time(self, ns: int | None) -> int | None:
        if ns is None:
            return None
        if self._clamp is not None and ns > self._clamp:
            ns = self._clamp
        if not self._dialect.wrap_times:
            return ns
        wrapped = basic_information.wrap_time(ns)
        # A time that overflows more than once could not be restored.
        return wrapped if wrapped == ns or basic_information.unwrap_time(wrapped) == ns else ns


_PACKED: Final = struct.Struct("<IBqqqq")


class LinkMetadata:
    """Attributes and times of the files put so far, which the headers of hard links repeat."""

    __slots__ = ("_odd", "_packed")

    def __init__(self) -> None:
        self._packed = PackedMap(_PACKED.size)
        self._odd: dict[str, Windows] = {}

    def add(self, path: LayerPath, windows: Windows) -> None:
        """Record the attributes and times of the file ``path``."""
        stated = windows.creation_time, windows.access_time, windows.write_time, windows.change_time
        present = sum(1 << place for place, time in enumerate(stated) if time is not None)
        if self._odd:
            self._odd.pop(path, None)
        try:
            record = _PACKED.pack(windows.attributes, present, *(time or 0 for time in stated))
        except struct.error:
            record = bytes(_PACKED.size)
            self._odd[path] = Windows(windows.attributes, *stated)
        self._packed.add(path, record)

    def find(self, path: LayerPath) -> Windows | None:
        """The attributes and times of the last file at ``path``, or None."""
        odd = self._odd.get(path)
        if odd is not None:
            return odd
        record = self._packed.find(path)
        if record is None:
            return None
        attributes, present, *packed = _PACKED.unpack(record)
        stated = [time if present & 1 << place else None for place, time in enumerate(packed)]
        return Windows(attributes, stated[0], stated[1], stated[2], stated[3])
