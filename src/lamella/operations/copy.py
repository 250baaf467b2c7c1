# SPDX-License-Identifier: Apache-2.0
"""Copies of images from one place to another, byte for byte.

`ImageGraph` gives the blobs, `put_missing` puts those that the target lacks, then the target commits the name.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from msgspec import Struct
from msgspec.structs import replace as replaced

from lamella.changes.job import Job
from lamella.digests import Digest
from lamella.errors import Unsupported
from lamella.images.contract import ImageReader, ImageWriter
from lamella.images.graph import ImageGraph
from lamella.images.resolve import choose_image, open_layer
from lamella.images.transports import ImageName, open_reader, open_writer, parse_image_name
from lamella.oci.descriptor import Descriptor
from lamella.oci.mediatypes import FOREIGN_LAYERS, INDEXES
from lamella.oci.platform import Platform, parse_platform
from lamella.parallel import Consumer, for_each

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress

_CHUNK: Final = 1 << 20


class Copied(Struct, frozen=True):
    """The result of a copy."""

    entry: Descriptor
    """The entry in the target: a manifest, or an index with all platforms."""
    blobs: int
    """Written blobs, documents included."""
    size: int
    """Bytes of the written blobs."""
    present: int
    """Blobs that the target held before."""
    left: int = 0
    """Non-distributable layers that the source lacks, and that the copy lacks too."""


def copy(
    source: str | ImageName,
    target: str | ImageName,
    *,
    platform: str | Platform | None = None,
    all_platforms: bool = False,
    replace: bool = False,
    job: Job | None = None,
) -> Copied:
    """Copy the image that ``source`` names to ``target``, which is unchanged until the copy is complete and checked.

    With ``all_platforms``, an index is copied with all that it leads to. ``replace`` overwrites an existing archive.
    Raises as `copy_image`; AlreadyExists.
    """
    job = job or Job()
    source = parse_image_name(source) if isinstance(source, str) else source
    target = parse_image_name(target) if isinstance(target, str) else target
    platform = parse_platform(platform) if isinstance(platform, str) else platform
    with open_reader(source) as reader, open_writer(target, replace=replace) as writer:
        graph = ImageGraph(reader, cancel=job.cancel)
        image = choose_image(graph, source.tag, platform, source.position, all_platforms=all_platforms)
        return copy_image(graph, writer, image, target.tag, job)


def copy_image(
    graph: ImageGraph, writer: ImageWriter, image: Descriptor, tag: str | None, job: Job | None = None
) -> Copied:
    """Copy ``image``, a manifest or index of ``graph``, with all that it leads to, and commit it as ``tag``.

    Manifests are copied unchanged, so that digests stay. Sizes and digests are checked on the way; blobs that the
    target holds are not read. Non-distributable layers that the source lacks are left out.
    Raises Integrity, NotFound, InvalidInput, Unsupported (an index, GraphLimit), Exhausted.
    """
    if image.media_type in INDEXES and not writer.takes_indexes:
        raise Unsupported(f"{writer.where}: the place cannot hold an index", hint="choose one platform")
    moved = move_blobs(graph, writer, [image], job or Job())
    bare = Descriptor(media_type=image.media_type, digest=image.digest, size=image.size, platform=image.platform)
    return replaced(moved, entry=writer.commit(tag, bare))


def move_blobs(graph: ImageGraph, writer: ImageWriter, images: Sequence[Descriptor], job: Job) -> Copied:
    """Put all blobs of ``images``, manifests and indexes of ``graph``, into ``writer``, unless it holds them.

    Nothing is committed. The entry of the result is the last image. Raises as `copy_image` does.
    """
    blobs = [(graph.reader, node.descriptor) for node in graph.walk(images)]
    put, left = put_missing(writer, blobs, job)
    return Copied(
        images[-1], len(put), sum(blob.size for blob in put), len(blobs) - len(put) - len(left), left=len(left)
    )


class BlobObserver(Protocol):
    """Receives the progress of each blob of a copy, from any thread."""

    def present(self, blob: Descriptor) -> None:
        """The target holds the blob, or has taken it over from the source."""
        ...

    def start(self, blob: Descriptor) -> Progress:
        """The blob is being put. Returns the progress of its bytes, which begins again after a lost upload."""
        ...

    def finish(self, blob: Descriptor) -> None:
        """The blob has been put."""
        ...


def put_missing(
    writer: ImageWriter,
    blobs: Sequence[tuple[ImageReader, Descriptor]],
    job: Job,
    observer: BlobObserver | None = None,
) -> tuple[list[Descriptor], list[Descriptor]]:
    """Put the blobs that ``writer`` neither holds nor can adopt, several at once.

    The progress of ``job`` receives all bytes together, ``observer`` those of each blob. Returns the blobs that were
    put, and the non-distributable layers that are missing from their reader.
    """
    lacking = _find_lacking(writer, blobs, job)
    missing = [part for part in blobs if part[1].digest in lacking]
    if observer is not None:
        for _, blob in blobs:
            if blob.digest not in lacking:
                observer.present(blob)
    left: dict[Digest, Descriptor] = {}

    def put(part: tuple[ImageReader, Descriptor], stop: Cancellation) -> None:
        reader, blob = part
        if writer.leaves_foreign and blob.media_type in FOREIGN_LAYERS and not reader.has_blob(blob):
            left[blob.digest] = blob
            return
        progress = job.progress if observer is None else observer.start(blob)
        writer.put_blob(blob, BlobPieces(partial(open_layer, reader, blob), progress, stop))
        if observer is not None:
            observer.finish(blob)

    with job.step("copy", sum(blob.size for _, blob in missing)):
        for_each(missing, [Consumer(put)] * min(writer.concurrent_puts, len(missing)), job.cancel)
    return [blob for _, blob in missing if blob.digest not in left], list(left.values())


def _find_lacking(writer: ImageWriter, blobs: Sequence[tuple[ImageReader, Descriptor]], job: Job) -> set[Digest]:
    """The digests that ``writer`` neither holds nor can adopt."""
    lacking: set[Digest] = set()

    def look(part: tuple[ImageReader, Descriptor], _: Cancellation) -> None:
        if not (writer.has_blob(part[1]) or writer.adopt(part[1], part[0])):
            lacking.add(part[1].digest)

    # The first request alone: it obtains the token and the connection that the others share.
    first = 1 if writer.is_remote else len(blobs)
    for_each(blobs[:first], [Consumer(look)], job.cancel)
    for_each(blobs[first:], [Consumer(look)] * min(writer.concurrent_puts, len(blobs) - first), job.cancel)
    return lacking


class BlobPieces:
    """The bytes of a blob; every iteration reads them again, since a registry may lose an upload.

    A piece is valid until the next is requested. Iteration reports to ``progress`` and raises Cancelled.
    """

    def __init__(
        self, open_blob: Callable[[], BinaryIO], progress: Progress | None, cancel: Cancellation | None
    ) -> None:
        self._open = open_blob
        self._progress = progress
        self._cancel = cancel

    def __iter__(self) -> Iterator[memoryview]:
        view = memoryview(bytearray(_CHUNK))
        with self._open() as file:
            readinto = file.readinto if isinstance(file, (io.RawIOBase, io.BufferedIOBase)) else None
            while chunk := view[: readinto(view) or 0] if readinto is not None else memoryview(file.read(_CHUNK)):
                if self._cancel is not None:
                    self._cancel.check()
                yield chunk
                if self._progress is not None:
                    self._progress.advance(len(chunk))
