# SPDX-License-Identifier: Apache-2.0
"""A transport folder as Windows writes it (HCS ExportLayer), read: the changes of a layer with parents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

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
from lamella.formats.ntfs.attributes import DIRECTORY, REPARSE_POINT
from lamella.formats.ntfs.extended_attributes import ExtendedAttribute
from lamella.layers.windows.layout import DIRECTORY_SUFFIX, FILES, HIVES, TOMBSTONES, TOMBSTONES_HEAD
from lamella.layers.windows.tar_source import EMPTY_DATA, EmptyData
from lamella.paths import LayerPath, parse_path

RECYCLE: Final = "files/$recycle.bin"
_LONGEST_LIST: Final = 64 << 20


class ExportFolder(Protocol):
    """What a transport folder is asked. Paths have slashes; a directory on the way is never a link."""

    def names(self, path: str) -> list[tuple[str, bool]]:
        """The names in a directory, in no order, with whether each is a directory."""
        ...

    def head(self, path: str, limit: int) -> bytes:
        """At most ``limit`` bytes of a file, from its first on. Raises NotFound."""
        ...

    def windows(self, path: str) -> Windows:
        """Attributes and times of the file itself, as far as this system knows them."""
        ...

    def size(self, path: str) -> int:
        """Bytes of a regular file. Raises Unsupported for another."""
        ...

    def transported(self, path: str) -> tuple[int, backup.Surveyed]:
        """The attributes that a file begins with, and the backup streams after them. Raises FormatError."""
        ...

    def content(self, path: str, size: int, at: int | None) -> Content:
        """Bytes of a file, or all of it where ``at`` is None; opened as often as wanted."""
        ...

    def pieces(self, path: str, found: backup.Surveyed) -> Content:
        """The content that backup streams in a file have."""
        ...


class Exported:
    """The changes of a transport folder: directories before what is in them, names by their bytes."""

    def __init__(self, folder: ExportFolder) -> None:
        self._folder = folder
        self._tombstones: dict[str, list[LayerPath]] = {}
        self._delta_times: Windows | None = None

    def changes(self) -> Iterator[Change]:
        """Each change once, whiteouts right after their directory. Raises FormatError, UnsafePath, Unsupported."""
        self._read_tombstones()
        todo: list[tuple[LayerPath, bool]] = [
            (LayerPath(name), directory)
            for name, directory in reversed(self._names(""))
            if name.lower() != TOMBSTONES and not name.lower().startswith("bcd.")
        ]
        while todo:
            path, directory = todo.pop()
            if path.lower() == RECYCLE:
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
                raise Unsupported(f"{path!r} in a transport folder is neither in Files nor in Hives")
            if directory:
                for gone in self._tombstones.pop(names.folded(path), ()):
                    yield Whiteout(gone)
                todo.extend((LayerPath(f"{path}/{name}"), inner) for name, inner in reversed(self._names(path)))
        for rest in self._tombstones.values():
            raise NotFound(f"the directory of {rest[0]!r}, which {TOMBSTONES} names, is not in the folder")

    def _names(self, path: str) -> list[tuple[str, bool]]:
        return in_order(
            path, [one for one in self._folder.names(path) if not one[0].lower().endswith(DIRECTORY_SUFFIX)]
        )

    def _read_tombstones(self) -> None:
        raw = self._folder.head(TOMBSTONES, _LONGEST_LIST + 1)
        if len(raw) > _LONGEST_LIST:
            raise FormatError(TOMBSTONES, _LONGEST_LIST, f"it has more than {_LONGEST_LIST} bytes")
        lines = [line.rstrip("\r") for line in raw.decode("utf-8-sig", "surrogateescape").split("\n")]
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

    def _top(self, path: str) -> Windows:
        """All times of `Files` and `Hives` are those of the delta of the system's hive."""
        if self._delta_times is None:
            found = [name for name, _ in self._names(HIVES) if name.lower() == "system_delta"]
            if not found:
                raise NotFound(f"the folder has no {HIVES}/System_Delta, which tells the time of its directories")
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
        with about(path):
            attributes, found = self._folder.transported(place)
        windows = self._folder.windows(place)
        windows.attributes = attributes | DIRECTORY if directory else attributes
        entry = entry_of(path, windows, found, directory=directory)
        streams = [(name, self._folder.content(place, size, at)) for name, size, at in found.alternates]
        if entry.kind is not Kind.FILE:
            return entry, None, streams
        return entry, content_of(found, self._folder.pieces(place, found)), streams


def in_order(path: str, found: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """The names in the directory ``path`` by their bytes, once none is found that no layer can have."""
    for name, _ in found:
        problem = names.illegal(name)
        if problem is not None:
            raise UnsafePath(f"{path}/{name}", problem)
    return sorted(found, key=lambda one: one[0].encode("utf-8", "surrogateescape"))


@contextmanager
def about(path: str) -> Iterator[None]:
    """Let a FormatError say which file it is about."""
    try:
        yield
    except FormatError as error:
        raise FormatError(error.structure, error.offset, f"{path!r}: {error.problem}") from None


def entry_of(path: LayerPath, windows: Windows, found: backup.Surveyed, *, directory: bool) -> Entry:
    """The file that backup streams tell of; what they say is added to ``windows``. Raises FormatError."""
    with about(path):
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
    """The content of a file; one without any may have a data stream nevertheless."""
    if found.size:
        return content
    return EMPTY_DATA if found.has_data else EMPTY


def _masked(windows: Windows) -> Windows:
    """As Windows is asked to export what it writes itself: times of creation and access are the time of writing."""
    windows.creation_time = windows.access_time = windows.write_time
    return windows


class BackupStreams:
    """The backup streams of one file, given to ``write``; small ones by a single call."""

    __slots__ = ("_held", "_position", "_windows", "_write", "_writer", "extents")

    def __init__(self, write: Callable[[Buffer], object], windows: Windows) -> None:
        self._write = write
        self._windows = windows
        self._held: list[Buffer] = []
        self._position = 0
        self._writer = backup.BackupWriter(self._take)
        self.extents: Sequence[tuple[int, int]] | None = None
        """Of the content, where it has holes."""

    def head(self, content: Content | None, size: int, *, prefix: bytes = b"", sparse: bool = True) -> int | None:
        """``prefix``, then everything but alternate streams; where the content begins.

        With ``sparse``, holes in the content are left out as BackupRead leaves them; else they are zeros.
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
        """An alternate data stream; where in the file its content begins."""
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
        """Write what is held."""
        if self._held:
            self._write(self._held[0] if len(self._held) == 1 else b"".join(self._held))
            self._held.clear()


def _attributes(attributes: Mapping[str, bytes]) -> list[ExtendedAttribute]:
    """In the order of their names: the tar has them so, and go-winio in any."""
    found = []
    for name in sorted(attributes):
        try:
            found.append(ExtendedAttribute(name.encode("utf-8", "surrogateescape"), attributes[name]))
        except UnicodeEncodeError as error:
            raise InvalidInput(f"malformed name of an extended attribute {name[:80]!r}: {error.reason}") from None
    return found
