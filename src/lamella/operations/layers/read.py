# SPDX-License-Identifier: Apache-2.0
"""Read the layers of images as changes; each is read once, whole, and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.job import Job
from lamella.images.resolve import ImageLayer, PlatformImage
from lamella.layers.tar.source import tar_changes
from lamella.streams.blob_reader import BlobReader

if TYPE_CHECKING:
    from lamella.changes.tree import MemoryTree
    from lamella.layers.windows.names import Spelling
    from lamella.streams.seekable import SeekableBlob


@contextmanager
def checked_reader(layer: ImageLayer, job: Job) -> Iterator[BlobReader]:
    """A reader of the layer's blob, which compares digest, size and diff id with manifest and config at its end."""
    with (
        layer.open() as file,
        BlobReader(
            file,
            compression=layer.compression,
            digest=layer.descriptor.digest,
            size=layer.descriptor.size,
            diff_id=layer.diff_id,
            progress=job.advance,
            cancel=job.cancel,
        ) as reader,
    ):
        yield reader


def is_windows(image: PlatformImage) -> bool:
    """Whether the layers of ``image`` are Windows layers."""
    return image.config.os == "windows"


def changes_of_blob(
    reader: BlobReader, *, stored: SeekableBlob | None = None, spelling: Spelling | None = None
) -> Source:
    """The changes of a blob, of a Windows layer if ``spelling`` is given, which the layers of one stack share.

    ``stored`` is as for `tar_changes`.
    """
    if spelling is None:
        return tar_changes(reader.next_buffer, stored=stored, end=reader.finish)
    from lamella.layers.windows.tree import view_changes

    return view_changes(reader.next_buffer, spelling, stored=stored, end=reader.finish)


@contextmanager
def layer_changes(
    layer: ImageLayer, job: Job, *, stored: SeekableBlob | None = None, spelling: Spelling | None = None
) -> Iterator[Source]:
    """The changes of a layer, as `changes_of_blob`. A blob that differs from the manifest raises before they end."""
    with checked_reader(layer, job) as reader:
        yield changes_of_blob(reader, stored=stored, spelling=spelling)
        reader.finish()


@contextmanager
def lower_and_upper(
    layers: Sequence[ImageLayer],
    count: int,
    job: Job,
    *,
    spelling: Spelling | None = None,
    above: Callable[[Source], Source] | None = None,
) -> Iterator[tuple[MemoryTree | None, MemoryTree]]:
    """The merged view of the first ``count`` of ``layers``, None without any, and the merged view of all of them.

    Each layer is read once. File content is read from the layers on demand, until the block ends. ``spelling`` is for
    Windows layers. The changes of the layers after the first ``count`` pass through ``above``. Raises what unpacking
    raises.
    """
    from lamella.changes.tree import MemorySink, MemoryTree
    from lamella.streams.seekable import SeekableBlob

    streams = spelling is not None
    lower, upper = MemoryTree(streams=streams) if count else None, MemoryTree(streams=streams)
    with ExitStack() as stack:
        with job.step("read", sum(layer.descriptor.size for layer in layers)):
            for at, layer in enumerate(layers):
                stored = SeekableBlob(layer.open, layer.compression)
                stack.callback(stored.close)
                with layer_changes(layer, job, stored=stored, spelling=spelling) as changes:
                    if lower is not None and at < count:
                        changes = list(changes)
                        apply(changes, MemorySink(lower), cancel=job.cancel)
                    elif above is not None:
                        changes = above(changes)
                    apply(changes, MemorySink(upper), cancel=job.cancel)
        yield lower, upper
