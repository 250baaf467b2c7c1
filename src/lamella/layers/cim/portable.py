# SPDX-License-Identifier: Apache-2.0
"""Composite images written on any host, as far as their layout is publicly known: new ones and forks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NoReturn
from uuid import UUID

from lamella.changes.contracts import Seen
from lamella.changes.model import Buffer, Kind
from lamella.errors import Unsupported
from lamella.formats.ntfs import attributes as bits
from lamella.layers.cim import host_files
from lamella.layers.cim.image_files import CimLayer, NewCim
from lamella.layers.cim.import_rules import FileMetadata
from lamella.layers.cim.tree import ATTRIBUTES

KEPT: Final = sum(attribute for _, attribute in ATTRIBUTES)
"""The attributes that a file record has a place for."""


class PortableWriter:
    """Writes the image ``layer``, forked from ``parent`` where there is one (`ForkWriter`)."""

    def __init__(
        self,
        layer: CimLayer,
        parent: CimLayer | None,
        *,
        guid: UUID | None = None,
        contents: Callable[[], bytes] | None = None,
        durable: bool = False,
    ) -> None:
        """Start the image; see `CimSink` for ``guid`` and ``contents``.

        Raises AlreadyExists, NotFound, InvalidInput, as `NewCim` does.
        """
        self._new = NewCim(layer, parent)
        writer = self._writer = self._new.writer
        self._store, self._put = writer.store, writer.put
        self._guid = guid
        self._contents = contents
        self._durable = durable

    def put(self, path: str, metadata: FileMetadata, size: int, chunks: Iterable[Buffer] | None) -> Seen | None:
        """See `CimWriter.put`. Equal contents are kept once."""
        stream = None
        if not metadata.attributes & bits.DIRECTORY:
            if chunks is None:
                stream = self._writer.zeros(size)
            else:
                stream = self._store(chunks, size, derived=host_files.is_derived(path))
        found = self._put(path, metadata, stream)
        if found is None:
            return None
        return Seen(Kind.DIRECTORY if found.is_directory and not found.reparse else Kind.FILE)

    def stream(self, path: str, name: str, size: int, chunks: Iterable[Buffer]) -> None:
        """See `CimWriter.stream`."""
        self._writer.stream(path, name, self._writer.store(chunks, size))

    def link(self, path: str, target: str) -> None:
        """See `CimWriter.link`."""
        self._writer.link(path, target)

    def merge_link(self, path: str, target: str) -> NoReturn:  # noqa: ARG002  # whichever they are
        """See `CimWriter.merge_link`: what one looks like on disk is not publicly known."""
        raise Unsupported(f"hard link {path!r}: links between images are Windows' own to write")

    def delete(self, path: str) -> None:
        """See `CimWriter.delete`."""
        self._writer.delete(path)

    def tombstone(self, path: str) -> NoReturn:
        """See `CimWriter.tombstone`: what one looks like on disk is not publicly known."""
        raise Unsupported(f"{path!r} is to be hidden when images are merged, which is Windows' own to write")

    def commit(self) -> None:
        """See `CimWriter.commit`: the image gets its name."""
        contents = None if self._contents is None else self._contents()
        self._new.commit(guid=self._guid, contents=contents, durable=self._durable)

    def abort(self) -> None:
        """See `CimWriter.abort`."""
        self._new.abort()

    def seen(self, path: str) -> Seen | None:
        """See `ForkWriter.seen`."""
        found = self._writer.what(path)
        return None if found is None else Seen(Kind.DIRECTORY if found == (True, False) else Kind.FILE)

    def is_reparse_point(self, path: str) -> bool:
        """See `ForkWriter.is_reparse_point`."""
        found = self._writer.what(path)
        return found is not None and found[1]

    def names(self, directory: str) -> Iterable[tuple[str, bool]]:
        """See `ForkWriter.names`."""
        return [(name, record.is_directory) for name, record in self._writer.names(directory)]

    def touched(self, path: str) -> bool:
        """See `ForkWriter.touched`."""
        return self._writer.touched(path)
