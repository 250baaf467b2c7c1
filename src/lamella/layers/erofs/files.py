# SPDX-License-Identifier: Apache-2.0
"""An EROFS image that is open, and the contents of its files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from msgspec import Struct

from lamella.changes.model import Buffer
from lamella.errors import InvalidInput, from_os
from lamella.formats.erofs.reader import ErofsReader, Inode
from lamella.formats.erofs.structures import Layout
from lamella.host import flags


class ErofsLayer(Struct, frozen=True):
    """The layer in the image ``path``."""

    path: Path


class OpenErofs:
    """An image that is open for reading; close it, or use it as a context manager."""

    def __init__(self, layer: ErofsLayer) -> None:
        """Raises NotFound, FormatError, Unsupported (features of the image), Denied."""
        self.layer = layer
        name = os.fspath(layer.path)
        try:
            self._file = os.open(layer.path, flags.READ_FILE)
        except OSError as error:
            raise from_os(error, f"open the image {name!r}") from error
        try:
            status = os.fstat(self._file)
            size = status.st_size
            if stat.S_ISBLK(status.st_mode):
                size = os.lseek(self._file, 0, os.SEEK_END)
            elif not stat.S_ISREG(status.st_mode):
                raise InvalidInput(f"{name!r} is no regular file, so it is no image")
            self.reader = ErofsReader(self._read, size)
        except BaseException:
            self.close()
            raise

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._file, length, offset)
        except OSError as error:
            raise from_os(error, f"read the image {os.fspath(self.layer.path)!r}") from error

    def close(self) -> None:
        """Let go of the file. May be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ErofsContent(Struct, frozen=True):
    """The bytes of a file in an image, good as long as the image is open. Equal for the same file of one image."""

    reader: ErofsReader
    inode: Inode

    @property
    def size(self) -> int:
        """See `Content.size`."""
        return self.inode.size

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        """See `Content.extents`. Raises FormatError, and Unsupported for a compressed file."""
        if self.inode.layout != Layout.CHUNKED:
            return None
        return [(position, length) for position, length, _ in self.reader.extents(self.inode)]

    @property
    def stored(self) -> bool:
        """True."""
        return True

    def chunks(self) -> Iterable[Buffer]:
        """See `Content.chunks`. Raises as `extents` does."""
        return self.reader.read(self.inode)
