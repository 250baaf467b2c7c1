# SPDX-License-Identifier: Apache-2.0
"""The content of a layer's files, from the directory that it was unpacked into."""

from __future__ import annotations

import binascii
import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Self

from lamella.changes.apply import LinksPassed
from lamella.errors import Conflict, Integrity, SizeMismatch, from_os
from lamella.formats.recipe import FileSegment
from lamella.layers.descriptors import Descriptors, open_root
from lamella.paths import ROOT, LayerPath, join, split

if TYPE_CHECKING:
    from lamella.streams.blob import Buffer

_STEP: Final = 1 << 20


class UnpackedFiles:
    """The files beneath a directory, reached as the layer's own links lead, and never out of it."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._descriptors = Descriptors(open_root(root))
        self._places: dict[str, LayerPath] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._descriptors.close()

    def content(self, segment: FileSegment) -> Iterator[Buffer]:
        """The bytes that stand in the tar. Raises Integrity where they are not the right ones, with the last piece."""
        path = segment.path
        try:
            file = self._open(path)
        except OSError as error:
            raise from_os(error, f"read {path!r}") from error
        crc = 0
        left = segment.size
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise Conflict(f"{path!r} is a file in the layer, and none here")
            if segment.extents is None and status.st_size != segment.size:
                raise SizeMismatch(f"file {path!r}", expected=segment.size, actual=status.st_size)
            for offset, length in segment.extents or ((0, segment.size),):
                end = offset + length
                while offset < end:
                    piece = os.pread(file, min(_STEP, end - offset), offset)
                    if not piece:
                        raise SizeMismatch(f"file {path!r}", expected=end, actual=offset)
                    crc = binascii.crc32(piece, crc)
                    offset += len(piece)
                    left -= len(piece)
                    if not left and crc != segment.crc32:
                        raise Integrity(f"file {path!r} is not what it was in the layer")
                    yield piece
        except OSError as error:
            raise from_os(error, f"read {path!r}") from error
        finally:
            os.close(file)

    def _open(self, path: str) -> int:
        parent, name = split(LayerPath(path))
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        where = self._place(parent)
        return os.open(name, flags, dir_fd=self._descriptors.open(where))

    def _place(self, spelled: LayerPath) -> LayerPath:
        """The directory that ``spelled`` leads to within the root, by reading the links on the way."""
        try:
            self._descriptors.open(spelled)
        except OSError as error:  # a link on the way may show as any of these
            if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
                raise
        else:
            return spelled
        known = self._places.get(spelled)
        if known is not None:
            return known
        passed = LinksPassed()
        at = ROOT
        todo = list(reversed(spelled.split("/")))
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                at = split(at)[0] if at else ROOT
                continue
            parent = self._descriptors.open(at)
            try:
                target = os.readlink(name, dir_fd=parent)
            except OSError as error:
                if error.errno != errno.EINVAL:  # EINVAL says that it is no link
                    raise
                at = join(at, name)
            else:
                at = passed.follow(join(at, name), target, at, todo)
        self._places[spelled] = at
        return at
