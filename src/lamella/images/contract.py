# SPDX-License-Identifier: Apache-2.0
"""The contract of places that hold images: `ImageReader` and `ImageWriter`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import BinaryIO, Protocol, Self, TypeAlias

from msgspec import Struct

from lamella.digests import Digest
from lamella.errors import DigestMismatch, Exhausted, NotFound, SizeMismatch
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import MAX_DOCUMENT
from lamella.oci.mediatypes import FOREIGN_LAYERS

Buffer: TypeAlias = bytes | bytearray | memoryview


class StoredImage(Struct, frozen=True):
    """An image, or index of images, that a place lists."""

    names: tuple[str, ...]
    """The names it has there."""
    descriptor: Descriptor


class ForeignLayerSource(Protocol):
    """Fetches non-distributable layers from the URLs of their descriptors."""

    def __call__(self, layer: Descriptor) -> BinaryIO:
        """Open a layer, its digest *not* yet checked. Raises NotFound, SizeMismatch, Denied, Unavailable, Cancelled."""
        ...

    def close(self) -> None:
        """Close idle connections. May be called again; open streams stay usable."""
        ...


class ImageReader(Protocol):
    """Reads the images of a place. It never follows a link out of the place, and opens only regular files.

    Usable from several threads; the streams it has opened stay usable after `close`.
    """

    where: str
    """The place, for messages."""
    foreign_layers: ForeignLayerSource | None = None
    """Where non-distributable layers come from that the place lacks; None if that is not allowed."""

    plain_files: bool = False
    """Whether blobs are plain local files or parts of one, so that a forked process can read them through its copy."""

    def images(self) -> Sequence[StoredImage]:
        """The images of the place, in its own order."""
        ...

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """Open a blob as stored, of the promised size, its digest *not* yet checked; the caller closes it.

        Raises NotFound, SizeMismatch, InvalidInput (not a regular file).
        """
        ...

    def open_layer(self, layer: Descriptor) -> BinaryIO:
        """Open a blob as `open_blob` does, a missing non-distributable layer through ``foreign_layers``.

        Raises Denied, Unavailable and Cancelled too.
        """
        try:
            return self.open_blob(layer)
        except NotFound:
            if self.foreign_layers is None or not (layer.urls and layer.media_type in FOREIGN_LAYERS):
                raise
        return self.foreign_layers(layer)

    def has_blob(self, blob: Descriptor) -> bool:
        """Whether `open_layer` finds the blob. Raises other errors as that does."""
        try:
            self.open_layer(blob).close()
        except NotFound:
            return False
        return True

    def close(self) -> None:
        """Close the place and ``foreign_layers``. May be called again."""
        if self.foreign_layers is not None:
            self.foreign_layers.close()

    def read_document(self, descriptor: Descriptor) -> bytes:
        """Read a small blob and check its size and digest. Raises as `open_blob`; Exhausted, DigestMismatch."""
        what = f"{self.where}: {descriptor.digest}"
        if descriptor.size > MAX_DOCUMENT:
            raise Exhausted(f"{what}: {descriptor.size} bytes are more than the {MAX_DOCUMENT} of a document")
        with self.open_blob(descriptor) as file:
            found = bytearray()
            while len(found) <= descriptor.size and (more := file.read(descriptor.size + 1 - len(found))):
                found += more  # reads may be short
        raw = bytes(found)
        if len(raw) != descriptor.size:
            raise SizeMismatch(what, expected=descriptor.size, actual=len(raw))
        actual = Digest.of(raw, descriptor.digest.algorithm)
        if actual != descriptor.digest:
            raise DigestMismatch(what, expected=descriptor.digest, actual=actual)
        return raw

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class StagedBlob(Protocol):
    """A blob that is being written. Leaving its block without `keep` discards it."""

    file: BinaryIO
    """Unbuffered; write the bytes of the blob here."""

    def keep(self, digest: Digest, size: int) -> None:
        """Complete the blob. The caller has computed the digest while writing. Raises SizeMismatch."""
        ...

    def discard(self) -> None:
        """Remove the blob."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.discard()


class ImageWriter(Protocol):
    """Writes the blobs of an image, then its name. The image is invisible before `commit`.

    No call may follow `commit` or `abort`. Leaving its block without a commit aborts.
    """

    where: str
    """The place, for messages."""
    takes_indexes: bool
    """Whether an index of several platforms can be committed."""
    leaves_foreign: bool = True
    """Whether an image may lack non-distributable layers; readers fetch them from the URLs of their descriptors."""
    concurrent_puts: int = 1
    """Threads that may put blobs at once."""
    is_remote: bool = False
    """Whether `has_blob` takes a round trip, so that several blobs are asked for at once."""

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the place holds the blob with the right size, or it has been put."""
        ...

    def put_blob(self, descriptor: Descriptor, chunks: Iterable[Buffer]) -> None:
        """Store a blob and check its size and digest on the way. Raises SizeMismatch, DigestMismatch.

        A chunk is not used after the next is requested: all may share one buffer.
        """
        ...

    def adopt(self, descriptor: Descriptor, source: ImageReader) -> bool:  # noqa: ARG002
        """Take a blob over from ``source`` without transferring its bytes; False where the places cannot."""
        return False

    def stage(self) -> StagedBlob:
        """Begin a blob whose digest is only known at its end."""
        ...

    def commit(self, tag: str | None, image: Descriptor) -> Descriptor:
        """Make the image visible under ``tag``, atomically; ``image`` is a manifest or index that has been put.

        Returns the entry as written. Raises Conflict where a blob is missing.
        """
        ...

    def abort(self) -> None:
        """Discard everything. May be called again, and after `commit`, without effect."""
        ...

    def put_document(self, media_type: str, raw: bytes) -> Descriptor:
        """Store a small blob and return its descriptor."""
        descriptor = Descriptor(media_type=media_type, digest=Digest.of(raw), size=len(raw))
        if not self.has_blob(descriptor):
            self.put_blob(descriptor, [raw])
        return descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.abort()


def verify_chunks(descriptor: Descriptor, chunks: Iterable[Buffer], what: str) -> Iterator[Buffer]:
    """Yield the chunks of a blob and check its size and digest on the way. Raises SizeMismatch, DigestMismatch."""
    state = hashlib.new(descriptor.digest.algorithm)
    promised, size = descriptor.size, 0
    for chunk in chunks:
        size += len(chunk)
        if size > promised:
            raise SizeMismatch(what, expected=promised, actual="more")
        state.update(chunk)
        yield chunk
    if size != promised:
        raise SizeMismatch(what, expected=promised, actual=size)
    actual = Digest.finish(state)
    if actual != descriptor.digest:
        raise DigestMismatch(what, expected=descriptor.digest, actual=actual)
