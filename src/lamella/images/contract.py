# SPDX-License-Identifier: Apache-2.0
"""What a place that holds images must offer: `ImageReader` to take from it, `ImageWriter` to put into it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    """One image, or index of images, that a place lists, with the names it has there."""

    names: tuple[str, ...]
    descriptor: Descriptor


class Elsewhere(Protocol):
    """Opens layers at the addresses that their descriptors give."""

    def __call__(self, layer: Descriptor) -> BinaryIO:
        """The bytes, their digest *not* yet checked. Raises NotFound, SizeMismatch, Denied, Unavailable, Cancelled."""
        ...

    def close(self) -> None:
        """Close idle connections. May be called again; streams that are open stay good."""
        ...


class ImageReader(Protocol):
    """Gives what a place holds. Never follows a link out of it, and opens regular files alone.

    Usable from several threads; the streams it has opened stay good after `close`.
    """

    where: str
    """The place, for messages."""
    elsewhere: Elsewhere | None = None
    """Opens layers that are not here; None where nobody has allowed that."""

    plain_files: bool = False
    """Whether blobs are plain files of this machine, or parts of one, which a fork of this process reads as well."""

    def images(self) -> Sequence[StoredImage]:
        """What is there, in the place's own order."""
        ...

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """The bytes as stored, of the promised size, their digest *not* yet checked; the caller closes it.

        Raises NotFound, SizeMismatch, InvalidInput (what is there is no regular file).
        """
        ...

    def open_layer(self, layer: Descriptor) -> BinaryIO:
        """As `open_blob`; one that is not to be passed on, and is not here, from elsewhere where that is allowed.

        Raises Denied, Unavailable and Cancelled then too.
        """
        try:
            return self.open_blob(layer)
        except NotFound:
            if self.elsewhere is None or not (layer.urls and layer.media_type in FOREIGN_LAYERS):
                raise
        return self.elsewhere(layer)

    def has_blob(self, blob: Descriptor) -> bool:
        """Whether `open_layer` finds it. Raises as that does for any other reason."""
        try:
            self.open_layer(blob).close()
        except NotFound:
            return False
        return True

    def close(self) -> None:
        """Let go of the place, and of whatever layers came from elsewhere. May be called again."""
        if self.elsewhere is not None:
            self.elsewhere.close()

    def read_document(self, descriptor: Descriptor) -> bytes:
        """A small blob, whole, with its size and digest checked. Raises as `open_blob`; Exhausted, DigestMismatch."""
        what = f"{self.where}: {descriptor.digest}"
        if descriptor.size > MAX_DOCUMENT:
            raise Exhausted(f"{what}: {descriptor.size} bytes are more than the {MAX_DOCUMENT} of a document")
        with self.open_blob(descriptor) as file:
            found = bytearray()
            while len(found) <= descriptor.size and (more := file.read(descriptor.size + 1 - len(found))):
                found += more  # a read gives what has arrived
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
    """A blob in the making. Leaving its block without `keep` discards it."""

    file: BinaryIO
    """Unbuffered; write the bytes of the blob here."""

    def keep(self, digest: Digest, size: int) -> None:
        """The blob is complete. The caller vouches for the digest, which it came to while writing.

        Raises SizeMismatch.
        """
        ...

    def discard(self) -> None:
        """Remove what was written."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class ImageWriter(Protocol):
    """Takes the blobs of an image, then its name. Nothing is to be seen before `commit`.

    Neither `commit` nor `abort` is followed by another call. Leaving its block without a commit aborts.
    """

    where: str
    """The place, for messages."""
    takes_indexes: bool
    """Whether an index of several platforms can be committed."""
    leaves_foreign: bool = True
    """Whether an image may lack layers that are not to be passed on, which are then where their descriptors say."""
    lanes: int = 1
    """How many threads may put blobs at once."""
    asks: bool = False
    """Whether to know what is there somebody has to be asked, which takes time: so for several blobs at once."""

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the blob need not be put: it is there with the right size, or has been put already."""
        ...

    def put_blob(self, descriptor: Descriptor, chunks: Iterable[Buffer]) -> None:
        """Store a blob whose size and digest are checked as it streams. Raises SizeMismatch, DigestMismatch.

        No chunk is looked at any more once the next is asked for: they may all lie in one buffer.
        """
        ...

    def adopt(self, descriptor: Descriptor, source: ImageReader) -> bool:  # noqa: ARG002
        """Take a blob from ``source`` without its bytes passing through here, where the two places know a way.

        False where they do not: the blob is to be put then.
        """
        return False

    def stage(self) -> StagedBlob:
        """A place to write a blob whose digest is known at its end only."""
        ...

    def commit(self, tag: str | None, image: Descriptor) -> Descriptor:
        """Make the image visible under ``tag``, all at once; ``image`` is a manifest or index that has been put.

        Returns the entry as written. Raises Conflict where a blob that it needs is missing.
        """
        ...

    def abort(self) -> None:
        """Give up and leave nothing behind. May be called again, and after `commit`, to no effect."""
        ...

    def put_document(self, media_type: str, raw: bytes) -> Descriptor:
        """Store a small blob and describe it."""
        descriptor = Descriptor(media_type=media_type, digest=Digest.of(raw), size=len(raw))
        if not self.has_blob(descriptor):
            self.put_blob(descriptor, [raw])
        return descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.abort()
