# SPDX-License-Identifier: Apache-2.0
"""Reads a Windows layer by the calls of Windows: a base layer as it is on NTFS, any other by exporting it."""

from __future__ import annotations

import ntpath
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Literal

from lamella.changes.model import Buffer, Change, Content, Entry, Kind, Link, Put, Stream, Windows
from lamella.errors import Conflict, InvalidInput, NotFound, Unsupported
from lamella.formats import backup
from lamella.formats.ntfs import basic_information
from lamella.formats.ntfs.basic_information import ALL, DERIVED, DIRECTORY, NORMAL, REPARSE_POINT
from lamella.host.windows.files import GENERIC_READ, Basic, Files, Handle
from lamella.host.windows.system import WindowsSystem
from lamella.layers.windows.contract import LayerChanges
from lamella.layers.windows.layout import FILES, UTILITY, UTILITY_FILES, WindowsLayer, windows_path
from lamella.layers.windows.transport import (
    RECYCLE_BIN,
    TransportChanges,
    content_of,
    entry_of,
    error_context,
    sort_names,
    survey_transported,
)
from lamella.paths import LayerPath

if TYPE_CHECKING:
    from lamella.layers.stack import LayerStack


def basic_from_facet(windows: Windows, *, attributes: bool = True) -> Basic:
    """The attributes and times to set on a file.

    A missing time is the write time. A time before 1601 is 0, which leaves the time of the file unchanged.
    """
    write = windows.write_time

    def ticks(time: int | None) -> int:
        time = write if time is None else time
        return 0 if time is None else max(0, basic_information.ticks_from_ns(time))

    settable = windows.attributes & ALL & ~DERIVED or NORMAL
    return Basic(
        ticks(windows.creation_time),
        ticks(windows.access_time),
        ticks(write),
        ticks(windows.change_time),
        settable if attributes else 0,
    )


def facet_from_basic(basic: Basic) -> Windows:
    """The Windows facet with the attributes and times of a file."""
    ns = basic_information.ns_from_ticks
    return Windows(basic.attributes, ns(basic.creation), ns(basic.access), ns(basic.write), ns(basic.change))


_OF_PARENTS: Final = frozenset({0x80000018, 0x90001018, 0xA000001F, 0xA0000027, 0xA0001027})
"""Tags of reparse points to files of parent layers: IO_REPARSE_TAG_WCI and related tags."""


class NativeContent(Content):
    """Bytes of a file on NTFS. Can be read repeatedly. Raises Conflict if the size of the file has changed."""

    __slots__ = ("_at", "_extents", "_files", "_path", "_root", "_size")

    def __init__(
        self,
        files: Files,
        root: Handle,
        path: str,
        size: int,
        at: int | None = None,
        extents: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self._files = files
        self._root = root
        self._path = path
        self._size = size
        self._at = at
        self._extents = extents

    @property
    def size(self) -> int:
        return self._size

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        return self._extents

    @property
    def stored(self) -> Literal[True]:
        return True

    def chunks(self) -> Iterable[Buffer]:
        with self._files.open_in(self._root, windows_path(self._path), GENERIC_READ) as handle:
            if self._at is None and self._files.standard(handle).size != self._size:
                raise self._changed()
            for at, left in [(self._at or 0, self._size)] if self._extents is None else self._extents:
                if at:
                    self._files.seek(handle, at)
                while left:
                    chunk = self._files.read(handle, min(left, 256 << 10))
                    if not chunk:
                        raise self._changed()
                    yield chunk
                    left -= len(chunk)

    def _changed(self) -> Conflict:
        return Conflict(f"{self._path!r} changed while the layer was read")


class NativeFolder:
    """An open folder on NTFS (`TransportFolder`)."""

    def __init__(self, files: Files, root: Handle) -> None:
        self._files = files
        self._root = root

    def names(self, path: str) -> list[tuple[str, bool]]:
        """A reparse point to a directory is a directory."""
        if not path:
            return self._listed(self._root)
        with self._files.open_in(self._root, windows_path(path), directory=True) as handle:
            return self._listed(handle)

    def head(self, path: str, limit: int) -> bytes:
        with self._files.open_in(self._root, windows_path(path)) as handle:
            data = b""
            while len(data) < limit and (chunk := self._files.read(handle, min(limit - len(data), 256 << 10))):
                data += chunk
            return data

    def windows(self, path: str) -> Windows:
        with self._files.open_in(self._root, windows_path(path)) as handle:
            return facet_from_basic(self._files.basic(handle))

    def size(self, path: str) -> int:
        with self._files.open_in(self._root, windows_path(path)) as handle:
            if self._files.basic(handle).attributes & (DIRECTORY | REPARSE_POINT):
                raise Unsupported(f"{path!r} is not a regular file")
            return self._files.standard(handle).size

    def read_backup(self, path: str) -> tuple[int, backup.Surveyed]:
        with self._files.open_in(self._root, windows_path(path)) as handle:
            size = self._files.standard(handle).size
            at = 0

            def read(count: int) -> bytes:
                nonlocal at
                data = self._files.read(handle, count)
                at += len(data)
                return data

            def skip(count: int) -> int:
                nonlocal at
                passed = min(count, size - at)
                at += passed
                self._files.seek(handle, at)
                return passed

            return survey_transported(read, skip)

    def content(self, path: str, size: int, at: int | None) -> Content:
        return NativeContent(self._files, self._root, path, size, at)

    def _listed(self, handle: Handle) -> list[tuple[str, bool]]:
        return [(one.name, bool(one.attributes & DIRECTORY)) for one in self._files.listing(handle)]


class NativeChanges(LayerChanges):
    """The changes of a layer on NTFS.

    Of a base layer, the files are read with BackupRead: `Files` without the recycle bin, then `UtilityVM/Files`. A
    layer with parents is exported into a folder beside it; `close` removes that. Content can be read until then. The
    caller holds SeBackupPrivilege.
    """

    def __init__(self, layer: WindowsLayer, parents: LayerStack[WindowsLayer] | None, system: WindowsSystem) -> None:
        """Export the layer if it has parents. Raises NotFound, Unsupported (no Containers feature), Denied."""
        self._system = system
        self._files = system.files
        self._layer = ntpath.abspath(os.fspath(layer.path))
        self._base = not parents
        self._closing = ExitStack()
        try:
            place = self._layer
            if parents:
                place = self._export([ntpath.abspath(os.fspath(one.path)) for one in parents.nearest_first()])
            self._root = self._closing.enter_context(self._open(place))
        except BaseException:
            self._closing.close()
            raise

    def __iter__(self) -> Iterator[Change]:
        if self._base:
            return self._walk()
        return TransportChanges(NativeFolder(self._files, self._root)).changes()

    def close(self) -> None:
        """Close the layer, and remove the exported folder."""
        self._closing.close()

    def _open(self, path: str) -> Handle:
        try:
            return self._files.open(path)
        except NotFound:
            raise NotFound(f"the layer {path!r} does not exist") from None

    def _export(self, parents: list[str]) -> str:
        """Export the layer. HCS requires that it is active, and has been prepared once."""
        layers, layer = self._system.layers, self._layer
        above, name = ntpath.split(layer)
        folder = ntpath.join(above, f".{name}.export-{secrets.token_hex(4)}")
        self._open(layer).close()
        layers.require()
        self._files.make_directory(folder)
        self._closing.callback(self._remove, above, ntpath.basename(folder))
        layers.activate(layer)
        self._closing.callback(layers.deactivate, layer)
        layers.prepare(layer, parents)
        layers.unprepare(layer)
        layers.export_layer(layer, folder, parents)
        return folder

    def _remove(self, above: str, name: str) -> None:
        with self._files.open(above) as handle:
            self._files.delete_tree(handle, name)

    # A base layer

    def _walk(self) -> Iterator[Change]:
        seen: dict[tuple[int, bytes], LayerPath] = {}
        folder = NativeFolder(self._files, self._root)
        top = {name.lower() for name, directory in folder.names("") if directory}
        if FILES.lower() not in top:
            raise NotFound(f"{self._layer!r} is not a layer: it has no {FILES}")
        yield from self._tree(LayerPath(FILES), folder, seen)
        if UTILITY.lower() in top and UTILITY_FILES.rpartition("/")[2].lower() in {
            name.lower() for name, _ in folder.names(UTILITY)
        }:
            entry, _, _, _ = self._read(LayerPath(UTILITY))
            yield Put(entry, None)
            yield from self._tree(LayerPath(UTILITY_FILES), folder, seen)

    def _tree(self, top: LayerPath, folder: NativeFolder, seen: dict[tuple[int, bytes], LayerPath]) -> Iterator[Change]:
        todo = [top]
        while todo:
            path = todo.pop()
            if path.lower() == RECYCLE_BIN:
                continue
            entry, content, streams, identity = self._read(path)
            if identity is not None:
                first = seen.setdefault(identity, path)
                if first != path:
                    assert entry.windows is not None  # noqa: S101
                    self._linked = first, entry.windows
                    yield Link(path, first)
                    continue
            yield Put(entry, content)
            for name, stream in streams:
                yield Stream(path, name, stream)
            if entry.kind is Kind.DIRECTORY and entry.windows is not None and entry.windows.reparse is None:
                found = sort_names(path, folder.names(path))
                todo.extend(LayerPath(f"{path}/{name}") for name, _ in reversed(found))

    def _read(
        self, path: LayerPath
    ) -> tuple[Entry, Content | None, list[tuple[str, Content]], tuple[int, bytes] | None]:
        """A file, its content and streams, and its file id if it has several hard links."""
        with self._files.open_in(self._root, windows_path(path)) as handle:
            basic = self._files.basic(handle)
            standard = self._files.standard(handle)
            identity = None
            if standard.links > 1 and not standard.directory:
                identity = self._files.identity(handle)
            with self._files.backup(handle, security=True) as read, error_context(path):
                found = backup.survey(backup.BackupReader(read.read, skip=read.skip))
        if found.reparse is not None and int.from_bytes(found.reparse[:4], "little") in _OF_PARENTS:
            raise InvalidInput(
                f"{path!r} is in a parent of the layer {self._layer!r}", hint="give the parents, the nearest first"
            )
        entry = entry_of(path, facet_from_basic(basic), found, directory=standard.directory)
        streams: list[tuple[str, Content]] = [
            (name, NativeContent(self._files, self._root, f"{path}:{name}", size)) for name, size, _ in found.alternates
        ]
        if entry.kind is not Kind.FILE:
            return entry, None, streams, identity
        extents = [(at, length) for at, length, _ in found.pieces] if found.sparse else None
        content = content_of(found, NativeContent(self._files, self._root, path, found.size, None, extents))
        return entry, content, streams, identity
