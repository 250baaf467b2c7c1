# SPDX-License-Identifier: Apache-2.0
"""The rules by which Windows' own tools import a layer into an image (``docs/formats/cim.md``), whoever writes it.

What is the same for images forked from their parent's and for block images is here; where the two differ, in how they
link, hide and look up what is there, each has its sink.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from msgspec import Struct

from lamella.changes.contracts import Seen
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Buffer, Content, Entry, Kind, Windows, dense
from lamella.errors import InvalidInput, MissingFacet, NotFound
from lamella.formats.ntfs import attributes as bits
from lamella.formats.ntfs import extended_attributes
from lamella.formats.ntfs.extended_attributes import ExtendedAttribute
from lamella.formats.ntfs.filetime import ticks_from_ns
from lamella.layers.cim import host_files
from lamella.layers.cim.host_files import HostFiles
from lamella.layers.cim.tree import ATTRIBUTES
from lamella.paths import LayerPath, join

_KEPT: Final = sum(attribute for _, attribute in ATTRIBUTES)
_FLAGS: Final = {
    attributes: sum(flag for flag, attribute in ATTRIBUTES if attributes & attribute)
    for attributes in range(_KEPT + 1)
    if not attributes & ~_KEPT
}
NO_DESCRIPTOR: Final = bytes.fromhex("01000480") + bytes(16)
"""What a file without a security descriptor gets, since an image must have one: everybody may do everything."""


class FileMetadata(Struct):
    """What a file in an image has besides its bytes. Times are FILETIMEs, 0 where nobody has said."""

    attributes: int
    """FILE_ATTRIBUTE bits; DIRECTORY tells a directory, REPARSE_POINT that there is a ``reparse``."""
    creation_time: int = 0
    write_time: int = 0
    change_time: int = 0
    access_time: int = 0
    security: bytes = NO_DESCRIPTOR
    extended_attributes: bytes = b""
    """A chain of FILE_FULL_EA_INFORMATION."""
    reparse: bytes = b""
    """The buffer from the tag on."""

    @property
    def flags(self) -> int:
        """Those of the attributes that a file record has a place for, as it has them."""
        return _FLAGS[self.attributes & _KEPT]


PLAIN_FILE: Final = FileMetadata(bits.NORMAL)
PLAIN_DIRECTORY: Final = FileMetadata(bits.DIRECTORY)
"""What a file has, and a directory, that no layer states."""


class CimWriter(Protocol):
    """An image in the making. Paths have ``/`` between names, and whatever a file lies in must be there before it.

    Each step is done when the call returns. `commit` is the last of them; after a step that failed comes `abort`.
    """

    def put(self, path: str, metadata: FileMetadata, size: int, chunks: Iterable[Buffer] | None) -> Seen | None:
        """A file of ``size`` bytes, or a directory, in place of what is there; without ``chunks`` it is all zeros.

        A directory over a directory keeps what is in it. What was there is returned, as far as the writer can tell;
        a `ForkWriter` can. Raises SizeMismatch, NotFound (where it is to lie).
        """
        ...

    def stream(self, path: str, name: str, size: int, chunks: Iterable[Buffer]) -> None:
        """An alternate data stream, ``name`` without colons."""
        ...

    def link(self, path: str, target: str) -> None:
        """A further name of a file of this image. Raises NotFound."""
        ...

    def merge_link(self, path: str, target: str) -> None:
        """A further name of a file that a parent has, found when the two are merged. Raises Unsupported."""
        ...

    def delete(self, path: str) -> None:
        """What the image has at ``path`` goes, a directory with all that is in it. Raises NotFound."""
        ...

    def tombstone(self, path: str) -> None:
        """What parents have at ``path`` is hidden when they are merged. Raises Unsupported."""
        ...

    def commit(self) -> None:
        """Finish the image, and let go of it."""
        ...

    def abort(self) -> None:
        """Let go of the image, and leave nothing of it. May be called again, and after a `commit` that failed."""
        ...


class ForkWriter(CimWriter, Protocol):
    """An image in the making that holds all that its parent holds, and can be asked what is in it so far."""

    def seen(self, path: str) -> Seen | None:
        """What is at ``path``; a reparse point is a file, since it is no way to anything."""
        ...

    def is_reparse_point(self, path: str) -> bool:
        """Whether there is a reparse point at ``path``."""
        ...

    def names(self, directory: str) -> Iterable[tuple[str, bool]]:
        """What is in ``directory``: names, each with whether it is a directory."""
        ...

    def touched(self, path: str) -> bool:
        """Whether this image has put what is at ``path``, or something in it, rather than its parent."""
        ...


_LAST: Final = (1 << 63) - 1
_OF_FILES: Final = sum(attribute for _, attribute in ATTRIBUTES) | bits.NORMAL
"""Attributes of files that an image holds as they are."""
_HELD: Final = _OF_FILES | bits.DIRECTORY | bits.REPARSE_POINT


class QueuedFile(Struct, frozen=True):
    """A file that is put into the image at the end, as the host's file is then; or a directory."""

    path: LayerPath
    metadata: FileMetadata


class QueuedLink(Struct, frozen=True):
    """A link that is made at the end."""

    path: LayerPath
    target: LayerPath


Queued: TypeAlias = QueuedFile | QueuedLink


class CimImport:
    """The part of a sink that is the same for all images: metadata, the host's files, and what is done at the end.

    Files that the host needs outside of the image go to ``host``. A base layer, that has no ``parent_folder``, gets
    its cumulative hives and a file ``layout``; another gets what its deltas of hives come to over those in
    ``parent_folder``. ``windows`` False leaves all that out.
    """

    def __init__(
        self, writer: CimWriter, host: HostFiles, parent_folder: Path | None, *, windows: bool, losses: Losses | None
    ) -> None:
        self._writer = writer
        self._host = host
        self._parent_folder = parent_folder
        self._windows = windows
        self._losses = losses if losses is not None else Losses()
        self._host_lengths: frozenset[int] = host_files.LENGTHS if windows else frozenset()
        """Of the paths of files that the host needs: the cheap question before `is_of_host`."""
        self._queue: dict[str, Queued] = {}
        """What waits for the end, in order, by folded path."""
        self._lengths: set[int] = set()
        """Of the paths of what waits."""
        self._inside: dict[str, set[str]] = {}
        """Directory -> what waits right in it, and the directories in it in which something has waited; folded."""

    def commit(self) -> Losses:
        """Do what waits for the end, and finish the image."""
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

    def make_link(self, link: QueuedLink) -> None:
        """Make a link whose turn has come."""
        self._writer.link(link.path, link.target)

    def is_of_host(self, entry: Entry) -> bool:
        """Whether the host needs the file outside of the image."""
        path = entry.path
        return len(path) in self._host_lengths and entry.kind is Kind.FILE and host_files.is_special(path)

    def put_of_host(self, entry: Entry, content: Content | None, metadata: FileMetadata) -> None:
        """A file that the host needs: it is the host's until the end."""
        path = entry.path
        size = self._host.write(path, _dense(content))
        if size != entry.size:
            raise InvalidInput(f"content of {path!r}: expected {entry.size} bytes, got {size}")
        self._wait(QueuedFile(path, metadata))

    def put_file(self, entry: Entry, content: Content | None, metadata: FileMetadata) -> Seen | None:
        """Another file, directory or link of the layer; what it replaced, as far as the writer can tell."""
        if content is None:
            return self._writer.put(entry.path, metadata, entry.size, None)
        extents = content.extents
        if extents is None:
            return self._writer.put(entry.path, metadata, entry.size, content.chunks())
        return self._writer.put(entry.path, metadata, entry.size, dense(content) if extents else None)

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        if self.waits(path) and isinstance(self._queue[host_files.fold(path)], QueuedFile):
            raise InvalidInput(f"alternate data stream {name!r} of {path!r}: the host's file cannot have one")
        self._writer.stream(path, name, content.size, dense(content))

    def _wait(self, queued: Queued) -> None:
        key = host_files.fold(queued.path)
        self._queue[key] = queued
        self._lengths.add(len(queued.path))
        while key:
            parent = key.rpartition("/")[0]
            inside = self._inside.setdefault(parent, set())
            if key in inside:  # and so is all above
                break
            inside.add(key)
            key = parent

    def waits(self, path: LayerPath) -> bool:
        """Whether ``path`` is a file that waits for the end."""
        return self._may_wait(path) and host_files.fold(path) in self._queue

    def _may_wait(self, path: LayerPath) -> bool:
        """False for nearly all that do not, at little cost: keys are as long as paths, but for odd characters."""
        return len(path) in self._lengths or not path.isascii()

    def check_link(self, path: LayerPath) -> None:
        """Raise InvalidInput where a link would stand for a file that the host needs."""
        waiting = self._queue[host_files.fold(path)] if self.waits(path) else None
        if isinstance(waiting, QueuedFile) or (self._windows and host_files.is_special(path)):
            raise InvalidInput(f"hard link {path!r}: the host needs a file of its own there")

    def queue_link(self, path: LayerPath, target: LayerPath) -> None:
        """Make a link at the end."""
        self._wait(QueuedLink(path, target))

    def forget(self, path: LayerPath, *, inside: bool = False) -> None:
        """What waits for ``path`` need not be done, since something else is there now; ``inside``, all beneath it."""
        queue = self._queue
        if queue and (inside or self._may_wait(path)):
            key = host_files.fold(path)
            queue.pop(key, None)
            todo = list(self._inside.pop(key, ())) if inside else []
            while todo:
                key = todo.pop()
                queue.pop(key, None)
                todo.extend(self._inside.pop(key, ()))

    def metadata(self, entry: Entry, windows: Windows) -> FileMetadata:
        """What a file is to have. Raises InvalidInput (a kind that Windows has not), MissingFacet (a link's buffer)."""
        kind, attributes, reparse = entry.kind, windows.attributes, windows.reparse
        if kind is not Kind.FILE or reparse is not None or attributes & ~_OF_FILES:
            attributes = self._attributes(entry, attributes, reparse)
        written = _ticks(windows.write_time, 0)
        created, changed = _ticks(windows.creation_time, written), _ticks(windows.change_time, written)
        accessed = _ticks(windows.access_time, written)
        if not (0 <= written <= _LAST and 0 <= created <= _LAST and 0 <= changed <= _LAST and 0 <= accessed <= _LAST):
            raise InvalidInput(f"{entry.path!r}: a time that no FILETIME can hold")
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
        """Those that an image can hold, and what tells the kind."""
        kind = entry.kind
        if kind not in (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK):
            raise InvalidInput(f"{entry.path!r} is a {kind.phrase}, which Windows has not")
        attributes = stated & ~bits.REPARSE_POINT
        lost = attributes & ~_HELD
        if lost:
            words = ", ".join(bits.names(lost))
            self._losses.record(Loss(entry.path, f"attributes {words}", "an image has no place for them"))
        if kind is Kind.DIRECTORY:
            attributes |= bits.DIRECTORY
        elif kind is Kind.FILE:
            attributes &= ~bits.DIRECTORY
        elif reparse is None:
            raise MissingFacet(entry.path, "Windows (a reparse point)")
        return attributes if reparse is None else attributes | bits.REPARSE_POINT

    def _finish_base(self) -> None:
        """The cumulative hives of a base layer are those of its configuration."""
        hives = LayerPath("Hives")
        self._host.directory(hives)
        self._wait(QueuedFile(hives, PLAIN_DIRECTORY))
        for name, stem in host_files.HIVES.items():
            config = LayerPath(f"{host_files.CONFIG}/{name}")
            source = self._host.find(config)
            if source is None:
                raise InvalidInput(
                    f"the layer has no parent and no registry hive {config}, as a base layer must",
                    hint="give its parent",
                )
            base = join(hives, f"{stem}_BASE")
            self._host.link(source, base)
            self.queue_link(base, config)
        layout = LayerPath("layout")
        self._host.write(layout, [host_files.LAYOUT])
        self._wait(QueuedFile(layout, PLAIN_FILE))

    def _merge_hives(self, parent: Path) -> None:
        """A delta is laid over the parent's cumulative hive; where there is none, that hive is this layer's too."""
        for stem in host_files.HIVES.values():
            delta = self._host.find(f"Hives/{stem}_DELTA")
            base = host_files.find(parent, f"Hives/{stem}_BASE")
            result = LayerPath(f"Hives/{stem}_BASE")
            if delta is None:
                if base is not None:
                    self._host.link(base, result)
                continue
            if base is None:
                raise NotFound(f"the parent in {os.fspath(parent)!r} has no hive {stem}_BASE for this layer's delta")
            self._host.merge_hive(base, delta, result)
            self._wait(QueuedFile(result, PLAIN_FILE))


def _ticks(time: int | None, otherwise: int) -> int:
    return otherwise if time is None else ticks_from_ns(time)


def _encoded(values: Mapping[str, bytes]) -> bytes:
    return extended_attributes.encode(
        [ExtendedAttribute(name.encode("utf-8", "surrogateescape"), values[name]) for name in sorted(values)]
    )


def _dense(content: Content | None) -> Iterator[Buffer]:
    return iter(()) if content is None else dense(content)
