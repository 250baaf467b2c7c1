# SPDX-License-Identifier: Apache-2.0
"""Transport folders of the Host Compute Service (HCS), and the backup streams of the files in them.

A transport folder holds the changes of a layer with parents, as HCS ExportLayer writes and ImportLayer reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Literal, Protocol

from lamella.changes.model import EMPTY, Buffer, Change, Content, Entry, Kind, Put, Stream, Whiteout, Windows, dense
from lamella.errors import (
    FormatError,
    InvalidInput,
    NotFound,
    SizeMismatch,
    UnsafePath,
    Unsupported,
)
from lamella.formats import backup
from lamella.formats.ntfs import extended_attributes, names, reparse
from lamella.formats.ntfs.basic_information import DIRECTORY, REPARSE_POINT
from lamella.formats.ntfs.extended_attributes import ExtendedAttribute
from lamella.layers.windows.layout import DIRECTORY_SUFFIX, FILES, HIVES, TOMBSTONES, TOMBSTONES_HEAD
from lamella.layers.windows.tar_source import EMPTY_DATA, EmptyData
from lamella.paths import LayerPath, parse_path

RECYCLE_BIN: Final = "files/$recycle.bin"
_LONGEST_LIST: Final = 64 << 20
_PREFIX: Final = 4
"""Bytes of the attributes before the backup streams."""


class TransportFolder(Protocol):
    """Read access to a transport folder. Paths have slashes, and lead through no reparse point."""

    def names(self, path: str) -> list[tuple[str, bool]]:
        """The names in a directory, unordered, each with whether it is a directory."""
        ...

    def head(self, path: str, limit: int) -> bytes:
        """The first bytes of a file, at most ``limit``. Raises NotFound."""
        ...

    def windows(self, path: str) -> Windows:
        """Attributes and times of the file itself, those that this host knows."""
        ...

    def size(self, path: str) -> int:
        """The size of a regular file, in bytes. Raises Unsupported for any other file."""
        ...

    def read_backup(self, path: str) -> tuple[int, backup.Surveyed]:
        """The attributes at the start of a file, and a survey of its backup streams. Raises FormatError."""
        ...

    def content(self, path: str, size: int, at: int | None) -> Content:
        """``size`` bytes of a file from the offset ``at``; the whole file if that is None. Can be read repeatedly."""
        ...


class StreamContent(Content):
    """The content of the data streams that a survey found in a file of a transport folder."""

    __slots__ = ("_folder", "_found", "_path")

    def __init__(self, folder: TransportFolder, path: str, found: backup.Surveyed) -> None:
        self._folder = folder
        self._path = path
        self._found = found

    @property
    def size(self) -> int:
        return self._found.size

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        return tuple((offset, length) for offset, length, _ in self._found.pieces) if self._found.sparse else None

    @property
    def stored(self) -> Literal[True]:
        return True

    def chunks(self) -> Iterable[Buffer]:
        for _, length, at in self._found.pieces:
            yield from self._folder.content(self._path, length, at).chunks()


def survey_transported(read: Callable[[int], bytes], skip: Callable[[int], int]) -> tuple[int, backup.Surveyed]:
    """The attributes at the start of a file in transport, and a survey of the backup streams after them.

    ``read`` and ``skip`` are those of `BackupReader`. Raises FormatError.
    """
    prefix = read(_PREFIX)
    if len(prefix) != _PREFIX:
        raise FormatError("attributes", 0, f"{len(prefix)} of {_PREFIX} bytes")
    return int.from_bytes(prefix, "little"), backup.survey(backup.BackupReader(read, skip=skip, at=_PREFIX))


class TransportChanges:
    """The changes in a transport folder: directories before their content, names in the order of their bytes."""

    def __init__(self, folder: TransportFolder) -> None:
        self._folder = folder
        self._tombstones: dict[str, list[LayerPath]] = {}
        self._delta_times: Windows | None = None

    def changes(self) -> Iterator[Change]:
        """The changes, once. Whiteouts follow their directory. Raises FormatError, UnsafePath, Unsupported."""
        self._read_tombstones()
        todo: list[tuple[LayerPath, bool]] = [
            (LayerPath(name), directory)
            for name, directory in reversed(self._names(""))
            if name.lower() != TOMBSTONES and not name.lower().startswith("bcd.")
        ]
        while todo:
            path, directory = todo.pop()
            if path.lower() == RECYCLE_BIN:
                continue
            if path in (FILES, HIVES) and directory:
                yield Put(Entry(path, Kind.DIRECTORY, None, 0, "", self._top(path)), None)
            elif path.startswith(FILES + "/"):
                entry, content, streams = self._transported(path, directory=directory)
                yield Put(entry, content)
                for name, stream in streams:
                    yield Stream(path, name, stream)
                directory = entry.kind is Kind.DIRECTORY
            elif path.startswith(HIVES + "/"):
                yield self._hive(path, directory=directory)
            else:
                raise Unsupported(f"{path!r} of the transport folder is neither in Files nor in Hives")
            if directory:
                for gone in self._tombstones.pop(names.folded(path), ()):
                    yield Whiteout(gone)
                todo.extend((LayerPath(f"{path}/{name}"), inner) for name, inner in reversed(self._names(path)))
        for rest in self._tombstones.values():
            raise NotFound(f"{TOMBSTONES} names {rest[0]!r}, but the folder does not have its directory")

    def _names(self, path: str) -> list[tuple[str, bool]]:
        return sort_names(
            path, [one for one in self._folder.names(path) if not one[0].lower().endswith(DIRECTORY_SUFFIX)]
        )

    def _read_tombstones(self) -> None:
        raw = self._folder.head(TOMBSTONES, _LONGEST_LIST + 1)
        if len(raw) > _LONGEST_LIST:
            raise FormatError(TOMBSTONES, _LONGEST_LIST, f"more than {_LONGEST_LIST} bytes")
        lines = [line.rstrip("\r") for line in raw.decode("utf-8-sig", "surrogateescape").split("\n")]
        if lines[0] != TOMBSTONES_HEAD:
            raise FormatError(TOMBSTONES, 0, f"the first line is not {TOMBSTONES_HEAD!r}")
        for line in filter(None, lines[1:]):
            if not line.startswith("\\"):
                raise FormatError(TOMBSTONES, 0, f"{line[:80]!r} does not start with a backslash")
            path = parse_path(f"{FILES}{line}".replace("\\", "/"))
            parent, _, name = path.rpartition("/")
            problem = names.illegal(name)
            if problem is not None or not parent:
                raise UnsafePath(line[:80], problem or "a tombstone for Files itself")
            self._tombstones.setdefault(names.folded(parent), []).append(path)

    def _top(self, path: str) -> Windows:
        """The facet of `Files` or `Hives`. Its times are those of the delta of the SYSTEM hive."""
        if self._delta_times is None:
            found = [name for name, _ in self._names(HIVES) if name.lower() == "system_delta"]
            if not found:
                raise NotFound(f"the folder has no {HIVES}/System_Delta, which holds the times of its directories")
            self._delta_times = _masked(self._folder.windows(f"{HIVES}/{found[0]}"))
        times = self._delta_times
        attributes = self._folder.windows(path).attributes | DIRECTORY
        return Windows(attributes, times.creation_time, times.access_time, times.write_time, times.change_time)

    def _hive(self, path: LayerPath, *, directory: bool) -> Put:
        windows = _masked(self._folder.windows(path))
        if directory:
            return Put(Entry(path, Kind.DIRECTORY, None, 0, "", windows), None)
        size = self._folder.size(path)
        return Put(Entry(path, Kind.FILE, None, size, "", windows), self._folder.content(path, size, None))

    def _transported(
        self, path: LayerPath, *, directory: bool
    ) -> tuple[Entry, Content | None, list[tuple[str, Content]]]:
        place = path + DIRECTORY_SUFFIX if directory else path
        with error_context(path):
            attributes, found = self._folder.read_backup(place)
        windows = self._folder.windows(place)
        windows.attributes = attributes | DIRECTORY if directory else attributes
        entry = entry_of(path, windows, found, directory=directory)
        streams = [(name, self._folder.content(place, size, at)) for name, size, at in found.alternates]
        if entry.kind is not Kind.FILE:
            return entry, None, streams
        return entry, content_of(found, StreamContent(self._folder, place, found)), streams


def sort_names(path: str, found: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Sort the names in the directory ``path`` by their bytes. Raises UnsafePath for a name that NTFS cannot have."""
    for name, _ in found:
        problem = names.illegal(name)
        if problem is not None:
            raise UnsafePath(f"{path}/{name}", problem)
    return sorted(found, key=lambda one: one[0].encode("utf-8", "surrogateescape"))


@contextmanager
def error_context(path: str) -> Iterator[None]:
    """Name the file ``path`` in each FormatError of the block."""
    try:
        yield
    except FormatError as error:
        raise FormatError(error.structure, error.offset, f"{path!r}: {error.problem}") from None


def entry_of(path: LayerPath, windows: Windows, found: backup.Surveyed, *, directory: bool) -> Entry:
    """The entry that a survey of backup streams describes. Fills in ``windows``. Raises FormatError."""
    with error_context(path):
        extended = found.extended_attributes
        attributes = extended_attributes.decode(extended) if extended else []
        point = None if found.reparse is None else reparse.decode(found.reparse)
    windows.security_descriptor = found.security_descriptor
    if attributes:
        windows.extended_attributes = {one.name.decode("utf-8", "surrogateescape"): one.value for one in attributes}
    windows.reparse = found.reparse
    if isinstance(point, (reparse.Symlink, reparse.MountPoint)):
        windows.attributes |= REPARSE_POINT
        return Entry(path, Kind.SYMLINK, None, 0, reparse.target(point), windows)
    if directory:
        return Entry(path, Kind.DIRECTORY, None, 0, "", windows)
    return Entry(path, Kind.FILE, None, found.size, "", windows)


def content_of(found: backup.Surveyed, content: Content) -> Content:
    """The content of a file; `EMPTY_DATA` for an empty data stream."""
    if found.size:
        return content
    return EMPTY_DATA if found.has_data else EMPTY


def _masked(windows: Windows) -> Windows:
    """Set creation and access time to the write time, as hcsshim does for files without backup streams."""
    windows.creation_time = windows.access_time = windows.write_time
    return windows


class BackupStreams:
    """Writes the backup streams of one file to ``write``; small streams in a single call."""

    __slots__ = ("_held", "_position", "_windows", "_write", "_writer", "extents")

    def __init__(self, write: Callable[[Buffer], object], windows: Windows) -> None:
        self._write = write
        self._windows = windows
        self._held: list[Buffer] = []
        self._position = 0
        self._writer = backup.BackupWriter(self._take)
        self.extents: Sequence[tuple[int, int]] | None = None
        """The extents of the content if it has holes."""

    def head(self, content: Content | None, size: int, *, prefix: bytes = b"", sparse: bool = True) -> int | None:
        """Write ``prefix`` and all streams but the alternate ones; return the offset of the content, if any.

        With ``sparse``, holes are left out as BackupRead leaves them out; otherwise they are written as zeros.
        """
        windows = self._windows
        if prefix:
            self._take(prefix)
        writer = self._writer
        if windows.security_descriptor:
            writer.small(backup.SECURITY_DATA, windows.security_descriptor)
        if windows.extended_attributes:
            writer.small(backup.EA_DATA, extended_attributes.encode(_attributes(windows.extended_attributes)))
        if windows.reparse is not None:
            writer.small(backup.REPARSE_DATA, windows.reparse)
        if content is None or (not size and type(content) is not EmptyData):
            return None
        if content.size != size:
            raise SizeMismatch("content", expected=size, actual=content.size)
        extents = content.extents
        if sparse and extents is not None and list(extents) != [(0, size)]:
            self.extents = tuple(extents)
            return self._sparse(content, size)
        writer.stream(backup.DATA, size)
        at = self._position
        for chunk in content.chunks() if extents is None else dense(content):
            writer.data(chunk)
            self.flush()
        writer.finish()
        return at

    def _sparse(self, content: Content, size: int) -> int:
        writer = self._writer
        assert self.extents is not None  # noqa: S101
        writer.stream(backup.DATA, 0, attributes=backup.SPARSE_ATTRIBUTE)
        at = self._position
        starts = iter(self.extents)
        left = 0
        for chunk in content.chunks():
            view = memoryview(chunk)
            while view:
                if not left:
                    offset, left = next(starts)
                    writer.stream(backup.SPARSE_BLOCK, left, offset=offset)
                part = view[:left]
                writer.data(part)
                self.flush()
                left -= len(part)
                view = view[len(part) :]
        writer.stream(backup.SPARSE_BLOCK, 0, offset=size)
        return at

    def alternate(self, name: str, content: Content) -> int:
        """Write an alternate data stream; return the offset of its content."""
        self._writer.stream(backup.ALTERNATE_DATA, content.size, name=backup.stream_name(name))
        at = self._position
        for chunk in content.chunks() if content.extents is None else dense(content):
            self._writer.data(chunk)
            self.flush()
        self._writer.finish()
        return at

    def _take(self, chunk: Buffer) -> None:
        self._held.append(chunk)
        self._position += len(chunk)

    def flush(self) -> None:
        """Write the buffered bytes."""
        if self._held:
            self._write(self._held[0] if len(self._held) == 1 else b"".join(self._held))
            self._held.clear()


def _attributes(attributes: Mapping[str, bytes]) -> list[ExtendedAttribute]:
    """The extended attributes, sorted by name as in the tar; go-winio writes them in random order."""
    found = []
    for name in sorted(attributes):
        try:
            found.append(ExtendedAttribute(name.encode("utf-8", "surrogateescape"), attributes[name]))
        except UnicodeEncodeError as error:
            raise InvalidInput(f"malformed name of an extended attribute {name[:80]!r}: {error.reason}") from None
    return found
