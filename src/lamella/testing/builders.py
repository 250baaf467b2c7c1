# SPDX-License-Identifier: Apache-2.0
"""Changes written by hand, one short call each.

Owner, mode and time have defaults, so that a test states only what it is about. Paths are taken as they are and not
checked: what hostile layers say must be easy to write too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from lamella.changes.model import (
    NO_XATTRS,
    Content,
    Entry,
    Inline,
    Kind,
    Link,
    Opaque,
    Posix,
    Put,
    Sparse,
    Stream,
    Whiteout,
    Windows,
)
from lamella.paths import LayerPath

WHEN: Final = 1_700_000_000_500_000_000
"""The time of everything that no test gives a time: nanoseconds, with a fraction."""


def file(
    path: str,
    content: bytes | Content = b"",
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = WHEN,
    xattrs: Mapping[str, bytes] = NO_XATTRS,
    windows: Windows | None = None,
) -> Put:
    """A regular file."""
    held = Inline(content) if isinstance(content, bytes) else content
    posix = Posix(mode, uid, gid, mtime, xattrs)
    return Put(Entry(LayerPath(path), Kind.FILE, posix, held.size, "", windows), held)


def directory(
    path: str,
    *,
    mode: int = 0o755,
    uid: int = 0,
    gid: int = 0,
    mtime: int = WHEN,
    xattrs: Mapping[str, bytes] = NO_XATTRS,
    windows: Windows | None = None,
) -> Put:
    """A directory; the path "" is the root."""
    posix = Posix(mode, uid, gid, mtime, xattrs)
    return Put(Entry(LayerPath(path), Kind.DIRECTORY, posix, windows=windows), None)


def symlink(path: str, target: str, *, uid: int = 0, gid: int = 0, mtime: int = WHEN) -> Put:
    """A symbolic link."""
    return Put(Entry(LayerPath(path), Kind.SYMLINK, Posix(0o777, uid, gid, mtime), target=target), None)


def fifo(path: str, *, mode: int = 0o644, uid: int = 0, gid: int = 0, mtime: int = WHEN) -> Put:
    """A named pipe."""
    return Put(Entry(LayerPath(path), Kind.FIFO, Posix(mode, uid, gid, mtime)), None)


def device(
    path: str,
    major: int,
    minor: int,
    *,
    block: bool = False,
    mode: int = 0o600,
    uid: int = 0,
    gid: int = 0,
    mtime: int = WHEN,
) -> Put:
    """A character device, or a block device."""
    kind = Kind.BLOCK if block else Kind.CHARACTER
    return Put(Entry(LayerPath(path), kind, Posix(mode, uid, gid, mtime, device=(major, minor))), None)


def link(path: str, target: str) -> Link:
    """A further name, ``path``, of the file ``target``."""
    return Link(LayerPath(path), LayerPath(target))


def stream(path: str, name: str, content: bytes) -> Stream:
    """An alternate data stream."""
    return Stream(LayerPath(path), name, Inline(content))


def whiteout(path: str) -> Whiteout:
    """What lies below at ``path`` is gone."""
    return Whiteout(LayerPath(path))


def opaque(path: str) -> Opaque:
    """What lies below in ``path`` is gone."""
    return Opaque(LayerPath(path))


def sparse(size: int, pieces: Iterable[tuple[int, bytes]] = ()) -> Sparse:
    """``size`` bytes of zeros but for ``pieces``, each an offset and what stands there, in rising order."""
    held = list(pieces)
    return Sparse(size, tuple((offset, len(data)) for offset, data in held), b"".join(data for _, data in held))
