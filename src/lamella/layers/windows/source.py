# SPDX-License-Identifier: Apache-2.0
"""The folder of a Windows layer as a source of changes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO, Final, Self

from lamella.changes.model import EMPTY, NO_XATTRS, Change, Content, Entry, Kind, Link, Put, Stream, Whiteout, Windows
from lamella.errors import FormatError, NotFound, UnsafePath, Unsupported
from lamella.formats import backup
from lamella.formats.ntfs import extended_attributes, names, reparse
from lamella.formats.ntfs.attributes import ARCHIVE, DIRECTORY, REPARSE_POINT
from lamella.layers.windows.framing import FramingReader
from lamella.layers.windows.index import BASE, IndexReader, LinkFact, PutFact, StreamFact
from lamella.layers.windows.parents import open_index
from lamella.layers.windows.place import (
    DIRECTORY_SUFFIX,
    FILES,
    FRAMING,
    HIVES,
    INDEX,
    STREAMS,
    TOMBSTONES,
    TOMBSTONES_HEAD,
    WindowsLayer,
    disk_path,
    in_transport,
)
from lamella.layers.windows.reading import Folder, FolderContent, Pieces
from lamella.layers.windows_tar import EMPTY_DATA
from lamella.paths import LayerPath, parse_path

_RECYCLE: Final = "files/$recycle.bin"
_LONGEST_LIST: Final = 64 << 20


class WindowsChanges:
    """What the folder ``layer`` states: in the order of its index, or where it has none, as Windows exports it.

    A folder without an index is a transport folder that Windows wrote (HCS ExportLayer): directories before what is in
    them, names by their bytes, and right after each directory the whiteouts in it. Its times are those of its own
    files. Content can be opened again until this is closed; the changes are given once for each iteration.

    Raises NotFound, FormatError, Unsupported (a base layer's folder that only Windows can read), Conflict.
    """

    def __init__(self, layer: WindowsLayer) -> None:
        self.layer = layer
        self._folder = Folder(layer.path)
        self._linked: tuple[LayerPath, Windows] | None = None
        self._framing: BinaryIO | None = None

    def lookup(self, path: LayerPath) -> Entry | None:
        """The attributes and times of the target of the link that was given last."""
        if self._linked is None or self._linked[0] != path:
            return None
        return Entry(path, Kind.FILE, None, 0, "", self._linked[1])

    def __iter__(self) -> Iterator[Change]:
        if self._folder.has(INDEX):
            return self._indexed()
        if self._folder.has(TOMBSTONES):
            return _Exported(self._folder).changes()
        raise Unsupported(
            f"{os.fspath(self.layer.path)!r} has neither {INDEX} nor {TOMBSTONES}",
            hint="what Windows keeps of a base layer is in NTFS alone; read it there",
        )

    def tar(self) -> FramingReader | None:
        """The very tar that the folder was made of, to be read until this is closed; None where it is not kept.

        Raises FormatError, Unsupported, Conflict, Denied.
        """
        try:
            self._framing = os.fdopen(self._folder.open(FRAMING), "rb")
        except NotFound:
            return None
        return FramingReader(self._framing, self)

    def close(self) -> None:
        """Let go of the folder."""
        if self._framing is not None:
            self._framing.close()
        self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _indexed(self) -> Iterator[Change]:
        folder = self._folder
        with open_index(self.layer) as file:
            reader = IndexReader(file)
            base = reader.form == BASE
            held = STREAMS  # the file that has the streams of the file put last
            owner = ""
            for fact in reader:
                if isinstance(fact, PutFact):
                    entry = fact.entry
                    owner = path = entry.path
                    place = disk_path(path)
                    held = STREAMS
                    attributes = 0 if entry.windows is None else entry.windows.attributes
                    if in_transport(path, base=base):
                        folder_like = entry.kind is Kind.DIRECTORY or attributes & DIRECTORY
                        held = place + DIRECTORY_SUFFIX if folder_like else place
                    content: Content | None = None
                    if entry.kind is Kind.FILE:
                        if entry.size:
                            content = FolderContent(folder, place, entry.size, fact.at, fact.extents)
                        else:
                            content = EMPTY_DATA if fact.has_data else EMPTY
                    yield Put(entry, content)
                elif isinstance(fact, StreamFact):
                    if fact.path != owner:
                        raise FormatError(INDEX, 0, f"the stream {fact.name!r} does not follow its file {fact.path!r}")
                    yield Stream(fact.path, fact.name, FolderContent(folder, held, fact.size, fact.at))
                elif isinstance(fact, LinkFact):
                    self._linked = fact.target, fact.windows
                    yield Link(fact.path, fact.target)
                else:
                    yield Whiteout(fact.path)


class _Exported:
    """A transport folder as Windows writes it."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._tombstones: dict[str, list[LayerPath]] = {}
        self._delta_times: Windows | None = None

    def changes(self) -> Iterator[Change]:
        self._read_tombstones()
        todo: list[tuple[LayerPath, bool]] = [
            (LayerPath(name), directory)
            for name, directory in reversed(self._names(""))
            if name.lower() != TOMBSTONES and not name.lower().startswith("bcd.")
        ]
        while todo:
            path, directory = todo.pop()
            if path.lower() == _RECYCLE:
                continue
            if path in (FILES, HIVES) and directory:
                yield Put(Entry(path, Kind.DIRECTORY, None, 0, "", self._top()), None)
            elif path.startswith(FILES + "/"):
                entry, content, streams = self._transported(path, directory=directory)
                yield Put(entry, content)
                for name, stream in streams:
                    yield Stream(path, name, stream)
                directory = entry.kind is Kind.DIRECTORY
            elif path.startswith(HIVES + "/"):
                yield self._hive(path, directory=directory)
            else:
                raise Unsupported(f"{path!r} in a transport folder is neither in Files nor in Hives")
            if directory:
                for gone in self._tombstones.pop(names.folded(path), ()):
                    yield Whiteout(gone)
                todo.extend((LayerPath(f"{path}/{name}"), inner) for name, inner in reversed(self._names(path)))
        for rest in self._tombstones.values():
            raise NotFound(f"the directory of {rest[0]!r}, which {TOMBSTONES} names, is not in the folder")

    def _names(self, path: str) -> list[tuple[str, bool]]:
        try:
            with os.scandir(self._folder.directory(path)) as scan:
                found = [(one.name, one.is_dir(follow_symlinks=False)) for one in scan]
        except OSError as error:
            raise self._folder.failure(path, error) from error
        kept = [one for one in found if not one[0].lower().endswith(DIRECTORY_SUFFIX)]
        for name, _ in kept:
            problem = names.illegal(name)
            if problem is not None:
                raise UnsafePath(f"{path}/{name}", problem)
        return sorted(kept, key=lambda one: one[0].encode("utf-8", "surrogateescape"))

    def _read_tombstones(self) -> None:
        text = self._read(TOMBSTONES, _LONGEST_LIST).decode("utf-8-sig", "surrogateescape")
        lines = [line.rstrip("\r") for line in text.split("\n")]
        if lines[0] != TOMBSTONES_HEAD:
            raise FormatError(TOMBSTONES, 0, f"the first line is not {TOMBSTONES_HEAD!r}")
        for line in filter(None, lines[1:]):
            if not line.startswith("\\"):
                raise FormatError(TOMBSTONES, 0, f"{line[:80]!r} does not begin with a backslash")
            path = parse_path(f"{FILES}{line}".replace("\\", "/"))
            parent, _, name = path.rpartition("/")
            problem = names.illegal(name)
            if problem is not None or not parent:
                raise UnsafePath(line[:80], problem or "it names Files itself")
            self._tombstones.setdefault(names.folded(parent), []).append(path)

    def _read(self, path: str, limit: int) -> bytes:
        file = self._folder.open(path)
        with open(file, "rb") as opened:
            data = opened.read(limit + 1)
        if len(data) > limit:
            raise FormatError(path, limit, f"it has more than {limit} bytes")
        return data

    def _top(self) -> Windows:
        """All times of `Files` and `Hives` are those of the delta of the system's hive."""
        if self._delta_times is None:
            found = [name for name, _ in self._names(HIVES) if name.lower() == "system_delta"]
            if not found:
                raise NotFound(f"the folder has no {HIVES}/System_Delta, which tells the time of its directories")
            self._delta_times = _masked(self._status(f"{HIVES}/{found[0]}"), 0)
        times = self._delta_times
        return Windows(DIRECTORY, times.creation_time, times.access_time, times.write_time, times.change_time)

    def _status(self, path: str) -> os.stat_result:
        parent, _, name = path.rpartition("/")
        try:
            return os.stat(name, dir_fd=self._folder.directory(parent), follow_symlinks=False)
        except OSError as error:
            raise self._folder.failure(path, error) from error

    def _hive(self, path: LayerPath, *, directory: bool) -> Put:
        status = self._status(path)
        if directory:
            return Put(Entry(path, Kind.DIRECTORY, None, 0, "", _masked(status, DIRECTORY)), None)
        if not stat.S_ISREG(status.st_mode):
            raise Unsupported(f"{path!r} is no regular file")
        content = FolderContent(self._folder, path, status.st_size, None)
        return Put(Entry(path, Kind.FILE, None, status.st_size, "", _masked(status, ARCHIVE)), content)

    def _transported(
        self, path: LayerPath, *, directory: bool
    ) -> tuple[Entry, Content | None, list[tuple[str, Content]]]:
        place = path + DIRECTORY_SUFFIX if directory else path
        file = self._folder.open(place)
        with open(file, "rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Unsupported(f"{path!r} is no regular file")
            head = opened.read(4)
            if len(head) != 4:
                raise FormatError("attributes", 0, f"{path!r} has {len(head)} of 4 bytes")

            def skip(count: int) -> int:
                at = opened.tell()
                return min(opened.seek(count, os.SEEK_CUR), status.st_size) - at

            try:
                found = backup.survey(backup.BackupReader(opened.read, skip=skip, at=4))
                extended = found.extended_attributes
                attributes = extended_attributes.decode(extended) if extended else []
                point = None if found.reparse is None else reparse.decode(found.reparse)
            except FormatError as error:
                raise FormatError(error.structure, error.offset, f"{path!r}: {error.problem}") from None
        windows = _times(status, int.from_bytes(head, "little"))
        windows.security_descriptor = found.security_descriptor
        if attributes:
            windows.extended_attributes = {one.name.decode("utf-8", "surrogateescape"): one.value for one in attributes}
        windows.reparse = found.reparse
        streams: list[tuple[str, Content]] = [
            (name, FolderContent(self._folder, place, size, at)) for name, size, at in found.alternates
        ]
        if directory:
            windows.attributes |= DIRECTORY
        if isinstance(point, (reparse.Symlink, reparse.MountPoint)):
            windows.attributes |= REPARSE_POINT
            return Entry(path, Kind.SYMLINK, None, 0, reparse.target(point), windows), None, streams
        if directory:
            return Entry(path, Kind.DIRECTORY, None, 0, "", windows), None, streams
        content: Content = Pieces(self._folder, place, found)
        if not found.size:
            content = EMPTY_DATA if found.has_data else EMPTY
        return Entry(path, Kind.FILE, None, found.size, "", windows), content, streams


def _times(status: os.stat_result, attributes: int) -> Windows:
    """What this system knows of the four times: a time of creation on some, and no time of change that means it."""
    birth = getattr(status, "st_birthtime", None)
    creation = None if birth is None else round(birth * 10_000_000) * 100
    write = status.st_mtime_ns - status.st_mtime_ns % 100
    return Windows(attributes, creation, None, write, None, None, NO_XATTRS)


def _masked(status: os.stat_result, attributes: int) -> Windows:
    """As Windows is asked to export what it writes itself: times of creation and access are the time of writing."""
    windows = _times(status, attributes)
    windows.creation_time = windows.access_time = windows.write_time
    return windows
