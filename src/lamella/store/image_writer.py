# SPDX-License-Identifier: Apache-2.0
"""Puts images into the store, as into any other place."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import BinaryIO, Final, Self, cast

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
from lamella.store.image_reader import StoreReader, open_space
from lamella.store.metadata.leases import under_lease
from lamella.store.store import LocalNamespace

_STAGED: Final = "staged-"


class StoreWriter(ImageWriter):
    """Puts an image into a namespace under a name: blobs as they come, what they need of each other, then the name.

    A lease holds them until there is the name, so that no collection can come between; of what a broken-off writer
    has put, the next one finds what is there. A name that has another image already gives way with ``replace`` alone.
    ``closing`` is called in the end.
    """

    takes_indexes = True
    concurrent_puts = 3
    place = "the store"
    """Where images are, for messages."""

    def __init__(
        self,
        space: Namespace,
        name: ImageName | None = None,
        *,
        replace: bool = False,
        closing: Callable[[], None] | None = None,
    ) -> None:
        self.where = self.place if name is None else str(name)
        self._name = name
        self._replace = replace
        self._there: dict[Digest, int] = {}
        with ExitStack() as stack:
            if closing is not None:
                stack.callback(closing)
            self.space = stack.enter_context(under_lease(space))
            self._undo = stack.pop_all()

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the namespace has it; then it stays until the writer is done."""
        digest = descriptor.digest
        if digest not in self._there:
            content, lease = self.space.content, self.space.lease
            try:
                if content.info(digest).size != descriptor.size:
                    return False
                assert lease is not None  # noqa: S101  # that is what `under_lease` is for
                self.space.leases.add(lease, Resource(CONTENT, digest))
                size = content.info(digest).size  # it may have been collected before it was held
            except NotFound:
                return False
            if isinstance(self.space, LocalNamespace) and not is_whole(self.space.store.root, digest, size):
                return False
            self._there[digest] = size
        return self._there[digest] == descriptor.size

    def put_blob(self, descriptor: Descriptor, chunks: Iterable[Buffer]) -> None:
        """Store a blob, checked, going on from where an earlier attempt was broken off. Raises Exhausted too."""
        put_blob(self.space.content, descriptor, _from(chunks), ref=ingest_ref(descriptor))
        self._there[descriptor.digest] = descriptor.size

    def adopt(self, descriptor: Descriptor, source: ImageReader) -> bool:
        """Share the blob with another namespace of the same store, where the store's policy lets it."""
        if not isinstance(source, StoreReader) or not _share(source.space, self.space):
            return False
        try:
            with self.space.content.ingest(
                ingest_ref(descriptor), total=descriptor.size, expected=descriptor.digest
            ) as ingest:
                if ingest.status().offset != descriptor.size:
                    return False
                ingest.commit(descriptor.size, descriptor.digest)
        except AlreadyExists:
            return self.has_blob(descriptor)
        except Conflict:
            return False
        self._there[descriptor.digest] = descriptor.size
        return True

    def stage(self) -> StagedBlob:
        """An ingest."""
        return _Staged(self)

    def commit(self, tag: str | None, image: Descriptor) -> Descriptor:
        """Give the image its name. Raises AlreadyExists, Conflict (of which a part is missing, or another digest)."""
        name = self._name
        if name is None:
            raise InvalidInput(f"{self.where}: the image has no name")
        if name.digest is not None and name.digest != image.digest:
            raise Conflict(
                f"{self.where}: the image is {image.digest}, and not the {name.digest} that its name says",
                hint="give it a tag",
            )
        self.give_name(f"{name.path}:{tag}" if tag else f"{name.path}@{image.digest}", image)
        self.abort()
        return image

    def abort(self) -> None:
        """Let go of what was put, which goes with the next collection unless it has a name."""
        self._undo.close()

    def check_name(self, name: str, image: Descriptor) -> None:
        """Raise AlreadyExists where ``name`` has another image and may not be given to this one."""
        try:
            found = self.space.images.get(name)
        except NotFound:
            return
        if not self._replace and found.target.digest != image.digest:
            raise AlreadyExists(
                f"{self.place} has another image {name!r}: {found.target.digest}",
                hint="choose another name, or give --replace",
            )

    def give_name(self, name: str, image: Descriptor) -> None:
        """Let ``name`` be the name of an image that has been put, all of it. Raises AlreadyExists, Conflict."""
        self.check_name(name, image)
        self._connect(image)
        bare = Descriptor(media_type=image.media_type, digest=image.digest, size=image.size, platform=image.platform)
        record = ImageRecord(name, bare)
        images = self.space.images
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

    def _connect(self, image: Descriptor) -> None:
        """Label each manifest and index with what it needs, parts before what lists them. Raises Conflict."""
        reader = StoreReader(self.space)
        reader.where = self.where
        for node in ImageGraph(reader).check_complete(image, self.has_blob):
            needs: dict[str, Digest] = {}
            match node.kind:
                case Kind.INDEX:
                    needs = {manifest_key(number): entry.digest for number, entry in enumerate(node.index.manifests)}
                case Kind.MANIFEST:
                    parts = manifest_parts(node.manifest).items()
                    needs = {key: part.digest for key, part in parts if self.has_blob(part)}
                case Kind.BLOB:
                    continue
            label_blob(self.space.content, node.digest, reference_labels(needs))

    def staged(self, ingest: Ingest, digest: Digest, size: int) -> None:
        """Take in an ingest that is complete. Raises SizeMismatch, DigestMismatch."""
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
        self._there[digest] = size


class _Staged(StagedBlob):
    """An ingest that is written to as a file."""

    def __init__(self, writer: StoreWriter) -> None:
        import secrets

        self._writer = writer
        self._ref = _STAGED + secrets.token_hex(8)
        self._ingest: Ingest | None = writer.space.content.ingest(self._ref)
        self.file = cast("BinaryIO", _IngestFile(self._ingest))

    def keep(self, digest: Digest, size: int) -> None:
        if self._ingest is None:
            raise ValueError("the blob was kept or discarded already")
        self._writer.staged(self._ingest, digest, size)
        self._ingest = None

    def discard(self) -> None:
        ingest, self._ingest = self._ingest, None
        if ingest is not None:
            ingest.close()
            try:
                self._writer.space.content.abort(self._ref)
            except NotFound:
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.discard()


class _IngestFile(io.RawIOBase):
    """What is written is appended to an ingest."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Buffer, /) -> int:  # type: ignore[override]
        """Append all of ``data``."""
        self._ingest.write(data)
        return memoryview(data).nbytes

    def tell(self) -> int:
        """Bytes so far."""
        return self._ingest.status().offset


def _share(one: Namespace, other: Namespace) -> bool:
    """Whether two namespaces are of one store of this machine."""
    return isinstance(one, LocalNamespace) and isinstance(other, LocalNamespace) and one.store.root == other.store.root


def open_store_writer(name: ImageName, options: StoreOptions | None = None, *, replace: bool = False) -> StoreWriter:
    """A writer of the image that ``name`` names, in a store that is made where there is none."""
    space = open_space(options)
    try:
        return StoreWriter(space, name, replace=replace, closing=space.store.close)
    except BaseException:
        space.store.close()
        raise


def ingest_ref(descriptor: Descriptor) -> str:
    """The reference under which containerd's clients bring a blob, so that nobody brings it beside them."""
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


def _from(chunks: Iterable[Buffer]) -> Callable[[int], Iterator[Buffer]]:
    """What gives the chunks from an offset on, by passing over those before."""

    def rest(start: int) -> Iterator[Buffer]:
        at = 0
        for chunk in chunks:
            size = memoryview(chunk).nbytes
            if at + size > start:
                yield memoryview(chunk)[start - at :] if at < start else chunk
            at += size

    return rest
