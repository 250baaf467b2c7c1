# SPDX-License-Identifier: Apache-2.0
"""The writer of images to a registry."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, Final, cast

from lamella.digests import Digest
from lamella.errors import Conflict, Denied, InvalidInput, SizeMismatch, Unsupported, from_os
from lamella.images.contract import Buffer, ImageReader, ImageWriter, StagedBlob, StoredImage, verify_chunks
from lamella.images.graph import ImageGraph, Node, only_entries
from lamella.images.options import RegistryOptions
from lamella.images.transports import ImageName
from lamella.oci.descriptor import Descriptor
from lamella.registry.client import DOCUMENTS, Client
from lamella.registry.push import Upload, UploadLost
from lamella.registry.reader import RegistryReader

PIECE_SIZE: Final = 6 << 20
"""Bytes of one request of an upload, buffered until they have arrived; S3 behind a registry needs 5 MiB at least."""

_UPLOAD_TRIES: Final = 3
"""Uploads of one blob that the registry may lose, less one."""

_READ_SIZE: Final = 1 << 20


class RegistryWriter(ImageWriter):
    """Pushes an image to a repository: blobs as they are put, manifests and the tag by `commit`.

    Before `commit`, only the blobs are visible, by digest. Blobs of an interrupted push stay for the next one, and for
    the registry's garbage collection.
    """

    takes_indexes = True
    concurrent_puts = 4
    is_remote = True

    def __init__(self, client: Client, digest: Digest | None = None) -> None:
        self.client = client
        self.where = f"docker://{client.name}"
        self._digest = digest
        self._sizes: dict[Digest, int] = {}
        self._documents: dict[Digest, bytes] = {}
        self._uploads: dict[Digest, Upload] = {}

    def has_blob(self, descriptor: Descriptor) -> bool:
        digest = descriptor.digest
        if digest in self._documents:
            return True
        if digest not in self._sizes:
            if descriptor.media_type in DOCUMENTS:
                found = self.client.find_manifest(digest)
                size = None if found is None else found.size
            else:
                size = self.client.blob_size(digest)
            if size is None:
                return False
            self._sizes[digest] = descriptor.size if size < 0 else size
        return self._sizes[digest] == descriptor.size

    def adopt(self, descriptor: Descriptor, source: ImageReader) -> bool:
        if not isinstance(source, RegistryReader) or descriptor.media_type in DOCUMENTS:
            return False
        other = source.client
        if other.registry != self.client.registry or other.repository == self.client.repository:
            return False
        try:
            upload = self.client.mount_blob(descriptor.digest, other.repository)
        except (Denied, InvalidInput, Unsupported):
            return False
        if upload is not None:
            self._uploads[descriptor.digest] = upload
            return False
        self._sizes[descriptor.digest] = descriptor.size
        return True

    def put_blob(self, descriptor: Descriptor, chunks: Iterable[Buffer]) -> None:
        """Upload a blob in pieces; a piece that is lost is sent again.

        An upload that the registry loses is started again if ``chunks`` can be iterated again. Documents are held
        until `commit`. Raises Denied, Unavailable, Exhausted and Unsupported too.
        """
        if descriptor.media_type in DOCUMENTS:
            raw = b"".join(bytes(piece) for piece in verify_chunks(descriptor, chunks, self._what(descriptor)))
            self._documents[descriptor.digest] = raw
            return
        once = isinstance(chunks, Iterator)
        for left in reversed(range(_UPLOAD_TRIES)):
            try:
                self._send(descriptor, verify_chunks(descriptor, chunks, self._what(descriptor)))
                break
            except UploadLost:
                if once or not left:
                    raise
        self._sizes[descriptor.digest] = descriptor.size

    def stage(self) -> StagedBlob:
        return _Staged(self)

    def commit(self, tag: str | None, image: Descriptor) -> Descriptor:
        if self._digest is not None and self._digest != image.digest:
            raise Conflict(
                f"{self.where}: the image is {image.digest}, but its name has {self._digest}",
                hint="push to a tag",
            )
        graph = ImageGraph(_Documents(self.client, self._documents))
        for node in graph.check_complete(image, self.has_blob, self._own_entries):  # not every registry checks
            name = node.digest if node.digest != image.digest else tag or image.digest
            self.client.put_manifest(name, node.descriptor.media_type, node.raw)
        self.abort()
        return image

    def abort(self) -> None:
        uploads, self._uploads = list(self._uploads.values()), {}
        for upload in uploads:
            upload.cancel()
        self._documents.clear()
        self.client.close()

    def _send(self, descriptor: Descriptor, chunks: Iterator[Buffer]) -> None:
        """Upload a blob: a small one by a single request, a larger one in pieces."""
        digest = descriptor.digest
        upload = self._uploads.pop(digest, None)
        buffer = bytearray(min(descriptor.size, PIECE_SIZE))
        filled = 0
        sent = False
        try:
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    if filled == len(buffer):
                        upload = upload or self.client.start_upload()
                        if upload.chunk_minimum > filled:
                            buffer += bytes(upload.chunk_minimum - filled)
                        else:
                            upload.send(memoryview(buffer))
                            filled, sent = 0, True
                    count = min(len(rest), len(buffer) - filled)
                    buffer[filled : filled + count] = rest[:count]
                    filled += count
                    rest = rest[count:]
            for left in reversed(range(_UPLOAD_TRIES)):
                upload = upload or self.client.start_upload()
                try:
                    upload.finish(digest, memoryview(buffer)[:filled])
                    return
                except UploadLost:
                    if sent or not left:
                        raise
                    upload = None
        except BaseException as problem:
            if upload is not None and not isinstance(problem, UploadLost):
                upload.cancel()
            raise

    def _own_entries(self, node: Node) -> Iterable[Descriptor]:
        """The entries of an index that are not put yet; those that the registry has are complete."""
        return (entry for entry in only_entries(node) if entry.digest in self._documents)

    def _what(self, descriptor: Descriptor) -> str:
        return f"{self.where}: blob {descriptor.digest}"


class _Documents(ImageReader):
    """Manifests and indexes that are not put yet, or that the registry has and that get a new tag."""

    def __init__(self, client: Client, pending: Mapping[Digest, bytes]) -> None:
        self.where = f"docker://{client.name}"
        self._client = client
        self._pending = pending

    def images(self) -> Sequence[StoredImage]:
        return ()

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        raw = self._pending.get(descriptor.digest)
        return io.BytesIO(self._client.manifest(descriptor.digest)[1] if raw is None else raw)


class _Staged(StagedBlob):
    """A blob in an anonymous temporary file, uploaded when it is complete."""

    def __init__(self, writer: RegistryWriter) -> None:
        self._writer = writer
        self._open = True
        try:
            self.file = cast("BinaryIO", tempfile.TemporaryFile(buffering=0, prefix="lamella-"))  # noqa: SIM115
        except OSError as problem:
            raise from_os(problem, "create a temporary file") from problem

    def keep(self, digest: Digest, size: int) -> None:
        if not self._open:
            raise ValueError("the blob has been kept or discarded")
        actual = self.file.seek(0, 2)
        if actual != size:
            raise SizeMismatch(f"{self._writer.where}: blob {digest}", expected=size, actual=actual)
        descriptor = Descriptor(media_type="application/octet-stream", digest=digest, size=size)
        if not self._writer.has_blob(descriptor):
            self._writer.put_blob(descriptor, _FileChunks(self.file))
        self.discard()

    def discard(self) -> None:
        if self._open:
            self._open = False
            self.file.close()


class _FileChunks:
    """The chunks of a file, from its start for each iteration."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        while chunk := self._file.read(_READ_SIZE):
            yield chunk


def open_registry(name: ImageName, options: RegistryOptions | None = None) -> RegistryWriter:
    """A writer to the repository in ``name``. Sends no request yet."""
    registry, _, repository = name.path.partition("/")
    return RegistryWriter(Client(registry, repository, options), name.digest)
