# SPDX-License-Identifier: Apache-2.0
"""A kind of layer: one uncompressed tar file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.losses import Losses
from lamella.changes.single_layer import show_links
from lamella.changes.tree import MemorySink, MemoryTree
from lamella.layers.kinds import LayerKind, Lookup, SinkOptions, SourceOptions, UnpackForm
from lamella.layers.tar.sink import TarSink
from lamella.layers.tar.source import tar_changes
from lamella.streams.blob_reader import BlobReader, open_blob
from lamella.streams.seekable import SeekableBlob


class TarFileSink(TarSink):
    """Writes a tar file, which gets its name at the commit."""

    def __init__(self, path: Path, losses: Losses | None) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._file = self._partial.open("xb")
        super().__init__(self._file.write, root=True, losses=losses)

    def commit(self) -> Losses:
        losses = super().commit()
        self._file.close()
        self._partial.rename(self._path)
        return losses

    def abort(self) -> None:
        super().abort()
        self._file.close()
        self._partial.unlink(missing_ok=True)


class TarFileTree(MemoryTree):
    """The files of a tar file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._stored = SeekableBlob(lambda: open_blob(path))
        with BlobReader(path, hash_blob=False, hash_stream=False) as reader:
            changes = tar_changes(reader.next_buffer, stored=self._stored, end=reader.finish)
            apply(show_links(changes, self), MemorySink(self))

    def close(self) -> None:
        self._stored.close()


def _sink(place: Path, parents: Sequence[Path], options: SinkOptions) -> TarFileSink:
    del parents
    return TarFileSink(place, options.losses)


def _source(stack: ExitStack, place: Path, options: SourceOptions) -> tuple[Source, Lookup | None]:
    del options
    reader = stack.enter_context(BlobReader(place, hash_blob=False, hash_stream=False))
    return tar_changes(reader.next_buffer, end=reader.finish), None


TARFILE = LayerKind(
    "a tar file",
    _sink,
    _source,
    TarFileTree,
    is_file=True,
    changes_only=True,
    unpack=UnpackForm.LAYERS,
    layer_place="{}.tar",
    mount_type="tarfile",
)
