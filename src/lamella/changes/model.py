# SPDX-License-Identifier: Apache-2.0
"""What a layer says: five kinds of change, the metadata of one file, and its content.

The values here are built once and then shared; nobody changes one in place. They are not frozen for the sake of whoever
is still building one.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Final, Protocol, TypeAlias

from msgspec import Struct

from lamella.paths import LayerPath

Buffer: TypeAlias = bytes | bytearray | memoryview


class _NoXattrs(dict[str, bytes]):
    """An empty mapping that stays empty, so that all entries can share it."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # a frozen value that has it is hashed with it

    def __setitem__(self, key: str, value: bytes) -> None:
        raise TypeError("the shared empty mapping cannot be changed")


NO_XATTRS: Final[Mapping[str, bytes]] = _NoXattrs()


class Kind(Enum):
    """The kinds of file that a layer can hold; sockets are none of them. Hard links are changes, not files."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    CHARACTER = "character"
    BLOCK = "block"
    FIFO = "fifo"

    @property
    def phrase(self) -> str:
        """The kind in a sentence: a character is a character device there."""
        return f"{self.value} device" if self in (Kind.CHARACTER, Kind.BLOCK) else self.value


TYPE_BITS: Final[Mapping[Kind, int]] = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}
"""What a system's mode of a file has beside the bits of `Posix.mode` (inode(7))."""

KINDS: Final[Mapping[int, Kind]] = {bits: kind for kind, bits in TYPE_BITS.items()}
"""`TYPE_BITS` the other way round; a socket's are not there."""


class Posix(Struct):
    """POSIX metadata. ``mode`` has the twelve permission bits alone; ``mtime`` is in nanoseconds since the epoch."""

    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: Mapping[str, bytes] = NO_XATTRS
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a character or block device."""


class Windows(Struct):
    """Windows metadata. Times are in nanoseconds since the Unix epoch, None where the layer does not say."""

    attributes: int
    creation_time: int | None = None
    access_time: int | None = None
    write_time: int | None = None
    change_time: int | None = None
    security_descriptor: bytes | None = None
    """Self-relative form."""
    extended_attributes: Mapping[str, bytes] = NO_XATTRS
    reparse: bytes | None = None
    """The reparse point's buffer with its eight-byte header."""


class Entry(Struct):
    """The metadata of one file. At least one facet is there; none is ever made up in silence."""

    path: LayerPath
    kind: Kind
    posix: Posix | None
    size: int = 0
    """Bytes of content; 0 for all but regular files."""
    target: str = ""
    """Where a symbolic link points, exactly as stored; in the view of one layer, the file of a layer below that a
    further name is of, which has its metadata."""
    windows: Windows | None = None


class Content(Protocol):
    """The bytes of one file."""

    @property
    def size(self) -> int:
        """Bytes, holes included."""
        ...

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        """Where data lies, as (offset, length) in rising order without overlap; None means everywhere.

        What lies between is a hole and reads as zeros.
        """
        ...

    def chunks(self) -> Iterable[Buffer]:
        """The data of the extents in order. Each buffer may be used only until the next is asked for.

        A one-shot stream raises StreamConsumed when it is asked twice or too late.
        """
        ...


class StoredContent(Content, Protocol):
    """Content whose `chunks` can be asked for as often as wanted, at any time while its place is there."""

    @property
    def stored(self) -> bool:
        """True."""
        ...


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
    def stored(self) -> bool:
        return True

    def chunks(self) -> Iterable[Buffer]:
        return (self.data,) if self.data else ()


EMPTY: Final = Inline(b"")


class Sparse(Struct):
    """Content with holes, its data held in memory."""

    size: int
    extents: Sequence[tuple[int, int]]
    """See `Content.extents`."""
    data: bytes
    """What the extents hold, in order."""

    @property
    def stored(self) -> bool:
        return True

    def chunks(self) -> Iterable[Buffer]:
        view = memoryview(self.data)
        at = 0
        for _, length in self.extents:
            yield view[at : at + length]
            at += length


class Put(Struct):
    """A file is here with this metadata and content. A directory put over a directory keeps what is in it."""

    entry: Entry
    content: Content | None
    """None for all but regular files."""


class Link(Struct):
    """``path`` is a further name of the file that ``target`` names, in this layer or below."""

    path: LayerPath
    target: LayerPath


class Stream(Struct):
    """An alternate data stream of the file ``path``, put before it in the same layer."""

    path: LayerPath
    name: str
    content: Content


class Whiteout(Struct):
    """What the layers below have at ``path`` is gone. Never hides what the same layer puts."""

    path: LayerPath


class Opaque(Struct):
    """What the layers below have in the directory ``path`` is gone. Never hides what the same layer puts."""

    path: LayerPath


Change: TypeAlias = Put | Link | Stream | Whiteout | Opaque


def implied_directory(path: LayerPath) -> Entry:
    """The directory that must be there because a layer has something in it, though no layer states it.

    Mode 0755, owner 0:0, time 0: the same everywhere, so that every view of an image agrees.
    """
    return Entry(path, Kind.DIRECTORY, Posix(0o755, 0, 0, 0))


def dense(content: Content, *, step: int = 1 << 20) -> Iterator[Buffer]:
    """The bytes of ``content`` with its holes filled by zeros, in buffers of at most ``step`` bytes for holes."""
    extents = content.extents
    if extents is None:
        yield from content.chunks()
        return
    zeros = bytes(min(step, content.size))
    position = 0
    starts = iter(extents)
    left = 0
    for chunk in content.chunks():
        view = memoryview(chunk)
        while view:
            if not left:
                offset, left = next(starts)
                yield from _zeros(zeros, offset - position)
                position = offset
                continue
            part = view[:left]
            yield part
            position += len(part)
            left -= len(part)
            view = view[len(part) :]
    yield from _zeros(zeros, content.size - position)


def _zeros(block: bytes, count: int) -> Iterator[Buffer]:
    while count > 0:
        part = block if count >= len(block) else block[:count]
        yield part
        count -= len(part)
