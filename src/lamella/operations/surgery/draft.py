# SPDX-License-Identifier: Apache-2.0
"""Images that are to be written: what they take over from other images as it is, and what is still to be made."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from lamella.digests import Digest
from lamella.errors import NotFound, from_os
from lamella.images.contract import Buffer, ImageReader, ImageWriter, StagedBlob, StoredImage
from lamella.images.resolve import ImageLayer, PlatformImage
from lamella.images.staging import BlobStage, Staging
from lamella.oci.config import ImageConfig, RootFs
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import Document, encode
from lamella.oci.manifest import Manifest, new_manifest
from lamella.oci.mediatypes import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_MANIFEST,
    layer_compression,
    oci_layer,
    retyped_layer,
)
from lamella.operations.copy import put_missing
from lamella.streams.compressions import COMPRESSIONS

if TYPE_CHECKING:
    from lamella.images.transports import ImageName
    from lamella.progress import Cancellation, Progress
    from lamella.streams.blob_reader import BlobFacts

_NO_CONFIG: Final = Descriptor(media_type=OCI_CONFIG, digest=Digest.of(b""), size=0)
"""Stands where a manifest has no config yet."""


class BlobTaker(Protocol):
    """What a layer needs of a place to be stored in it: a part of `ImageWriter`."""

    def has_blob(self, descriptor: Descriptor) -> bool:
        """See `ImageWriter.has_blob`."""
        ...

    def put_blob(self, descriptor: Descriptor, chunks: Iterable[Buffer]) -> None:
        """See `ImageWriter.put_blob`."""
        ...

    def stage(self) -> StagedBlob:
        """See `ImageWriter.stage`."""
        ...


class StoredLayer(Struct, frozen=True):
    """A layer that was made."""

    descriptor: Descriptor
    facts: BlobFacts
    entries: int | None = None
    """Changes that the layer states, where they were counted."""


class LayerSource(Protocol):
    """A layer that is no blob of an image yet. It can be made more than once, and is the same each time."""

    def store(
        self, place: BlobTaker, *, progress: Progress | None = None, cancel: Cancellation | None = None
    ) -> StoredLayer:
        """Make the layer and put it into ``place``."""
        ...


DraftLayer: TypeAlias = ImageLayer | LayerSource


class Draft(Struct, frozen=True):
    """An image to be written. Nothing of its layers has been read."""

    config: ImageConfig
    """The diff ids in it do not count: the layers tell them."""
    layers: tuple[DraftLayer, ...]
    """Base first."""
    manifest: Manifest
    """Its config and layers do not count."""
    docker: bool = False
    """Whether it is of Docker's format, as far as that can hold it: not with annotations or zstd layers."""
    origin: PlatformImage | None = None
    """What it was made from; documents that did not change are taken over byte for byte."""

    @property
    def accounted(self) -> bool:
        """Whether the history accounts for each layer, so that the two can be told to belong together."""
        return sum(not one.empty_layer for one in self.config.history) == len(self.layers)


def draft_of(image: PlatformImage) -> Draft:
    """``image`` as it is."""
    return Draft(image.config, image.layers, image.manifest, image.descriptor.media_type == DOCKER_MANIFEST, image)


def empty_draft(config: ImageConfig) -> Draft:
    """An image without layers."""
    return Draft(config, (), new_manifest(_NO_CONFIG, []))


def write_draft(
    draft: Draft,
    writer: ImageWriter,
    *,
    tag: str | None = None,
    commit: bool = True,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Finished:
    """Put all that ``draft`` consists of into ``writer``, and commit it as ``tag`` unless ``commit`` is false.

    What the writer has is not read, and what it can adopt does not pass through here. Raises Integrity, NotFound,
    Unsupported, Exhausted, Cancelled and what making the layers raises.
    """
    kept = {one.descriptor.digest: one for one in draft.layers if isinstance(one, ImageLayer)}
    put_missing(writer, [(one.reader, one.descriptor) for one in kept.values()], progress=progress, cancel=cancel)
    finished = finish(draft, writer, progress=progress, cancel=cancel)
    if commit:
        return replace(finished, descriptor=writer.commit(tag, finished.descriptor))
    return finished


class Finished(Struct, frozen=True):
    """An image of which everything is known."""

    descriptor: Descriptor
    """Of the manifest."""
    manifest: Manifest
    config: ImageConfig
    made: tuple[StoredLayer, ...]
    """The layers that were not there before, base first."""

    @property
    def layers(self) -> list[Descriptor]:
        """The descriptors of all layers, base first."""
        return self.manifest.layers


def finish(
    draft: Draft, place: BlobTaker, *, progress: Progress | None = None, cancel: Cancellation | None = None
) -> Finished:
    """Make the layers of ``draft`` that are still to be made, and its documents, and put them into ``place``."""
    made: list[StoredLayer] = []
    descriptors: list[Descriptor] = []
    diff_ids: list[Digest] = []
    for layer in draft.layers:
        if isinstance(layer, ImageLayer):
            descriptors.append(layer.descriptor)
            diff_ids.append(layer.diff_id)
        else:
            stored = layer.store(place, progress=progress, cancel=cancel)
            made.append(stored)
            descriptors.append(stored.descriptor)
            diff_ids.append(stored.facts.diff_id)
    annotated = bool(draft.manifest.annotations)
    docker = draft.docker and not annotated
    docker = docker and all(COMPRESSIONS[layer_compression(one.media_type)].in_docker_format for one in descriptors)
    descriptors = [_retyped(one, docker) for one in descriptors]
    rootfs: RootFs = msgspec.structs.replace(draft.config.rootfs, diff_ids=diff_ids)
    config: ImageConfig = msgspec.structs.replace(draft.config, rootfs=rootfs)
    origin = draft.origin
    if origin is not None and config == origin.config:
        about = origin.manifest.config
        _put_again(place, origin, about, config)
        kind = DOCKER_CONFIG if docker else OCI_CONFIG
        about = about if about.media_type == kind else msgspec.structs.replace(about, media_type=kind)
    else:
        about = _put_document(place, DOCKER_CONFIG if docker else OCI_CONFIG, encode(config))
    manifest = _manifest(draft.manifest, about, descriptors, docker)
    if origin is not None and manifest == origin.manifest:
        descriptor = _bare(origin.descriptor)
        _put_again(place, origin, descriptor, manifest)
    else:
        descriptor = _put_document(place, DOCKER_MANIFEST if docker else OCI_MANIFEST, encode(manifest))
    return Finished(descriptor, manifest, config, tuple(made))


def _manifest(base: Manifest, config: Descriptor, layers: list[Descriptor], docker: bool) -> Manifest:
    media_type = base.media_type
    if docker or media_type:  # OCI's may do without
        media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    changed: Manifest = msgspec.structs.replace(base, media_type=media_type, config=config, layers=layers)
    return changed


def _retyped(layer: Descriptor, docker: bool) -> Descriptor:
    """The descriptor as a manifest of the format has it: neither format has the other's media types."""
    media_type = retyped_layer(layer.media_type, docker=docker)
    return layer if media_type == layer.media_type else msgspec.structs.replace(layer, media_type=media_type)


def _bare(image: Descriptor) -> Descriptor:
    return Descriptor(media_type=image.media_type, digest=image.digest, size=image.size)


def _put_document(place: BlobTaker, media_type: str, raw: bytes) -> Descriptor:
    descriptor = Descriptor(media_type=media_type, digest=Digest.of(raw), size=len(raw))
    if not place.has_blob(descriptor):
        place.put_blob(descriptor, [raw])
    return descriptor


def _put_again(place: BlobTaker, origin: PlatformImage, descriptor: Descriptor, document: Document) -> None:
    """Put a document that did not change, as the bytes that it was."""
    if not place.has_blob(descriptor):
        raw = encode(document)
        if Digest.of(raw, descriptor.digest.algorithm) != descriptor.digest:
            raw = origin.reader.read_document(descriptor)
        place.put_blob(descriptor, [raw])


def described(facts: BlobFacts) -> Descriptor:
    """The descriptor of a layer that has been read or written."""
    media_type = oci_layer(facts.compression)
    return Descriptor(media_type=media_type, digest=facts.digest, size=facts.size)


class Spool(ImageReader):
    """A private temporary place for the blobs of an image that is nowhere else yet; gone after `close`."""

    def __init__(self) -> None:
        self.where = "an image that is not written yet"
        self._staging = Staging(tempfile.gettempdir(), ".lamella-spool-")
        self._blobs = BlobStage(self._staging, self.where, durable=False)

    def images(self) -> list[StoredImage]:
        """None: it has parts of one only."""
        return []

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """See `ImageReader.open_blob`."""
        if not self.has_blob(descriptor):
            raise NotFound(f"{self.where}: {descriptor.digest} is not there")
        try:
            return open(self._blobs.path(descriptor.digest), "rb")
        except OSError as problem:
            raise from_os(problem, f"read {descriptor.digest} of {self.where}") from problem

    def has_blob(self, descriptor: Descriptor) -> bool:
        """See `ImageWriter.has_blob`."""
        return self._blobs.sizes.get(descriptor.digest) == descriptor.size

    def put_blob(self, descriptor: Descriptor, chunks: Iterable[Buffer]) -> None:
        """See `ImageWriter.put_blob`."""
        self._blobs.put(descriptor, chunks)

    def stage(self) -> StagedBlob:
        """See `ImageWriter.stage`."""
        return self._blobs.stage()

    def close(self) -> None:
        """Remove it."""
        self._staging.remove()


def spooled(draft: Draft, spool: Spool, name: ImageName | None = None) -> PlatformImage:
    """``draft`` as an image that can be read: what had to be made is in ``spool``, the rest is where it was."""
    finished = finish(draft, spool)
    made = iter(finished.made)
    layers = [
        replace(layer, descriptor=descriptor)
        if isinstance(layer, ImageLayer)
        else ImageLayer(descriptor, next(made).facts.diff_id, layer_compression(descriptor.media_type), spool)
        for layer, descriptor in zip(draft.layers, finished.layers, strict=True)
    ]
    return PlatformImage(spool, name, finished.descriptor, finished.manifest, finished.config, tuple(layers))
