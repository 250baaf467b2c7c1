# SPDX-License-Identifier: Apache-2.0
"""Writes images to a registry."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import BinaryIO, Final, Self, cast

from lamella.digests import Digest
from lamella.errors import Conflict, Denied, DigestMismatch, InvalidInput, SizeMismatch, Unsupported, from_os
from lamella.images.contract import Buffer, ImageReader, ImageWriter, StagedBlob, StoredImage
from lamella.images.graph import ImageGraph, Node, only_entries
from lamella.images.options import RegistryOptions
from lamella.images.transports import ImageName
from lamella.oci.descriptor import Descriptor
from lamella.registry.client import DOCUMENTS, Client
from lamella.registry.push import Upload, UploadLost
from lamella.registry.reader import RegistryReader

PIECE: Final = 6 << 20
"""Bytes that are sent by one request, and kept until they have arrived; stores behind registries want 5 MiB or more."""

_ANEW: Final = 3
"""How often a blob is begun again that a registry lost."""

_CHUNK: Final = 1 << 20


class RegistryWriter(ImageWriter):
    """Puts an image into a repository: blobs as they come, manifests and the tag at the end.

    A registry shows blobs to those who know their digests as soon as they are there; that is all of the image that is
    to be seen before `commit`. What a broken-off push has put is there for the next one.
    """

    takes_indexes = True
    concurrent_puts = 4
    is_remote = True

    def __init__(self, client: Client, digest: Digest | None = None) -> None:
        self.client = client
        self.where = f"docker://{client.name}"
        self._digest = digest
        self._there: dict[Digest, int] = {}
        self._documents: dict[Digest, bytes] = {}
        self._begun: dict[Digest, Upload] = {}

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the repository has it; the registry is asked once."""
        digest = descriptor.digest
        if digest in self._documents:
            return True
        if digest not in self._there:
            if descriptor.media_type in DOCUMENTS:
                found = self.client.find_manifest(digest)
                size = None if found is None else found.size
            else:
                size = self.client.blob_size(digest)
            if size is None:
                return False
            self._there[digest] = descriptor.size if size < 0 else size
        return self._there[digest] == descriptor.size

    def adopt(self, descriptor: Descriptor, source: ImageReader) -> bool:
        """Let the registry take the blob over from another of its repositories, where ``source`` is one."""
        if not isinstance(source, RegistryReader) or descriptor.media_type in DOCUMENTS:
            return False
        theirs = source.client
        if theirs.registry != self.client.registry or theirs.repository == self.client.repository:
            return False
        try:
            upload = self.client.mount_blob(descriptor.digest, theirs.repository)
        except (Denied, InvalidInput, Unsupported):
            return False
        if upload is not None:
            self._begun[descriptor.digest] = upload
            return False
        self._there[descriptor.digest] = descriptor.size
        return True

    def put_blob(self, descriptor: Descriptor, chunks: Iterable[Buffer]) -> None:
        """Send a blob, checked, in pieces that are sent again where they get lost.

        Where the registry loses the whole upload, it is begun again if ``chunks`` can be gone through again. Raises
        Denied, Unavailable, Exhausted, Unsupported too.
        """
        if descriptor.media_type in DOCUMENTS:
            raw = b"".join(bytes(piece) for piece in _checked(descriptor, chunks, self._what(descriptor)))
            self._documents[descriptor.digest] = raw
            return
        once = isinstance(chunks, Iterator)
        for left in reversed(range(_ANEW)):
            try:
                self._send(descriptor, _checked(descriptor, chunks, self._what(descriptor)))
                break
            except UploadLost:
                if once or not left:
                    raise
        self._there[descriptor.digest] = descriptor.size

    def stage(self) -> StagedBlob:
        """A temporary file, which is sent when it is complete."""
        return _Staged(self)

    def commit(self, tag: str | None, image: Descriptor) -> Descriptor:
        """Put the manifests, parts before what names them, and the tag with the last."""
        if self._digest is not None and self._digest != image.digest:
            raise Conflict(
                f"{self.where}: the image is {image.digest}, and not the {self._digest} that its name says",
                hint="push to a tag",
            )
        graph = ImageGraph(_Documents(self.client, self._documents))
        for node in list(graph.check_complete(image, self.has_blob, self._own_entries)):  # not every registry checks
            name = node.digest if node.digest != image.digest else tag or image.digest
            self.client.put_manifest(name, node.descriptor.media_type, node.raw)
        self.abort()
        return image

    def abort(self) -> None:
        """Tell the registry to forget what was begun; blobs that are there stay for its own cleaning up."""
        uploads, self._begun = list(self._begun.values()), {}
        for upload in uploads:
            upload.cancel()
        self._documents.clear()
        self.client.close()

    def _send(self, descriptor: Descriptor, chunks: Iterator[memoryview]) -> None:
        """Send a blob: a small one by a single request, a larger one in pieces."""
        digest = descriptor.digest
        upload = self._begun.pop(digest, None)
        buffer = bytearray(min(descriptor.size, PIECE))
        filled = 0
        sent = False
        try:
            for chunk in chunks:
                rest = chunk
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
            for left in reversed(range(_ANEW)):
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
        """The documents of an index that wait to be put; what the registry has is complete."""
        return (entry for entry in only_entries(node) if entry.digest in self._documents)

    def _what(self, descriptor: Descriptor) -> str:
        return f"{self.where}: blob {descriptor.digest}"


class _Documents(ImageReader):
    """Manifests and indexes that wait to be put, or that another push has put; their bytes are needed for a new tag."""

    def __init__(self, client: Client, waiting: Mapping[Digest, bytes]) -> None:
        self.where = f"docker://{client.name}"
        self._client = client
        self._waiting = waiting

    def images(self) -> Sequence[StoredImage]:
        return ()

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        raw = self._waiting.get(descriptor.digest)
        return io.BytesIO(self._client.manifest(descriptor.digest)[1] if raw is None else raw)


class _Staged(StagedBlob):
    """A blob in a temporary file without a name."""

    def __init__(self, writer: RegistryWriter) -> None:
        self._writer = writer
        self._open = True
        try:
            self.file = cast("BinaryIO", tempfile.TemporaryFile(buffering=0, prefix="lamella-"))  # noqa: SIM115
        except OSError as problem:
            raise from_os(problem, "make a temporary file") from problem

    def keep(self, digest: Digest, size: int) -> None:
        """Send the blob."""
        if not self._open:
            raise ValueError("the blob was kept or discarded already")
        actual = self.file.seek(0, 2)
        if actual != size:
            raise SizeMismatch(f"{self._writer.where}: blob {digest}", expected=size, actual=actual)
        descriptor = Descriptor(media_type="application/octet-stream", digest=digest, size=size)
        if not self._writer.has_blob(descriptor):
            self._writer.put_blob(descriptor, _FileChunks(self.file))
        self.discard()

    def discard(self) -> None:
        """Drop the file."""
        if self._open:
            self._open = False
            self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.discard()


class _FileChunks:
    """All of a file, as often as it is gone through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK):
            yield chunk


def open_registry(name: ImageName, options: RegistryOptions | None = None) -> RegistryWriter:
    """A writer to the repository that ``name`` names; nothing is asked of the registry yet."""
    registry, _, repository = name.path.partition("/")
    return RegistryWriter(Client(registry, repository, options), name.digest)


def _checked(descriptor: Descriptor, chunks: Iterable[Buffer], what: str) -> Iterator[memoryview]:
    """The chunks, whose size and digest together are those promised. Raises SizeMismatch, DigestMismatch."""
    state = hashlib.new(descriptor.digest.algorithm)
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > descriptor.size:
            raise SizeMismatch(what, expected=descriptor.size, actual="more")
        state.update(chunk)
        yield memoryview(chunk)
    if size != descriptor.size:
        raise SizeMismatch(what, expected=descriptor.size, actual=size)
    actual = Digest.finish(state)
    if actual != descriptor.digest:
        raise DigestMismatch(what, expected=descriptor.digest, actual=actual)
