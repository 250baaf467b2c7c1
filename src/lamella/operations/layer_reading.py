# SPDX-License-Identifier: Apache-2.0
"""The layers of images, each read once, whole and checked, as changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.tree import MemorySink, MemoryTree
from lamella.images.image import ImageLayer
from lamella.layers.tarball import tar_changes
from lamella.streams.reading import BlobReader
from lamella.streams.seekable import SeekableBlob

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress


@contextmanager
def checked_reader(
    layer: ImageLayer, progress: Progress | None = None, cancel: Cancellation | None = None
) -> Iterator[BlobReader]:
    """A pass over the layer's blob, with all that manifest and config promise of it compared at its end."""
    with (
        layer.open() as file,
        BlobReader(
            file,
            compression=layer.compression,
            digest=layer.descriptor.digest,
            size=layer.descriptor.size,
            diff_id=layer.diff_id,
            progress=None if progress is None else progress.advance,
            cancel=cancel,
        ) as reader,
    ):
        yield reader


@contextmanager
def layer_changes(
    layer: ImageLayer,
    stored: SeekableBlob | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Iterator[Source]:
    """The changes of a layer; what is wrong with its bytes is raised before they end. See `tar_changes`."""
    with checked_reader(layer, progress, cancel) as reader:
        yield tar_changes(reader.next_buffer, stored=stored, end=reader.finish)
        reader.finish()


@contextmanager
def lower_and_upper(
    layers: Sequence[ImageLayer], count: int, *, progress: Progress | None = None, cancel: Cancellation | None = None
) -> Iterator[tuple[MemoryTree | None, MemoryTree]]:
    """What the first ``count`` of ``layers`` come to, None where that is none, and what all of them come to.

    Each layer is read once; the content of files is read from the layers when it is asked for, until the block ends.
    Raises as unpacking does.
    """
    lower, upper = MemoryTree() if count else None, MemoryTree()
    with ExitStack() as stack:
        if progress is not None:
            progress.start("read", sum(layer.descriptor.size for layer in layers))
        try:
            for at, layer in enumerate(layers):
                stored = SeekableBlob(layer.open, layer.compression)
                stack.callback(stored.close)
                with layer_changes(layer, stored, progress, cancel) as changes:
                    if lower is not None and at < count:
                        changes = list(changes)
                        apply(changes, MemorySink(lower), cancel=cancel)
                    apply(changes, MemorySink(upper), cancel=cancel)
        finally:
            if progress is not None:
                progress.finish()
        yield lower, upper
