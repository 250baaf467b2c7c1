# SPDX-License-Identifier: Apache-2.0
"""Composite images written by Windows itself."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lamella.changes.model import Buffer
from lamella.errors import LamellaError, SizeMismatch
from lamella.formats.ntfs import attributes as bits
from lamella.host.windows import cimfs
from lamella.host.windows.cimfs import Cimfs
from lamella.layers.cim.contract import FileMetadata

_STREAM: Final = ":$DATA"


class SystemWriter:
    """The image with the handle ``image`` (`CimWriter`); whoever began it says what is left when it is given up."""

    def __init__(self, calls: Cimfs, image: int) -> None:
        self._calls = calls
        self._image: int | None = image

    @property
    def image(self) -> int:
        """The handle. Raises LamellaError once the image is closed."""
        if self._image is None:
            raise LamellaError("the image is closed")
        return self._image

    def put(self, path: str, metadata: FileMetadata, size: int, chunks: Iterable[Buffer] | None) -> None:
        """See `CimWriter.put`. Of a file of zeros nothing is written, which Windows reads as that."""
        known = cimfs.FileMetadata(
            attributes=metadata.attributes,
            size=0 if metadata.attributes & bits.DIRECTORY else size,
            creation_time=metadata.creation_time,
            write_time=metadata.write_time,
            change_time=metadata.change_time,
            access_time=metadata.access_time,
        )
        stream = self._calls.create_file(
            self.image,
            windows_path(path),
            known,
            security=metadata.security,
            reparse=metadata.reparse,
            extended_attributes=metadata.extended_attributes,
        )
        self._fill(stream, path, size, chunks)

    def stream(self, path: str, name: str, size: int, chunks: Iterable[Buffer]) -> None:
        """See `CimWriter.stream`."""
        full = f"{windows_path(path)}:{name}{_STREAM}"
        self._fill(self._calls.create_stream(self.image, full, size), full, size, chunks)

    def link(self, path: str, target: str) -> None:
        """See `CimWriter.link`."""
        self._calls.hard_link(self.image, windows_path(path), windows_path(target))

    def merge_link(self, path: str, target: str) -> None:
        """See `CimWriter.merge_link`."""
        self._calls.merge_link(self.image, windows_path(path), windows_path(target))

    def delete(self, path: str) -> None:
        """See `CimWriter.delete`."""
        self._calls.delete(self.image, windows_path(path))

    def tombstone(self, path: str) -> None:
        """See `CimWriter.tombstone`."""
        self._calls.tombstone(self.image, windows_path(path))

    def commit(self) -> None:
        """See `CimWriter.commit`."""
        self._calls.commit(self.image)
        self.close()

    def close(self) -> None:
        """Let go of the image. May be called again."""
        if self._image is not None:
            image, self._image = self._image, None
            self._calls.close(image)

    def abort(self) -> None:
        """See `CimWriter.abort`; what is left of it on the disk stays."""
        self.close()

    def _fill(self, stream: int, path: str, size: int, chunks: Iterable[Buffer] | None) -> None:
        done = 0
        try:
            for chunk in chunks or ():
                done += len(chunk)
                if done > size:
                    raise SizeMismatch(f"content of {path!r}", expected=size, actual="more")
                self._calls.write(stream, chunk)
        finally:
            self._calls.close_stream(stream)
        if chunks is not None and done != size:
            raise SizeMismatch(f"content of {path!r}", expected=size, actual=done)


def windows_path(path: str) -> str:
    """A path with ``/`` between names as Windows has it."""
    return path.replace("/", "\\")


def host_path(path: Path) -> str:
    """A path of the host, as it is given to Windows' calls: without a backslash at the end."""
    return os.fspath(path).rstrip("\\")
