# SPDX-License-Identifier: Apache-2.0
"""The layers of images, each read once, whole and checked, as changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.tree import MemorySink, MemoryTree
from lamella.images.resolve import ImageLayer, PlatformImage
from lamella.layers.tar.source import tar_changes
from lamella.streams.blob_reader import BlobReader
from lamella.streams.seekable import SeekableBlob

if TYPE_CHECKING:
    from lamella.layers.windows.casefold import Spelling
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


def is_windows(image: PlatformImage) -> bool:
    """Whether the layers of ``image`` are those of Windows."""
    return image.config.os == "windows"


def changes_of_blob(
    reader: BlobReader, *, stored: SeekableBlob | None = None, spelling: Spelling | None = None
) -> Source:
    """The changes of the blob; with ``spelling``, which the layers of a stack share, of a Windows layer.

    See `tar_changes` and `view_changes`.
    """
    if spelling is None:
        return tar_changes(reader.next_buffer, stored=stored, end=reader.finish)
    from lamella.layers.windows.casefold import view_changes

    return view_changes(reader.next_buffer, spelling, stored=stored, end=reader.finish)


@contextmanager
def layer_changes(
    layer: ImageLayer,
    stored: SeekableBlob | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
    spelling: Spelling | None = None,
) -> Iterator[Source]:
    """The changes of a layer; what is wrong with its bytes is raised before they end. See `changes_of_blob`."""
    with checked_reader(layer, progress, cancel) as reader:
        yield changes_of_blob(reader, stored=stored, spelling=spelling)
        reader.finish()


@contextmanager
def lower_and_upper(
    layers: Sequence[ImageLayer],
    count: int,
    *,
    spelling: Spelling | None = None,
    above: Callable[[Source], Source] | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Iterator[tuple[MemoryTree | None, MemoryTree]]:
    """What the first ``count`` of ``layers`` come to, None where that is none, and what all of them come to.

    Each layer is read once; the content of files is read from the layers when it is asked for, until the block ends.
    ``spelling`` is for Windows layers. What layers after the first ``count`` change goes through ``above``. Raises as
    unpacking does.
    """
    streams = spelling is not None
    lower, upper = MemoryTree(streams=streams) if count else None, MemoryTree(streams=streams)
    with ExitStack() as stack:
        if progress is not None:
            progress.start("read", sum(layer.descriptor.size for layer in layers))
        try:
            for at, layer in enumerate(layers):
                stored = SeekableBlob(layer.open, layer.compression)
                stack.callback(stored.close)
                with layer_changes(layer, stored, progress, cancel, spelling) as changes:
                    if lower is not None and at < count:
                        changes = list(changes)
                        apply(changes, MemorySink(lower), cancel=cancel)
                    elif above is not None:
                        changes = above(changes)
                    apply(changes, MemorySink(upper), cancel=cancel)
        finally:
            if progress is not None:
                progress.finish()
        yield lower, upper
