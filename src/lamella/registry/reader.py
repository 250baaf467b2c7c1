# SPDX-License-Identifier: Apache-2.0
"""The reader of images in a registry."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from functools import partial
from typing import BinaryIO, Final, cast

from lamella.digests import Digest
from lamella.errors import Exhausted, NotFound, SizeMismatch
from lamella.images.contract import ImageReader, StoredImage
from lamella.images.options import RegistryOptions
from lamella.images.transports import ImageName
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import MAX_DOCUMENT
from lamella.registry.blob_fetch import READ_AHEAD, BlobStream
from lamella.registry.client import DOCUMENTS, Client

_MAX_CACHED: Final = 16 << 20
"""Bytes of documents that are cached."""


class RegistryReader(ImageReader):
    """Reads the image that a tag or a digest names in a repository, and what it refers to by digest.

    The tag is resolved once, on first use, so that the image stays the same if the tag moves. Documents are cached;
    other blobs are streamed.
    """

    def __init__(self, client: Client, tag: str | None = None, digest: Digest | None = None) -> None:
        self.client = client
        self.where = f"docker://{client.name}"
        self._tag = tag
        self._digest = digest
        self._budget = threading.Semaphore(READ_AHEAD)
        self._lock = threading.Lock()
        self._image: StoredImage | None = None
        self._documents: dict[Digest, bytes] = {}
        self._cached = 0
        if client.options.foreign_urls:
            from lamella.registry.blob_fetch import ForeignLayers

            self.foreign_layers = ForeignLayers(self.where, client.options, client.own.origin)

    def images(self) -> Sequence[StoredImage]:
        with self._lock:
            if self._image is None:
                reference = self._digest or self._tag
                if reference is None:
                    raise NotFound(f"{self.where}: no image is named")
                descriptor, raw = self.client.manifest(reference)
                self._cache(descriptor.digest, raw)
                self._image = StoredImage((self._tag,) if self._tag else (), descriptor)
            return [self._image]

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """Open a stream whose first response has arrived. Raises Denied, Unavailable and Cancelled too."""
        raw = self._documents.get(descriptor.digest)
        if raw is None and descriptor.media_type in DOCUMENTS:
            raw = self._fetch_document(descriptor)
        if raw is not None:
            if len(raw) != descriptor.size:
                raise SizeMismatch(f"{self.where}: {descriptor.digest}", expected=descriptor.size, actual=len(raw))
            return io.BytesIO(raw)
        fetch = partial(self.client.blob, descriptor.digest)
        return cast("BinaryIO", BlobStream(fetch, descriptor, self.where, self.client.options, self._budget))

    def read_document(self, descriptor: Descriptor) -> bytes:
        raw = super().read_document(descriptor)
        with self._lock:
            self._cache(descriptor.digest, raw)
        return raw

    def close(self) -> None:
        super().close()
        self.client.close()

    def _fetch_document(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > MAX_DOCUMENT:
            raise Exhausted(f"{self.where}: {descriptor.digest}: more than the {MAX_DOCUMENT} bytes of a document")
        return self.client.manifest(descriptor.digest)[1]

    def _cache(self, digest: Digest, raw: bytes) -> None:
        if digest not in self._documents and self._cached + len(raw) <= _MAX_CACHED:
            self._documents[digest] = raw
            self._cached += len(raw)


def open_registry(name: ImageName, options: RegistryOptions | None = None) -> RegistryReader:
    """A reader of the repository in ``name``. Sends no request yet."""
    registry, _, repository = name.path.partition("/")
    return RegistryReader(Client(registry, repository, options), name.tag, name.digest)
