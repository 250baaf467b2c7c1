# SPDX-License-Identifier: Apache-2.0
"""Reads the folder of a Windows layer: its changes, and the content of its files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, Literal

from lamella.changes.model import EMPTY, Buffer, Change, Content, Kind, Link, Put, Stream, Whiteout, Windows
from lamella.errors import Conflict, FormatError, LamellaError, NotFound, Unsupported, from_os
from lamella.formats import backup
from lamella.formats.ntfs.basic_information import ARCHIVE, DIRECTORY
from lamella.host import file_io
from lamella.layers.directory.dirfd_cache import Descriptors, open_root
from lamella.layers.windows.contract import LayerChanges
from lamella.layers.windows.folder.index import BASE, IndexReader, LinkFact, PutFact, StreamFact
from lamella.layers.windows.folder.parents import open_index
from lamella.layers.windows.folder.tar_split import FramingReader
from lamella.layers.windows.layout import (
    DIRECTORY_SUFFIX,
    FRAMING,
    INDEX,
    STREAMS,
    TOMBSTONES,
    WindowsLayer,
    disk_path,
    in_transport,
)
from lamella.layers.windows.names import StreamNames
from lamella.layers.windows.tar_source import EMPTY_DATA
from lamella.layers.windows.transport import TransportChanges, survey_transported

_STEP: Final = 256 << 10
_BLOCK_HEADER: Final = 28
"""Bytes between two blocks of a sparse file: WIN32_STREAM_ID and the offset."""


class Folder:
    """An open layer folder; also a `TransportFolder` for folders that Windows exported."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises NotFound, Conflict, Denied."""
        self.path = path
        self._descriptors = Descriptors(open_root(path))
        self._closed = False

    def open(self, path: str) -> int:
        """Open the regular file ``path``; the caller closes the descriptor. Raises NotFound, Conflict, Denied."""
        if self._closed:
            raise Conflict(f"the folder {os.fspath(self.path)!r} is closed")
        parent, _, name = path.rpartition("/")
        try:
            return os.open(name, file_io.READ_FILE, dir_fd=self._descriptors.open(parent))
        except OSError as error:
            raise self.failure(path, error) from error

    def directory(self, path: str) -> int:
        """A descriptor of the directory ``path``, valid until the next call. Raises NotFound, Conflict, Denied."""
        try:
            return self._descriptors.open(path)
        except OSError as error:
            raise self.failure(path, error) from error

    def failure(self, path: str, error: OSError) -> LamellaError:
        """The error for a failed system call on ``path``."""
        return from_os(error, f"read {path!r} of {os.fspath(self.path)!r}")

    def has(self, path: str) -> bool:
        """Whether the regular file ``path`` exists."""
        try:
            os.close(self.open(path))
        except NotFound:
            return False
        return True

    # TransportFolder

    def names(self, path: str) -> list[tuple[str, bool]]:
        try:
            with os.scandir(self.directory(path)) as scan:
                return [(one.name, one.is_dir(follow_symlinks=False)) for one in scan]
        except OSError as error:
            raise self.failure(path, error) from error

    def head(self, path: str, limit: int) -> bytes:
        with open(self.open(path), "rb") as file:
            return file.read(limit)

    def windows(self, path: str) -> Windows:
        """The creation time exists only on hosts that report it; the change time is unknown."""
        status = self._status(path)
        birth = getattr(status, "st_birthtime", None)
        creation = None if birth is None else round(birth * 10_000_000) * 100
        write = status.st_mtime_ns - status.st_mtime_ns % 100
        return Windows(DIRECTORY if stat.S_ISDIR(status.st_mode) else ARCHIVE, creation, None, write)

    def size(self, path: str) -> int:
        status = self._status(path)
        if not stat.S_ISREG(status.st_mode):
            raise Unsupported(f"{path!r} is not a regular file")
        return status.st_size

    def read_backup(self, path: str) -> tuple[int, backup.Surveyed]:
        with open(self.open(path), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Unsupported(f"{path!r} is not a regular file")

            def skip(count: int) -> int:
                at = file.tell()
                return min(file.seek(count, os.SEEK_CUR), status.st_size) - at

            return survey_transported(file.read, skip)

    def content(self, path: str, size: int, at: int | None) -> Content:
        return FolderContent(self, path, size, at)

    def _status(self, path: str) -> os.stat_result:
        parent, _, name = path.rpartition("/")
        try:
            return os.stat(name, dir_fd=self.directory(parent), follow_symlinks=False)
        except OSError as error:
            raise self.failure(path, error) from error

    def close(self) -> None:
        """Close the folder."""
        if not self._closed:
            self._closed = True
            self._descriptors.close()


class FolderContent(Content):
    """``size`` bytes of a file in the folder, starting ``at``; the whole file if that is None.

    In backup streams, a block header precedes each extent. Raises Conflict if the file has another size than the index
    says.
    """

    __slots__ = ("_at", "_extents", "_folder", "_gap", "_path", "_size", "_whole")

    def __init__(
        self,
        folder: Folder,
        path: str,
        size: int,
        at: int | None,
        extents: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self._folder = folder
        self._path = path
        self._size = size
        self._whole = at is None
        self._at = at or 0
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
        size = self._size
        if self._whole and size <= _STEP and self._extents is None:
            return (self._small(),) if size else ()
        return self._steps()

    def _small(self) -> bytes:
        file = self._folder.open(self._path)
        try:
            data = os.read(file, self._size + 1)
            while len(data) < self._size and (more := os.read(file, self._size + 1 - len(data))):
                data += more
        except OSError as error:
            raise self._folder.failure(self._path, error) from error
        finally:
            os.close(file)
        if len(data) != self._size:
            raise self._changed()
        return data

    def _steps(self) -> Iterator[Buffer]:
        file = self._folder.open(self._path)
        try:
            if self._whole and os.fstat(file).st_size != self._size:
                raise self._changed()
            for at, left in self._places():
                while left:
                    part = os.pread(file, min(left, _STEP), at)
                    if not part:
                        raise self._changed()
                    yield part
                    at += len(part)
                    left -= len(part)
        except OSError as error:
            raise self._folder.failure(self._path, error) from error
        finally:
            os.close(file)

    def _places(self) -> Iterator[tuple[int, int]]:
        if self._extents is None:
            yield self._at, self._size
        elif self._whole:
            yield from self._extents
        else:
            at = self._at
            for _, length in self._extents:
                at += _BLOCK_HEADER
                yield at, length
                at += length

    def _changed(self) -> Conflict:
        return Conflict(
            f"{self._path!r} of {os.fspath(self._folder.path)!r} differs from the index of the layer",
            hint="do not change the files of a layer folder",
        )


class FolderChanges(LayerChanges):
    """The changes in the folder ``layer``: in the order of its index, or without an index, as Windows exports them.

    A folder without an index is a transport folder that HCS ExportLayer wrote; see `TransportChanges`. Its times are
    those of its own files. Content can be read repeatedly until the folder is closed; each iteration gives the changes
    once.

    Raises NotFound, FormatError, Unsupported (a base layer that Windows made), Conflict.
    """

    def __init__(self, layer: WindowsLayer) -> None:
        self.layer = layer
        self._folder = Folder(layer.path)
        self._framing: BinaryIO | None = None

    def __iter__(self) -> Iterator[Change]:
        if self._folder.has(INDEX):
            return self._indexed()
        if self._folder.has(TOMBSTONES):
            return TransportChanges(self._folder).changes()
        raise Unsupported(
            f"{os.fspath(self.layer.path)!r} has neither {INDEX} nor {TOMBSTONES}",
            hint="Windows keeps the metadata of a base layer in NTFS; read it on Windows",
        )

    def tar(self) -> FramingReader | None:
        """The tar that the folder was made from, to be read before `close`; None if its framing is not kept.

        Raises FormatError, Unsupported, Conflict, Denied.
        """
        try:
            self._framing = os.fdopen(self._folder.open(FRAMING), "rb")
        except NotFound:
            return None
        return FramingReader(self._framing, self)

    def close(self) -> None:
        if self._framing is not None:
            self._framing.close()
        self._folder.close()

    def _indexed(self) -> Iterator[Change]:
        folder = self._folder
        with open_index(self.layer) as file:
            reader = IndexReader(file)
            base = reader.form == BASE
            held = STREAMS  # the file that holds the streams of the last file
            owner = ""
            stream_names = StreamNames()
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
                    stream_names.claim(owner, fact.name)
                    yield Stream(fact.path, fact.name, FolderContent(folder, held, fact.size, fact.at))
                elif isinstance(fact, LinkFact):
                    self._linked = fact.target, fact.windows
                    yield Link(fact.path, fact.target)
                else:
                    yield Whiteout(fact.path)
