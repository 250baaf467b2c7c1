# SPDX-License-Identifier: Apache-2.0
"""Convert images: recompress their layers, or write the other manifest format; the unpacked image stays the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace as replaced

from lamella.changes.job import Job
from lamella.changes.losses import Loss
from lamella.digests import Digest
from lamella.errors import InvalidInput, LossRefused, Unsupported, from_os
from lamella.images.contract import ImageWriter
from lamella.images.graph import ImageGraph, subject_of
from lamella.images.resolve import ImageLayer, PlatformImage, Resolved, choose_platform, find_one, read_image
from lamella.images.transports import ImageName, open_reader, open_writer, parse_image_name
from lamella.oci.descriptor import Descriptor
from lamella.oci.index import Index
from lamella.oci.mediatypes import DOCKER_LIST, DOCKER_MANIFEST, FOREIGN_LAYERS, INDEXES, OCI_INDEX
from lamella.oci.platform import Platform, parse_platform
from lamella.operations.copy import move_blobs
from lamella.operations.layers.read import checked_reader
from lamella.operations.surgery.draft import (
    BlobTarget,
    Draft,
    DraftLayer,
    StoredLayer,
    WrittenImage,
    draft_of,
    layer_descriptor,
    write_draft,
)
from lamella.operations.surgery.index import rewrite_index
from lamella.streams.blob_writer import BlobWriter
from lamella.streams.compressions import COMPRESSIONS

Format: TypeAlias = Literal["oci", "docker"]

_BYTES_ANNOTATIONS: Final = (
    "containerd.io/snapshot/stargz/",
    "io.containers.estargz.",
    "io.github.containers.zstd-chunked.",
)
"""Prefixes of annotations about the compressed bytes of a layer, which a conversion removes."""


class Converted(Struct, frozen=True):
    """An image or index that was converted."""

    descriptor: Descriptor
    """That of the manifest, or of the index with all platforms, as the target lists it."""
    images: int
    layers: tuple[StoredLayer, ...]
    """The new layers, each once."""
    kept: int
    """Number of layers that were kept."""


class Conversion(Struct, frozen=True):
    """How to convert an image. None keeps what it has. Construction raises InvalidInput."""

    compression: str | None = None
    """The compression of all layers; those that have it are kept, and so are non-distributable ones."""
    level: int | None = None
    threads: int | None = None
    again: bool = False
    """Recompress layers that have the compression already."""
    format: Format | None = None
    """The format of the manifest."""
    recipes: Path | None = None
    """Write a recipe ``DIGEST.recipe`` of each recompressed layer to this directory, which restores the old blob from
    the new one; see `lamella.operations.layers.recipes`. A layer that has none is a loss."""

    def __post_init__(self) -> None:
        row = None if self.compression is None else COMPRESSIONS[self.compression]
        if self.format is not None and self.format not in get_args(Format):
            raise InvalidInput(f"unknown format {self.format!r}; choose oci or docker")
        if self.format == "docker" and row is not None and not row.in_docker_format:
            raise InvalidInput(f"Docker's format has no {self.compression} layers", hint="choose gzip")
        if self.level is not None and self.compression is None:
            raise InvalidInput("a level needs a compression")


class ConvertOptions(Conversion, frozen=True, kw_only=True):
    """How to convert an image, and which one to take."""

    platform: str | Platform | None = None
    """The image to take from an index; None for the platform of this machine."""
    all_platforms: bool = False
    """Convert an index with all of its images."""
    replace: bool = False
    """As for `open_writer`."""


def convert(
    source: str | ImageName, target: str | ImageName, options: ConvertOptions, *, job: Job | None = None
) -> Converted:
    """Write the image ``source`` as ``target``, with other layer blobs or in another format.

    Diff ids, configs and annotations stay. Each recompressed layer is checked while it is read. What Docker's format
    cannot hold is a loss.

    Raises Integrity, NotFound, InvalidInput, Unsupported, AlreadyExists, Exhausted, LossRefused.
    """
    job = job or Job()
    source = parse_image_name(source) if isinstance(source, str) else source
    target = parse_image_name(target) if isinstance(target, str) else target
    platform = parse_platform(options.platform) if isinstance(options.platform, str) else options.platform
    if options.all_platforms and platform is not None:
        raise InvalidInput("one platform and all platforms exclude each other")
    with open_reader(source) as reader, open_writer(target, replace=options.replace) as writer:
        run = _Run(options, writer, job)
        graph = ImageGraph(reader, cancel=job.cancel)
        if options.all_platforms and (whole := find_one(reader, source.tag, source.position)).media_type in INDEXES:
            entry = rewrite_index(graph, writer, whole, _IndexRewriting(run, graph))
        else:
            entry = run.image(read_image(graph, choose_platform(graph, source.tag, platform, source.position), source))
        return Converted(writer.commit(target.tag, entry), run.images, tuple(run.made.values()), run.kept)


def convert_image(image: PlatformImage, how: Conversion, job: Job) -> Draft:
    """A draft of ``image``, converted. Raises Unsupported, LossRefused."""
    return _convert(image, how, job, lambda layer: _RecompressedLayer(layer, how))


def _convert(
    image: PlatformImage, how: Conversion, job: Job, recompressed: Callable[[ImageLayer], DraftLayer]
) -> Draft:
    draft = draft_of(image)
    layers = tuple(recompressed(layer) if _changes(layer, how) else layer for layer in image.layers)
    manifest = draft.manifest
    if how.format == "docker":
        for layer in layers:
            if isinstance(layer, ImageLayer) and not COMPRESSIONS[layer.compression].in_docker_format:
                raise Unsupported(
                    f"layer {layer.descriptor.digest}: Docker's format has no {layer.compression} layers",
                    hint="also recompress the layers with gzip",
                )
        for name in manifest.annotations:
            job.losses.record(Loss(str(image.descriptor.digest), f"annotation {name}", "Docker's manifests have none"))
        manifest = msgspec.structs.replace(manifest, annotations={})
    docker = draft.docker if how.format is None else how.format == "docker"
    return replaced(draft, layers=layers, manifest=manifest, docker=docker)


def _changes(layer: ImageLayer, how: Conversion) -> bool:
    if how.compression is None or layer.descriptor.media_type in FOREIGN_LAYERS:
        return False
    return how.again or layer.compression != how.compression


class _RecompressedLayer(Struct, frozen=True):
    """The same tar as a layer of an image, in another compression."""

    layer: ImageLayer
    how: Conversion

    def store(self, target: BlobTarget, job: Job) -> StoredLayer:
        layer, how = self.layer, self.how
        if how.recipes is not None:
            _write_recipe(layer, how.recipes, job)
        with (
            job.step("convert", layer.descriptor.size),
            checked_reader(layer, job) as reader,
            target.stage() as blob,
            BlobWriter(
                blob.file, compression=how.compression or layer.compression, level=how.level, threads=how.threads
            ) as writer,
        ):
            while buffer := reader.next_buffer():
                writer.write(buffer)
            reader.finish()
            facts = writer.finish()
            blob.keep(facts.digest, facts.size)
        old = layer.descriptor
        annotations = {key: to for key, to in old.annotations.items() if not key.startswith(_BYTES_ANNOTATIONS)}
        descriptor = msgspec.structs.replace(layer_descriptor(facts), annotations=annotations, extra=old.extra)
        return StoredLayer(descriptor, facts)


class _LayerOnce(Struct, frozen=True):
    """A recompressed layer that is written once, even if several images have it."""

    source: _RecompressedLayer
    made: dict[Digest, StoredLayer]

    def store(self, target: BlobTarget, job: Job) -> StoredLayer:
        digest = self.source.layer.descriptor.digest
        stored = self.made.get(digest)
        if stored is None:
            stored = self.made[digest] = self.source.store(target, job)
        return stored


class _Run(Struct):
    """One conversion of an image, or of an index with all of its images."""

    how: Conversion
    writer: ImageWriter
    job: Job
    made: dict[Digest, StoredLayer] = field(default_factory=dict)
    """New layers, by the digest of the old one."""
    images: int = 0
    kept: int = 0

    def image(self, image: PlatformImage) -> Descriptor:
        """Convert one image and describe its manifest."""
        how, made = self.how, self.made
        draft = _convert(image, how, self.job, lambda layer: _LayerOnce(_RecompressedLayer(layer, how), made))
        finished: WrittenImage = write_draft(draft, self.writer, commit=False, job=self.job)
        self.images += 1
        self.kept += sum(isinstance(layer, ImageLayer) for layer in draft.layers)
        return finished.descriptor


class _IndexRewriting(Struct, frozen=True):
    """Converts images; keeps entries that refer to them, such as attestations, if the format has them."""

    run: _Run
    graph: ImageGraph
    images: dict[Digest, Descriptor] = field(default_factory=dict)

    def index(self, index: Index) -> Index:
        wanted = self.run.how.format
        if wanted is None:
            return index
        changed: dict[str, Any] = {"media_type": OCI_INDEX}
        if wanted == "docker":
            for name in index.annotations:
                self.run.job.losses.record(Loss("index", f"annotation {name}", "Docker's manifest lists have none"))
            changed = {"media_type": DOCKER_LIST, "annotations": {}}
        new: Index = msgspec.structs.replace(index, **changed)
        return new

    def image(self, entry: Descriptor) -> Descriptor | None:
        if entry.digest not in self.images:
            resolved = Resolved(entry, self.graph.manifest(entry))
            self.images[entry.digest] = self.run.image(read_image(self.graph, resolved))
        return self.images[entry.digest]

    def other(self, entry: Descriptor) -> bool:
        run = self.run
        if run.how.format != "docker" or entry.media_type == DOCKER_MANIFEST:
            move_blobs(self.graph, run.writer, [entry], run.job)
            return True
        what = f"attestation of {subject_of(entry) or 'an image'}"
        run.job.losses.record(Loss(str(entry.digest), what, "Docker's manifest lists hold images only"))
        return False


def _write_recipe(layer: ImageLayer, recipes: Path, job: Job) -> None:
    """Write the recipe of a layer; that none can be made is a loss."""
    from lamella.operations.layers.recipes import make_recipe

    digest = layer.descriptor.digest
    try:
        recipes.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os(error, f"make the directory {str(recipes)!r}") from error
    try:
        with layer.open() as blob:
            target = recipes / f"{digest.replace(':', '-')}.recipe"
            make_recipe(blob, target, compression=layer.compression, job=job)
    except LossRefused:
        raise
    except Unsupported as error:
        job.losses.record(Loss(str(digest), "exact bytes", str(error)))
