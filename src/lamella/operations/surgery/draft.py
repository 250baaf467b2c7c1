# SPDX-License-Identifier: Apache-2.0
"""Drafts of images: a config, a manifest, kept layers of other images and new layers; and how to write them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.job import Job
from lamella.digests import Digest
from lamella.errors import NotFound, from_os
from lamella.images.contract import Buffer, ImageReader, ImageWriter, StagedBlob, StoredImage
from lamella.images.resolve import ImageLayer, PlatformImage
from lamella.images.staging import BlobStage, Staging
from lamella.oci.config import ImageConfig, RootFs
from lamella.oci.descriptor import Descriptor, bare
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
    from lamella.streams.blob_reader import BlobFacts

_NO_CONFIG: Final = Descriptor(media_type=OCI_CONFIG, digest=Digest.of(b""), size=0)
"""The config in the manifest of a new draft, until `write_new_blobs` replaces it."""


class BlobTarget(Protocol):
    """Where the blobs of an image are written: the part of `ImageWriter` that `write_new_blobs` needs."""

    def has_blob(self, descriptor: Descriptor) -> bool: ...

    def put_blob(self, descriptor: Descriptor, chunks: Iterable[Buffer]) -> None: ...

    def stage(self) -> StagedBlob: ...


class StoredLayer(Struct, frozen=True):
    """A new layer, written as a blob."""

    descriptor: Descriptor
    facts: BlobFacts
    entries: int | None = None
    """Number of changes in the layer, if it was counted."""


class LayerSource(Protocol):
    """A new layer, not a blob yet. `store` may be called more than once, and writes the same bytes each time."""

    def store(self, target: BlobTarget, job: Job) -> StoredLayer:
        """Write the layer to ``target``."""
        ...


DraftLayer: TypeAlias = ImageLayer | LayerSource


class Draft(Struct, frozen=True):
    """An image to write. A draft is a plan: making one reads no layer and writes nothing."""

    config: ImageConfig
    """Its diff ids are replaced by those of the layers when the draft is written."""
    layers: tuple[DraftLayer, ...]
    """Base first."""
    manifest: Manifest
    """Its config and layers are replaced when the draft is written."""
    docker: bool = False
    """Write the media types of Docker, unless annotations or zstd layers require those of OCI."""
    origin: PlatformImage | None = None
    """The image that the draft was made from. A document that equals the origin's is written with the same bytes."""

    @property
    def history_matches(self) -> bool:
        """Whether the history has one step for each layer, so that the steps can be assigned to layers."""
        return sum(not one.empty_layer for one in self.config.history) == len(self.layers)


def draft_of(image: PlatformImage) -> Draft:
    """The draft that writes ``image`` unchanged."""
    return Draft(image.config, image.layers, image.manifest, image.descriptor.media_type == DOCKER_MANIFEST, image)


def empty_draft(config: ImageConfig) -> Draft:
    """The draft of an image without layers."""
    return Draft(config, (), new_manifest(_NO_CONFIG, []))


def write_draft(
    draft: Draft,
    writer: ImageWriter,
    *,
    tag: str | None = None,
    commit: bool = True,
    job: Job | None = None,
) -> WrittenImage:
    """Write all blobs of ``draft`` to ``writer``, and commit the image as ``tag`` unless ``commit`` is false.

    Blobs that the writer has are not read; blobs that it can adopt are not copied. Raises Integrity, NotFound,
    Unsupported, Exhausted, Cancelled and what writing the new layers raises.
    """
    job = job or Job()
    kept = {one.descriptor.digest: one for one in draft.layers if isinstance(one, ImageLayer)}
    blobs = [(one.reader, one.descriptor) for one in kept.values()]
    put_missing(writer, blobs, job)
    finished = write_new_blobs(draft, writer, job)
    if commit:
        return replace(finished, descriptor=writer.commit(tag, finished.descriptor))
    return finished


class WrittenImage(Struct, frozen=True):
    """The result of writing a draft."""

    descriptor: Descriptor
    """Of the manifest."""
    manifest: Manifest
    config: ImageConfig
    new_layers: tuple[StoredLayer, ...]
    """The layers that were made from a `LayerSource`, base first."""

    @property
    def layers(self) -> list[Descriptor]:
        """The descriptors of all layers, base first."""
        return self.manifest.layers


def write_new_blobs(draft: Draft, target: BlobTarget, job: Job) -> WrittenImage:
    """Write the new layers, config and manifest of ``draft`` to ``target``; neither the kept layers nor a commit."""
    made: list[StoredLayer] = []
    descriptors: list[Descriptor] = []
    diff_ids: list[Digest] = []
    for layer in draft.layers:
        if isinstance(layer, ImageLayer):
            descriptors.append(layer.descriptor)
            diff_ids.append(layer.diff_id)
        else:
            stored = layer.store(target, job)
            made.append(stored)
            descriptors.append(stored.descriptor)
            diff_ids.append(stored.facts.diff_id)
    annotated = bool(draft.manifest.annotations)
    docker = draft.docker and not annotated
    docker = docker and all(COMPRESSIONS[layer_compression(one.media_type)].in_docker_format for one in descriptors)
    descriptors = [_retype(one, docker) for one in descriptors]
    rootfs: RootFs = msgspec.structs.replace(draft.config.rootfs, diff_ids=diff_ids)
    config: ImageConfig = msgspec.structs.replace(draft.config, rootfs=rootfs)
    origin = draft.origin
    if origin is not None and config == origin.config:
        described = origin.manifest.config
        _put_unchanged(target, origin, described, config)
        media_type = DOCKER_CONFIG if docker else OCI_CONFIG
        if described.media_type != media_type:
            described = msgspec.structs.replace(described, media_type=media_type)
    else:
        described = _put_document(target, DOCKER_CONFIG if docker else OCI_CONFIG, encode(config))
    manifest = _manifest(draft.manifest, described, descriptors, docker)
    if origin is not None and manifest == origin.manifest:
        descriptor = bare(origin.descriptor)
        _put_unchanged(target, origin, descriptor, manifest)
    else:
        descriptor = _put_document(target, DOCKER_MANIFEST if docker else OCI_MANIFEST, encode(manifest))
    return WrittenImage(descriptor, manifest, config, tuple(made))


def _manifest(base: Manifest, config: Descriptor, layers: list[Descriptor], docker: bool) -> Manifest:
    media_type = base.media_type
    if docker or media_type:  # optional in OCI manifests
        media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    changed: Manifest = msgspec.structs.replace(base, media_type=media_type, config=config, layers=layers)
    return changed


def _retype(layer: Descriptor, docker: bool) -> Descriptor:
    """``layer`` with the media type of the manifest's format."""
    media_type = retyped_layer(layer.media_type, docker=docker)
    return layer if media_type == layer.media_type else msgspec.structs.replace(layer, media_type=media_type)


def _put_document(target: BlobTarget, media_type: str, raw: bytes) -> Descriptor:
    descriptor = Descriptor(media_type=media_type, digest=Digest.of(raw), size=len(raw))
    if not target.has_blob(descriptor):
        target.put_blob(descriptor, [raw])
    return descriptor


def _put_unchanged(target: BlobTarget, origin: PlatformImage, descriptor: Descriptor, document: Document) -> None:
    """Put a document of ``origin`` with its original bytes."""
    if not target.has_blob(descriptor):
        raw = encode(document)
        if Digest.of(raw, descriptor.digest.algorithm) != descriptor.digest:
            raw = origin.reader.read_document(descriptor)
        target.put_blob(descriptor, [raw])


def layer_descriptor(facts: BlobFacts) -> Descriptor:
    """The descriptor of a layer that was read or written."""
    media_type = oci_layer(facts.compression)
    return Descriptor(media_type=media_type, digest=facts.digest, size=facts.size)


class Spool(ImageReader):
    """A temporary directory for the new blobs of a draft, so that the draft can be read; `close` removes it."""

    def __init__(self) -> None:
        from tempfile import gettempdir  # late: it takes 4 ms, and only reading a derived image needs it

        self.where = "an image that is not written yet"
        self._staging = Staging(gettempdir(), ".lamella-spool-")
        self._blobs = BlobStage(self._staging, self.where, durable=False)

    def images(self) -> list[StoredImage]:
        return []

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        if not self.has_blob(descriptor):
            raise NotFound(f"{self.where}: no blob {descriptor.digest}")
        try:
            return open(self._blobs.path(descriptor.digest), "rb")
        except OSError as problem:
            raise from_os(problem, f"read {descriptor.digest} of {self.where}") from problem

    def has_blob(self, descriptor: Descriptor) -> bool:
        return self._blobs.sizes.get(descriptor.digest) == descriptor.size

    def put_blob(self, descriptor: Descriptor, chunks: Iterable[Buffer]) -> None:
        self._blobs.put(descriptor, chunks)

    def stage(self) -> StagedBlob:
        return self._blobs.stage()

    def close(self) -> None:
        self._staging.remove()


def spool_draft(draft: Draft, spool: Spool, name: ImageName | None = None) -> PlatformImage:
    """Make a draft readable: write its new blobs to ``spool``; the kept layers are read from their own images."""
    finished = write_new_blobs(draft, spool, Job())
    made = iter(finished.new_layers)
    layers = [
        replace(layer, descriptor=descriptor)
        if isinstance(layer, ImageLayer)
        else ImageLayer(descriptor, next(made).facts.diff_id, layer_compression(descriptor.media_type), spool)
        for layer, descriptor in zip(draft.layers, finished.layers, strict=True)
    ]
    return PlatformImage(spool, name, finished.descriptor, finished.manifest, finished.config, tuple(layers))
