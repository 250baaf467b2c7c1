# SPDX-License-Identifier: Apache-2.0
"""Writes images to a store, local or remote."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import BinaryIO, Final, cast

from lamella.digests import Digest
from lamella.errors import AlreadyExists, Conflict, DigestMismatch, InvalidInput, NotFound, SizeMismatch
from lamella.images.contract import Buffer, ImageReader, ImageWriter, StagedBlob
from lamella.images.graph import ImageGraph, Kind
from lamella.images.options import StoreOptions
from lamella.images.transports import ImageName
from lamella.oci.descriptor import Descriptor
from lamella.oci.mediatypes import CONFIGS, INDEXES, MANIFESTS, is_layer
from lamella.store.content.files import is_whole
from lamella.store.content.put import label_blob, put_blob
from lamella.store.contract import ImageRecord, Ingest, Namespace, Resource
from lamella.store.gc.labels import CONTENT, manifest_key, manifest_parts, reference_labels
from lamella.store.image_reader import StoreReader, open_namespace
from lamella.store.metadata.leases import under_lease
from lamella.store.store import LocalNamespace

_STAGED: Final = "staged-"


class StoreWriter(ImageWriter):
    """Writes an image to a namespace: blobs, then the labels that keep its parts alive, then its name.

    A lease holds the blobs until the image has its name. The next writer reuses the blobs of an interrupted one. A name
    of another image is only changed with ``replace``. ``closing`` is called at the end.
    """

    takes_indexes = True
    concurrent_puts = 3
    place = "the store"
    """Name of the store, for messages."""

    def __init__(
        self,
        namespace: Namespace,
        name: ImageName | None = None,
        *,
        replace: bool = False,
        closing: Callable[[], None] | None = None,
    ) -> None:
        self.where = self.place if name is None else str(name)
        self._name = name
        self._replace = replace
        self._sizes: dict[Digest, int] = {}
        with ExitStack() as stack:
            if closing is not None:
                stack.callback(closing)
            self.namespace = stack.enter_context(under_lease(namespace))
            self._undo = stack.pop_all()

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Return whether the namespace has a blob; if so, hold it by the writer's lease."""
        digest = descriptor.digest
        if digest not in self._sizes:
            content, lease = self.namespace.content, self.namespace.lease
            try:
                if content.info(digest).size != descriptor.size:
                    return False
                assert lease is not None  # noqa: S101  # `under_lease` sets it
                self.namespace.leases.add(lease, Resource(CONTENT, digest))
                size = content.info(digest).size  # it may have been collected before the lease held it
            except NotFound:
                return False
            if isinstance(self.namespace, LocalNamespace) and not is_whole(self.namespace.store.root, digest, size):
                return False
            self._sizes[digest] = size
        return self._sizes[digest] == descriptor.size

    def put_blob(self, descriptor: Descriptor, chunks: Iterable[Buffer]) -> None:
        """Store a blob and check it; resume an interrupted attempt. Raises SizeMismatch, DigestMismatch, Exhausted."""
        put_blob(self.namespace.content, descriptor, _skip_to(chunks), ref=ingest_ref(descriptor))
        self._sizes[descriptor.digest] = descriptor.size

    def adopt(self, descriptor: Descriptor, source: ImageReader) -> bool:
        """Share a blob of another namespace of the same store, if the store is not isolated."""
        if not isinstance(source, StoreReader) or not _same_store(source.namespace, self.namespace):
            return False
        try:
            with self.namespace.content.ingest(
                ingest_ref(descriptor), total=descriptor.size, expected=descriptor.digest
            ) as ingest:
                if ingest.status().offset != descriptor.size:
                    return False
                ingest.commit(descriptor.size, descriptor.digest)
        except AlreadyExists:
            return self.has_blob(descriptor)
        except Conflict:
            return False
        self._sizes[descriptor.digest] = descriptor.size
        return True

    def stage(self) -> StagedBlob:
        return _Staged(self)

    def commit(self, tag: str | None, image: Descriptor) -> Descriptor:
        """Give the image its name. Raises AlreadyExists, Conflict (a part is missing, or the digest differs)."""
        name = self._name
        if name is None:
            raise InvalidInput(f"{self.where}: the image has no name")
        if name.digest is not None and name.digest != image.digest:
            raise Conflict(
                f"{self.where}: the image is {image.digest}, not {name.digest} as in its name",
                hint="give it a tag",
            )
        self.give_name(f"{name.path}:{tag}" if tag else f"{name.path}@{image.digest}", image)
        self.abort()
        return image

    def abort(self) -> None:
        """End the lease; the next collection removes the blobs of an image without a name."""
        self._undo.close()

    def check_name(self, name: str, image: Descriptor) -> None:
        """Raise AlreadyExists if ``name`` is another image's and must not be replaced."""
        try:
            found = self.namespace.images.get(name)
        except NotFound:
            return
        if not self._replace and found.target.digest != image.digest:
            raise AlreadyExists(
                f"{self.place} has another image {name!r}: {found.target.digest}",
                hint="choose another name, or give --replace",
            )

    def give_name(self, name: str, image: Descriptor) -> None:
        """Give a complete image its name. Raises AlreadyExists, Conflict (a part is missing)."""
        self.check_name(name, image)
        self._label_parts(image)
        bare = Descriptor(media_type=image.media_type, digest=image.digest, size=image.size, platform=image.platform)
        record = ImageRecord(name, bare)
        images = self.namespace.images
        while True:
            try:
                images.create(record)
                return
            except AlreadyExists:
                pass
            self.check_name(name, image)
            try:
                if images.get(name).target != bare:
                    images.update(record, ["target"])
                return
            except NotFound:
                continue  # deleted meanwhile

    def _label_parts(self, image: Descriptor) -> None:
        """Label manifests and indexes with references to their parts, bottom up. Raises Conflict (missing part)."""
        reader = StoreReader(self.namespace)
        reader.where = self.where
        for node in ImageGraph(reader).check_complete(image, self.has_blob):
            parts: dict[str, Digest] = {}
            match node.kind:
                case Kind.INDEX:
                    parts = {manifest_key(number): entry.digest for number, entry in enumerate(node.index.manifests)}
                case Kind.MANIFEST:
                    listed = manifest_parts(node.manifest).items()
                    parts = {key: part.digest for key, part in listed if self.has_blob(part)}
                case Kind.BLOB:
                    continue
            label_blob(self.namespace.content, node.digest, reference_labels(parts))

    def commit_ingest(self, ingest: Ingest, digest: Digest, size: int) -> None:
        """Turn a complete ingest into a blob. Raises SizeMismatch, DigestMismatch."""
        what = f"{self.where}: blob {digest}"
        actual = ingest.status().offset
        if actual != size:
            raise SizeMismatch(what, expected=size, actual=actual)
        try:
            ingest.commit(size, digest)
        except AlreadyExists:
            pass
        except Conflict as problem:
            raise DigestMismatch(what, expected=digest, actual=ingest.digest()) from problem
        self._sizes[digest] = size


class _Staged(StagedBlob):
    """A staged blob in an ingest."""

    def __init__(self, writer: StoreWriter) -> None:
        import secrets

        self._writer = writer
        self._ref = _STAGED + secrets.token_hex(8)
        self._ingest: Ingest | None = writer.namespace.content.ingest(self._ref)
        self.file = cast("BinaryIO", _IngestFile(self._ingest))

    def keep(self, digest: Digest, size: int) -> None:
        if self._ingest is None:
            raise ValueError("the blob was kept or discarded already")
        self._writer.commit_ingest(self._ingest, digest, size)
        self._ingest = None

    def discard(self) -> None:
        ingest, self._ingest = self._ingest, None
        if ingest is not None:
            ingest.close()
            try:
                self._writer.namespace.content.abort(self._ref)
            except NotFound:
                pass


class _IngestFile(io.RawIOBase):
    """A writable file that appends to an ingest."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:  # type: ignore[override]
        self._ingest.write(data)
        return memoryview(data).nbytes

    def tell(self) -> int:
        return self._ingest.status().offset


def _same_store(one: Namespace, other: Namespace) -> bool:
    """Return whether two namespaces belong to the same local store."""
    return isinstance(one, LocalNamespace) and isinstance(other, LocalNamespace) and one.store.root == other.store.root


def open_store_writer(name: ImageName, options: StoreOptions | None = None, *, replace: bool = False) -> StoreWriter:
    """Open a store, made if it is missing, to write an image. Raises as `Store.open`."""
    namespace = open_namespace(options)
    try:
        return StoreWriter(namespace, name, replace=replace, closing=namespace.store.close)
    except BaseException:
        namespace.store.close()
        raise


def ingest_ref(descriptor: Descriptor) -> str:
    """Return the ingest reference that containerd's clients use for a blob, so that both never write it at once."""
    kind = "unknown"
    if descriptor.media_type in MANIFESTS:
        kind = "manifest"
    elif descriptor.media_type in INDEXES:
        kind = "index"
    elif descriptor.media_type in CONFIGS:
        kind = "config"
    elif is_layer(descriptor.media_type):
        kind = "layer"
    return f"{kind}-{descriptor.digest}"


def _skip_to(chunks: Iterable[Buffer]) -> Callable[[int], Iterator[Buffer]]:
    """Return a function that skips to an offset of the chunks."""

    def rest(start: int) -> Iterator[Buffer]:
        at = 0
        for chunk in chunks:
            size = memoryview(chunk).nbytes
            if at + size > start:
                yield memoryview(chunk)[start - at :] if at < start else chunk
            at += size

    return rest
