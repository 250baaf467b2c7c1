# SPDX-License-Identifier: Apache-2.0
"""The five kinds of change that make up a layer, the metadata of one file, and its content.

Values are shared once they are built and never modified afterwards; they are not frozen, so that readers can fill them
in step by step.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Final, Literal, Protocol, TypeAlias

from msgspec import Struct

from lamella.paths import LayerPath

Buffer: TypeAlias = bytes | bytearray | memoryview


class _NoXattrs(dict[str, bytes]):
    """An immutable empty mapping, shared by all entries."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # frozen structs that contain it must be hashable

    def __setitem__(self, key: str, value: bytes) -> None:
        raise TypeError("the shared empty mapping cannot be changed")


NO_XATTRS: Final[Mapping[str, bytes]] = _NoXattrs()


class Kind(Enum):
    """The kinds of file in a layer. Sockets cannot be in a layer; hard links are changes (`Link`), not files."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    CHARACTER = "character"
    BLOCK = "block"
    FIFO = "fifo"

    @property
    def phrase(self) -> str:
        """The kind in a message: ``character device`` for CHARACTER."""
        return f"{self.value} device" if self in (Kind.CHARACTER, Kind.BLOCK) else self.value


TYPE_BITS: Final[Mapping[Kind, int]] = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}
"""File type bits of ``st_mode`` (inode(7)), which `Posix.mode` leaves out."""

KIND_BY_TYPE_BITS: Final[Mapping[int, Kind]] = {bits: kind for kind, bits in TYPE_BITS.items()}
"""The inverse of `TYPE_BITS`; it has no row for sockets."""


class Posix(Struct):
    """POSIX metadata. ``mode`` holds the twelve permission bits only; ``mtime`` is in nanoseconds since the epoch."""

    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: Mapping[str, bytes] = NO_XATTRS
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a character or block device."""


class Windows(Struct):
    """Windows metadata. Times are in nanoseconds since the Unix epoch, None if the layer does not state them."""

    attributes: int
    creation_time: int | None = None
    access_time: int | None = None
    write_time: int | None = None
    change_time: int | None = None
    security_descriptor: bytes | None = None
    """Self-relative form."""
    extended_attributes: Mapping[str, bytes] = NO_XATTRS
    reparse: bytes | None = None
    """The reparse buffer, including its eight-byte header."""


class Entry(Struct):
    """The metadata of one file. At least one facet (POSIX, Windows) is present; a missing one is never invented."""

    path: LayerPath
    kind: Kind
    posix: Posix | None
    size: int = 0
    """Bytes of content; 0 unless the file is regular."""
    target: str = ""
    """The target of a symbolic link, exactly as stored.

    For a regular file in the view of a single layer: the file of a lower layer that this name is a hard link to.
    """
    windows: Windows | None = None


class Content(Protocol):
    """The bytes of one file."""

    @property
    def size(self) -> int:
        """Bytes, holes included."""
        ...

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        """Data extents as (offset, length), ascending and disjoint; the gaps are holes, which read as zeros.

        None: no holes.
        """
        ...

    def chunks(self) -> Iterable[Buffer]:
        """The data of the extents, in order. A buffer is valid until the next one is requested.

        A one-shot stream raises StreamConsumed when it is read twice, or after the next change was requested.
        """
        ...

    @property
    def stored(self) -> bool:
        """Whether the content can be read any number of times; false for a one-shot stream."""
        ...


class StoredContent(Content, Protocol):
    """Content that can be read any number of times, as long as the place that holds it exists."""

    @property
    def stored(self) -> Literal[True]: ...


class Inline(Struct):
    """Content held in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        return None

    @property
    def stored(self) -> Literal[True]:
        return True

    def chunks(self) -> Iterable[Buffer]:
        return (self.data,) if self.data else ()


EMPTY: Final = Inline(b"")


class Sparse(Struct):
    """Content with holes, its data held in memory."""

    size: int
    extents: Sequence[tuple[int, int]]
    data: bytes
    """The data of all extents, concatenated."""

    @property
    def stored(self) -> Literal[True]:
        return True

    def chunks(self) -> Iterable[Buffer]:
        view = memoryview(self.data)
        at = 0
        for _, length in self.extents:
            yield view[at : at + length]
            at += length


class Put(Struct):
    """A file with its metadata and content. A directory put over a directory keeps its entries."""

    entry: Entry
    content: Content | None
    """None unless the file is regular."""


class Link(Struct):
    """A hard link: ``path`` names the same file as ``target``, which is in this layer or a lower one."""

    path: LayerPath
    target: LayerPath


class Stream(Struct):
    """An alternate data stream of the file ``path``, which the same layer has put earlier."""

    path: LayerPath
    name: str
    content: Content


class Whiteout(Struct):
    """Hides ``path`` of the lower layers. Never hides what the same layer puts."""

    path: LayerPath


class Opaque(Struct):
    """Hides all entries that lower layers have in the directory ``path``. Never hides what the same layer puts."""

    path: LayerPath


Change: TypeAlias = Put | Link | Stream | Whiteout | Opaque


def implied_directory(path: LayerPath) -> Entry:
    """An implied parent directory: a layer has entries in it, but no layer states it.

    Mode 0755, owner 0:0, time 0: constants, so that every view of an image agrees.
    """
    return Entry(path, Kind.DIRECTORY, Posix(0o755, 0, 0, 0))


def pieces(content: Content) -> Iterator[tuple[int, memoryview | None]]:
    """``content`` from start to end as non-empty pieces: (length, data), with None as the data of a hole."""
    extents = content.extents
    if extents is None:
        for chunk in content.chunks():
            if chunk:
                yield len(chunk), memoryview(chunk)
        return
    starts = iter(extents)
    position = left = 0
    for chunk in content.chunks():
        view = memoryview(chunk)
        while view:
            if not left:
                offset, left = next(starts)
                if offset > position:
                    yield offset - position, None
                    position = offset
                continue
            part = view[:left]
            yield len(part), part
            position += len(part)
            left -= len(part)
            view = view[len(part) :]
    if position < content.size:
        yield content.size - position, None


def dense(content: Content, *, step: int = 1 << 20) -> Iterator[Buffer]:
    """The bytes of ``content`` with holes filled by zeros; buffers of zeros hold at most ``step`` bytes."""
    if content.extents is None:
        yield from content.chunks()
        return
    zeros = bytes(min(step, content.size))
    for length, data in pieces(content):
        if data is not None:
            yield data
            continue
        for at in range(0, length, len(zeros)):
            yield zeros[: length - at]
