# SPDX-License-Identifier: Apache-2.0
"""Changes written by hand, one short call each.

Owner, mode and time have defaults, so that a test states only what matters to it. Paths are not checked: tests must be
able to write hostile layers too.
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
"""Default modification time: nanoseconds, with a fractional second."""


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
    """Return a regular file."""
    stored = Inline(content) if isinstance(content, bytes) else content
    posix = Posix(mode, uid, gid, mtime, xattrs)
    return Put(Entry(LayerPath(path), Kind.FILE, posix, stored.size, "", windows), stored)


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
    """Return a directory; the path "" is the root."""
    posix = Posix(mode, uid, gid, mtime, xattrs)
    return Put(Entry(LayerPath(path), Kind.DIRECTORY, posix, windows=windows), None)


def symlink(path: str, target: str, *, uid: int = 0, gid: int = 0, mtime: int = WHEN) -> Put:
    """Return a symbolic link."""
    return Put(Entry(LayerPath(path), Kind.SYMLINK, Posix(0o777, uid, gid, mtime), target=target), None)


def fifo(path: str, *, mode: int = 0o644, uid: int = 0, gid: int = 0, mtime: int = WHEN) -> Put:
    """Return a named pipe."""
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
    """Return a character device, or a block device if ``block`` is set."""
    kind = Kind.BLOCK if block else Kind.CHARACTER
    return Put(Entry(LayerPath(path), kind, Posix(mode, uid, gid, mtime, device=(major, minor))), None)


def link(path: str, target: str) -> Link:
    """Return a hard link ``path`` to the file ``target``."""
    return Link(LayerPath(path), LayerPath(target))


def stream(path: str, name: str, content: bytes) -> Stream:
    """Return an alternate data stream."""
    return Stream(LayerPath(path), name, Inline(content))


def whiteout(path: str) -> Whiteout:
    """Return a whiteout of ``path`` in the lower layers."""
    return Whiteout(LayerPath(path))


def opaque(path: str) -> Opaque:
    """Return an opaque marker of the directory ``path``."""
    return Opaque(LayerPath(path))


def sparse(size: int, pieces: Iterable[tuple[int, bytes]] = ()) -> Sparse:
    """Return sparse content of ``size`` bytes; ``pieces`` are pairs of offset and data, by ascending offset."""
    parts = list(pieces)
    return Sparse(size, tuple((offset, len(data)) for offset, data in parts), b"".join(data for _, data in parts))
