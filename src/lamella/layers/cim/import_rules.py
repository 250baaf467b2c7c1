# SPDX-License-Identifier: Apache-2.0
"""The rules by which Windows imports a layer into a composite image (``docs/formats/cim.md``), for all writers.

`CimImport` is the common base class of the sinks of forked images and of block images, which differ in links, whiteouts
and lookups.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from msgspec import Struct

from lamella.changes.contracts import Seen
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Buffer, Content, Entry, Kind, Windows, dense
from lamella.errors import InvalidInput, MissingFacet, NotFound
from lamella.formats.ntfs import basic_information as bits
from lamella.formats.ntfs import extended_attributes
from lamella.formats.ntfs.basic_information import ticks_from_ns
from lamella.formats.ntfs.extended_attributes import ExtendedAttribute
from lamella.layers.cim import host_files
from lamella.layers.cim.host_files import HostFiles
from lamella.layers.cim.tree import ATTRIBUTES, KEPT
from lamella.layers.windows.hives import check_hive
from lamella.paths import LayerPath, join

_FLAGS: Final = {
    attributes: sum(flag for flag, attribute in ATTRIBUTES if attributes & attribute)
    for attributes in range(KEPT + 1)
    if not attributes & ~KEPT
}
NO_DESCRIPTOR: Final = bytes.fromhex("01000480") + bytes(16)
"""The descriptor of a file without one, since an image requires it: it grants everyone full access."""


class FileMetadata(Struct):
    """The metadata of a file in an image. Times are FILETIMEs, 0 if unknown."""

    attributes: int
    """FILE_ATTRIBUTE bits; DIRECTORY marks a directory, REPARSE_POINT a file with ``reparse``."""
    creation_time: int = 0
    write_time: int = 0
    change_time: int = 0
    access_time: int = 0
    security: bytes = NO_DESCRIPTOR
    extended_attributes: bytes = b""
    """A chain of FILE_FULL_EA_INFORMATION."""
    reparse: bytes = b""
    """The buffer, starting with the tag."""

    @property
    def flags(self) -> int:
        """The attributes that a file record can hold, as its flags."""
        return _FLAGS[self.attributes & KEPT]


PLAIN_FILE: Final = FileMetadata(bits.NORMAL)
PLAIN_DIRECTORY: Final = FileMetadata(bits.DIRECTORY)
"""The metadata of a generated file, and of an implied parent directory."""


class CimWriter(Protocol):
    """Writes a new image. Paths have ``/`` between names; the parent of a path must exist first.

    Each call is complete when it returns. `commit` comes last; `abort` follows a failed call.
    """

    def put(self, path: str, metadata: FileMetadata, size: int, chunks: Iterable[Buffer] | None) -> Seen | None:
        """Put a file of ``size`` bytes or a directory, replacing what exists; without ``chunks`` the content is zeros.

        A directory over a directory keeps its files. Returns the file that was replaced; a `CimWriter` that is not a
        `ForkWriter` may always return None.
        Raises SizeMismatch, NotFound (the parent directory).
        """
        ...

    def stream(self, path: str, name: str, size: int, chunks: Iterable[Buffer]) -> None:
        """Add an alternate data stream, ``name`` without colons."""
        ...

    def link(self, path: str, target: str) -> None:
        """Add a hard link to a file of this image. Raises NotFound."""
        ...

    def merge_link(self, path: str, target: str) -> None:
        """Add a hard link to a file of a parent, which merging resolves. Raises Unsupported."""
        ...

    def delete(self, path: str) -> None:
        """Remove ``path`` from the image, a directory with everything below it. Raises NotFound."""
        ...

    def tombstone(self, path: str) -> None:
        """Hide ``path`` of the parents when images are merged. Raises Unsupported."""
        ...

    def commit(self) -> None:
        """Complete and close the image."""
        ...

    def abort(self) -> None:
        """Close and remove the image. Can be called repeatedly, and after a failed `commit`."""
        ...


class ForkWriter(CimWriter, Protocol):
    """Writes a new image that has all files of its parent, and can be queried."""

    def seen(self, path: str) -> Seen | None:
        """What exists at ``path``; a reparse point counts as a file, since no path leads through it."""
        ...

    def is_reparse_point(self, path: str) -> bool:
        """Whether the file at ``path`` is a reparse point."""
        ...

    def names(self, directory: str) -> Iterable[tuple[str, bool]]:
        """The names in ``directory``, each with whether it is a directory."""
        ...

    def touched(self, path: str) -> bool:
        """Whether this image, not its parent, put ``path`` or anything below it."""
        ...


_LAST: Final = (1 << 63) - 1
"""The last FILETIME."""
_OF_FILES: Final = KEPT | bits.NORMAL
"""Attributes of files that an image keeps unchanged."""
_HELD: Final = _OF_FILES | bits.DIRECTORY | bits.REPARSE_POINT
"""All attributes that an image can hold."""


class QueuedFile(Struct, frozen=True):
    """A directory or a host file that the commit puts into the image; the file is read from the host's folder."""

    path: LayerPath
    metadata: FileMetadata


class QueuedLink(Struct, frozen=True):
    """A link that the commit creates."""

    path: LayerPath
    target: LayerPath


Queued: TypeAlias = QueuedFile | QueuedLink


class CimImport:
    """The part of a sink that is common to all images: metadata, host files, and work queued for the commit.

    Host files are those that Windows needs outside of the image to start a container: hives and boot files. They are
    written to the folder ``host``, and put into the image by the commit. So are generated hives: a base layer, which
    has no ``parent_folder``, gets its merged hives and a file ``layout``; any other layer gets the hives of
    ``parent_folder`` with its deltas merged in. With ``windows`` False there are no host files and no hives.
    ``dirty`` is that of `merge_deltas`.
    """

    def __init__(
        self,
        writer: CimWriter,
        host: HostFiles,
        parent_folder: Path | None,
        *,
        windows: bool,
        losses: Losses | None,
        dirty: bool = False,
    ) -> None:
        self._dirty = dirty
        self._writer = writer
        self._host = host
        self._parent_folder = parent_folder
        self._windows = windows
        self._losses = losses if losses is not None else Losses()
        self._host_lengths: frozenset[int] = host_files.LENGTHS if windows else frozenset()
        """Lengths of the paths of host files: a cheap test before `is_host_file`."""
        self._queue: dict[str, Queued] = {}
        """What the commit creates, in order, by folded path."""
        self._lengths: set[int] = set()
        """Lengths of the paths in the queue."""
        self._inside: dict[str, set[str]] = {}
        """Folded directory -> its queued children, and its subdirectories with queued paths below them."""

    def commit(self) -> Losses:
        """Generate the hives, put what is queued, and complete the image."""
        if self._windows:
            if self._parent_folder is not None:
                self._merge_hives(self._parent_folder)
            else:
                self._finish_base()
        for queued in self._queue.values():
            if isinstance(queued, QueuedLink):
                self.make_link(queued)
            elif queued.metadata.attributes & bits.DIRECTORY:
                self._writer.put(queued.path, queued.metadata, 0, None)
            else:
                size = self._host.size(queued.path)
                self._writer.put(queued.path, queued.metadata, size, self._host.read(queued.path))
        self._writer.commit()
        return self._losses

    def abort(self) -> None:
        self._writer.abort()
        self._host.discard()

    def hive_logs(self, name: str) -> Iterable[bytes]:  # noqa: ARG002
        """The transaction logs of the hive ``name`` in the parent; none if the parent cannot be read."""
        return ()

    def make_link(self, link: QueuedLink) -> None:
        """Create a queued link."""
        self._writer.link(link.path, link.target)

    def is_host_file(self, entry: Entry) -> bool:
        """Whether the host needs the file outside of the image. Raises InvalidInput for what `check_hive` refuses."""
        path = entry.path
        if len(path) not in self._host_lengths:
            return False
        check_hive(path, entry.kind)
        return entry.kind is Kind.FILE and host_files.is_special(path)

    def put_host_file(self, entry: Entry, content: Content | None, metadata: FileMetadata) -> None:
        """Write a host file to the host's folder, and queue it for the image."""
        path = entry.path
        size = self._host.write(path, _dense(content))
        if size != entry.size:
            raise InvalidInput(f"content of {path!r}: expected {entry.size} bytes, got {size}")
        self._enqueue(QueuedFile(path, metadata))

    def put_file(self, entry: Entry, content: Content | None, metadata: FileMetadata) -> Seen | None:
        """Put any other file, directory or symbolic link; returns what `CimWriter.put` does."""
        if content is None:
            return self._writer.put(entry.path, metadata, entry.size, None)
        extents = content.extents
        if extents is None:
            return self._writer.put(entry.path, metadata, entry.size, content.chunks())
        return self._writer.put(entry.path, metadata, entry.size, dense(content) if extents else None)

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        """Raises InvalidInput for a file of the host, which cannot have streams."""
        if self.is_queued(path) and isinstance(self._queue[host_files.fold(path)], QueuedFile):
            raise InvalidInput(f"alternate data stream {name!r} of {path!r}: a file of the host cannot have streams")
        self._writer.stream(path, name, content.size, dense(content))

    def _enqueue(self, queued: Queued) -> None:
        key = host_files.fold(queued.path)
        self._queue[key] = queued
        self._lengths.add(len(queued.path))
        while key:
            parent = key.rpartition("/")[0]
            inside = self._inside.setdefault(parent, set())
            if key in inside:  # then its parents are, too
                break
            inside.add(key)
            key = parent

    def is_queued(self, path: LayerPath) -> bool:
        """Whether ``path`` is queued for the commit."""
        return self._may_be_queued(path) and host_files.fold(path) in self._queue

    def _may_be_queued(self, path: LayerPath) -> bool:
        """A cheap test that is false for nearly all paths outside of the queue. Folding keeps the length of ASCII."""
        return len(path) in self._lengths or not path.isascii()

    def check_link(self, path: LayerPath) -> None:
        """Raises InvalidInput if a link would replace a file that the host needs."""
        if self._windows:
            check_hive(path, None)
        waiting = self._queue[host_files.fold(path)] if self.is_queued(path) else None
        if isinstance(waiting, QueuedFile) or (self._windows and host_files.is_special(path)):
            raise InvalidInput(f"hard link {path!r}: the host needs a separate file at this path")

    def queue_link(self, path: LayerPath, target: LayerPath) -> None:
        """Queue a link for the commit."""
        self._enqueue(QueuedLink(path, target))

    def drop_queued(self, path: LayerPath, *, inside: bool = False) -> None:
        """Drop what is queued for ``path``, because it was replaced; with ``inside``, also everything below it."""
        queue = self._queue
        if queue and (inside or self._may_be_queued(path)):
            key = host_files.fold(path)
            queue.pop(key, None)
            todo = list(self._inside.pop(key, ())) if inside else []
            while todo:
                key = todo.pop()
                queue.pop(key, None)
                todo.extend(self._inside.pop(key, ()))

    def metadata(self, entry: Entry, windows: Windows) -> FileMetadata:
        """The metadata of a file.

        Raises InvalidInput (a kind that Windows does not have, a time out of range), MissingFacet (no reparse buffer).
        """
        kind, attributes, reparse = entry.kind, windows.attributes, windows.reparse
        if kind is not Kind.FILE or reparse is not None or attributes & ~_OF_FILES:
            attributes = self._attributes(entry, attributes, reparse)
        written = _ticks(windows.write_time, 0)
        created, changed = _ticks(windows.creation_time, written), _ticks(windows.change_time, written)
        accessed = _ticks(windows.access_time, written)
        if not (0 <= written <= _LAST and 0 <= created <= _LAST and 0 <= changed <= _LAST and 0 <= accessed <= _LAST):
            raise InvalidInput(f"{entry.path!r}: a time outside the range of a FILETIME")
        extended = windows.extended_attributes
        return FileMetadata(
            attributes,
            created,
            written,
            changed,
            accessed,
            windows.security_descriptor or NO_DESCRIPTOR,
            _encoded(extended) if extended else b"",
            reparse or b"",
        )

    def _attributes(self, entry: Entry, stated: int, reparse: bytes | None) -> int:
        """The attributes that an image can hold, with the bits that give the kind."""
        kind = entry.kind
        if kind not in (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK):
            raise InvalidInput(f"{entry.path!r} is a {kind.phrase}; Windows has none")
        attributes = stated & ~bits.REPARSE_POINT
        lost = attributes & ~_HELD
        if lost:
            words = ", ".join(bits.name_attributes(lost))
            self._losses.record(Loss(entry.path, f"attributes {words}", "an image cannot hold them"))
        if kind is Kind.DIRECTORY:
            attributes |= bits.DIRECTORY
        elif kind is Kind.FILE:
            attributes &= ~bits.DIRECTORY
        elif reparse is None:
            raise MissingFacet(entry.path, "Windows (a reparse point)")
        return attributes if reparse is None else attributes | bits.REPARSE_POINT

    def _finish_base(self) -> None:
        """Generate the merged hives of a base layer, which are links to its own hives, and the file `layout`."""
        hives = LayerPath("Hives")
        self._host.directory(hives)
        self._enqueue(QueuedFile(hives, PLAIN_DIRECTORY))
        for name, stem in host_files.HIVES.items():
            config = LayerPath(f"{host_files.CONFIG}/{name}")
            source = self._host.find(config)
            if source is None:
                raise InvalidInput(
                    f"the base layer has no registry hive {config}",
                    hint="if it is not a base layer, give its parent",
                )
            base = join(hives, f"{stem}_BASE")
            self._host.link(source, base)
            self.queue_link(base, config)
        layout = LayerPath("layout")
        self._host.write(layout, [host_files.LAYOUT])
        self._enqueue(QueuedFile(layout, PLAIN_FILE))

    def _merge_hives(self, parent: Path) -> None:
        """Merge deltas into the parent's hives. A hive without a delta, or with an empty one, is linked."""
        for name, stem in host_files.HIVES.items():
            delta = self._host.find(f"Hives/{stem}_DELTA")
            base = host_files.find(parent, f"Hives/{stem}_BASE")
            result = LayerPath(f"Hives/{stem}_BASE")
            if delta is None or not delta.stat().st_size:
                if base is not None:
                    self._host.link(base, result)
                continue
            if base is None:
                raise NotFound(f"the parent in {os.fspath(parent)!r} has no hive {stem}_BASE to merge the delta into")
            self._host.merge_hive(base, delta, result, partial(self.hive_logs, name), dirty=self._dirty)
            self._enqueue(QueuedFile(result, PLAIN_FILE))


def _ticks(time: int | None, otherwise: int) -> int:
    return otherwise if time is None else ticks_from_ns(time)


def _encoded(values: Mapping[str, bytes]) -> bytes:
    return extended_attributes.encode(
        [ExtendedAttribute(name.encode("utf-8", "surrogateescape"), values[name]) for name in sorted(values)]
    )


def _dense(content: Content | None) -> Iterator[Buffer]:
    return iter(()) if content is None else dense(content)
