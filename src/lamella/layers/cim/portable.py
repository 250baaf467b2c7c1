# SPDX-License-Identifier: Apache-2.0
"""Composite images written on any host, as far as their layout is publicly known: new ones and forks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NoReturn
from uuid import UUID

from lamella.changes.contracts import Seen
from lamella.changes.model import Buffer, Kind
from lamella.errors import Unsupported
from lamella.formats.cim.structures import FileRecord
from lamella.formats.ntfs import attributes as bits
from lamella.layers.cim import special
from lamella.layers.cim.contract import FileMetadata
from lamella.layers.cim.files import CimLayer, NewCim
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
        self._writer = self._new.writer
        self._guid = guid
        self._contents = contents
        self._durable = durable

    def put(self, path: str, metadata: FileMetadata, size: int, chunks: Iterable[Buffer] | None) -> Seen | None:
        """See `CimWriter.put`. Equal contents are kept once."""
        writer = self._writer
        if metadata.attributes & bits.DIRECTORY:
            stream = None
        else:
            derived = special.is_derived(path)
            stream = writer.zeros(size) if chunks is None else writer.store(chunks, size, by_digest=derived)
        return _seen(writer.put(path, metadata, stream))

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
        return _seen(self._writer.lookup(path))

    def is_reparse_point(self, path: str) -> bool:
        """See `ForkWriter.is_reparse_point`."""
        record = self._writer.lookup(path)
        return record is not None and bool(record.reparse)

    def names(self, directory: str) -> Iterable[tuple[str, bool]]:
        """See `ForkWriter.names`."""
        return [(name, record.is_directory) for name, record in self._writer.names(directory)]

    def touched(self, path: str) -> bool:
        """See `ForkWriter.touched`."""
        return self._writer.touched(path)


def _seen(record: FileRecord | None) -> Seen | None:
    """A reparse point is a file, since it is no way to anything."""
    if record is None:
        return None
    return Seen(Kind.DIRECTORY if record.is_directory and not record.reparse else Kind.FILE)
