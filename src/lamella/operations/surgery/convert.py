# SPDX-License-Identifier: Apache-2.0
"""An image with its layers compressed another way, or in the other format; what unpacks from it stays the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast, get_args

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace as replaced

from lamella.changes.losses import Loss, Losses
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
    BlobTaker,
    Draft,
    DraftLayer,
    Finished,
    StoredLayer,
    described,
    draft_of,
    write_draft,
)
from lamella.operations.surgery.rewrite_index import rewrite_index
from lamella.streams.blob_writer import BlobWriter
from lamella.streams.compressions import COMPRESSIONS

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress

Format: TypeAlias = Literal["oci", "docker"]

_OF_THE_BYTES: Final = (
    "containerd.io/snapshot/stargz/",
    "io.containers.estargz.",
    "io.github.containers.zstd-chunked.",
)
"""Beginnings of annotations that tell of the compressed bytes of a layer, and not of what is in it."""


class Converted(Struct, frozen=True):
    """What came of a conversion."""

    descriptor: Descriptor
    """Of the manifest, or of the index with all platforms, as the place lists it."""
    images: int
    layers: tuple[StoredLayer, ...]
    """Those that were written anew, each once."""
    kept: int
    """Layers that stayed as they were."""


class Conversion(Struct, frozen=True):
    """What is to become of an image. None leaves what there is.

    Layers that are compressed the wanted way stay as they are, unless ``again`` is set. This is the place where
    further kinds of layers would be told.
    """

    compression: str | None = None
    level: int | None = None
    threads: int | None = None
    again: bool = False
    format: Format | None = None
    recipes: Path | None = None
    """A directory for the recipes of the layers that are written anew."""

    def __post_init__(self) -> None:
        row = None if self.compression is None else COMPRESSIONS[self.compression]
        if self.format is not None and self.format not in get_args(Format):
            raise InvalidInput(f"no format is called {self.format!r}; there are oci and docker")
        if self.format == "docker" and row is not None and not row.in_docker_format:
            raise InvalidInput(f"Docker's format has no layers of {self.compression}", hint="choose gzip")
        if self.level is not None and self.compression is None:
            raise InvalidInput("a level is for a compression, and none is given")


def convert(
    source: str | ImageName,
    target: str | ImageName,
    *,
    compression: str | None = None,
    level: int | None = None,
    threads: int | None = None,
    again: bool = False,
    format: str | None = None,  # noqa: A002  # the word for it
    platform: str | Platform | None = None,
    all_platforms: bool = False,
    replace: bool = False,
    recipes: str | os.PathLike[str] | None = None,
    losses: Losses | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Converted:
    """Write the image ``source`` as ``target`` with its layers compressed with gzip, zstd or ``none``.

    Diff ids, configs and annotations stay. Layers that are compressed so already stay as they are, unless ``again`` is
    set; non-distributable ones always do. ``format`` is ``oci`` or ``docker``, and that of the source where it is not
    given; what Docker's cannot hold goes to ``losses``. With ``all_platforms`` an index is converted with all of its
    images. Each layer is checked as it is read. See `open_writer` for ``replace``.

    ``recipes`` is a directory that gets a file ``DIGEST.recipe`` for each layer that is written anew, from which and
    from its new blob the old one can be made again; see `operations.layers.recipes`. What no recipe can be made of goes
    to ``losses``.

    Raises Integrity, NotFound, InvalidInput, Unsupported, AlreadyExists, Exhausted.
    """
    how = Conversion(
        compression,
        level,
        threads,
        again,
        cast("Format | None", format),
        None if recipes is None else Path(recipes),
    )
    losses = losses if losses is not None else Losses()
    source = parse_image_name(source) if isinstance(source, str) else source
    target = parse_image_name(target) if isinstance(target, str) else target
    if isinstance(platform, str):
        platform = parse_platform(platform)
    if all_platforms and platform is not None:
        raise InvalidInput("one platform and all platforms exclude each other")
    with open_reader(source) as reader, open_writer(target, replace=replace) as writer:
        run = _Run(how, writer, losses, progress, cancel)
        graph = ImageGraph(reader, cancel=cancel)
        if all_platforms and (whole := find_one(reader, source.tag, source.position)).media_type in INDEXES:
            entry = rewrite_index(graph, writer, whole, _IndexRewriting(run, graph))
        else:
            entry = run.image(read_image(graph, choose_platform(graph, source.tag, platform, source.position), source))
        return Converted(writer.commit(target.tag, entry), run.images, tuple(run.made.values()), run.kept)


def converted(image: PlatformImage, how: Conversion, losses: Losses | None = None) -> Draft:
    """``image`` as ``how`` wants it. Raises Unsupported, LossRefused."""
    losses = losses if losses is not None else Losses()
    return _converted(image, how, losses, lambda layer, how: _Recompressed(layer, how, losses))


def _converted(
    image: PlatformImage, how: Conversion, losses: Losses, recompressed: Callable[[ImageLayer, Conversion], DraftLayer]
) -> Draft:
    draft = draft_of(image)
    layers = tuple(recompressed(layer, how) if _differs(layer, how) else layer for layer in image.layers)
    manifest = draft.manifest
    if how.format == "docker":
        for layer in layers:
            if isinstance(layer, ImageLayer) and not COMPRESSIONS[layer.compression].in_docker_format:
                raise Unsupported(
                    f"layer {layer.descriptor.digest}: Docker's format has no layers of {layer.compression}",
                    hint="have them compressed with gzip as well",
                )
        for name in manifest.annotations:
            losses.record(Loss(str(image.descriptor.digest), f"annotation {name}", "Docker's manifests have none"))
        manifest = msgspec.structs.replace(manifest, annotations={})
    docker = draft.docker if how.format is None else how.format == "docker"
    return replaced(draft, layers=layers, manifest=manifest, docker=docker)


def _differs(layer: ImageLayer, how: Conversion) -> bool:
    if how.compression is None or layer.descriptor.media_type in FOREIGN_LAYERS:
        return False
    return how.again or layer.compression != how.compression


class _Recompressed(Struct, frozen=True):
    """A layer of an image, the same tar compressed another way."""

    layer: ImageLayer
    how: Conversion
    losses: Losses

    def store(
        self, place: BlobTaker, *, progress: Progress | None = None, cancel: Cancellation | None = None
    ) -> StoredLayer:
        """See `LayerSource.store`."""
        layer, how = self.layer, self.how
        if how.recipes is not None:
            _record(layer, how.recipes, self.losses, progress, cancel)
        if progress is not None:
            progress.start("convert", layer.descriptor.size)
        try:
            with (
                checked_reader(layer, progress, cancel) as reader,
                place.stage() as blob,
                BlobWriter(
                    blob.file, compression=how.compression or layer.compression, level=how.level, threads=how.threads
                ) as writer,
            ):
                while buffer := reader.next_buffer():
                    writer.write(buffer)
                reader.finish()
                facts = writer.finish()
                blob.keep(facts.digest, facts.size)
        finally:
            if progress is not None:
                progress.finish()
        old = layer.descriptor
        annotations = {key: to for key, to in old.annotations.items() if not key.startswith(_OF_THE_BYTES)}
        descriptor = msgspec.structs.replace(described(facts), annotations=annotations, extra=old.extra)
        return StoredLayer(descriptor, facts)


class _Run(Struct):
    """One conversion, in which each layer is written once however many images have it."""

    how: Conversion
    writer: ImageWriter
    losses: Losses
    progress: Progress | None
    cancel: Cancellation | None
    made: dict[Digest, StoredLayer] = field(default_factory=dict)
    """By the digest of the layer that was converted."""
    images: int = 0
    kept: int = 0

    def image(self, image: PlatformImage) -> Descriptor:
        """Convert one image and describe its manifest."""
        losses, made = self.losses, self.made
        draft = _converted(image, self.how, losses, lambda layer, how: _Once(_Recompressed(layer, how, losses), made))
        finished: Finished = write_draft(draft, self.writer, commit=False, progress=self.progress, cancel=self.cancel)
        self.images += 1
        self.kept += sum(isinstance(layer, ImageLayer) for layer in draft.layers)
        return finished.descriptor


class _IndexRewriting(Struct, frozen=True):
    """Images are converted, what is about them is taken along where the format has a place for it."""

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
                self.run.losses.record(Loss("index", f"annotation {name}", "Docker's manifest lists have none"))
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
            move_blobs(self.graph, run.writer, [entry], progress=run.progress, cancel=run.cancel)
            return True
        what = f"what is about {subject_of(entry) or 'an image'}"
        run.losses.record(Loss(str(entry.digest), what, "Docker's manifest lists have images only"))
        return False


class _Once(Struct, frozen=True):
    """A layer that is made the first time only."""

    source: _Recompressed
    made: dict[Digest, StoredLayer]

    def store(
        self, place: BlobTaker, *, progress: Progress | None = None, cancel: Cancellation | None = None
    ) -> StoredLayer:
        """See `LayerSource.store`."""
        digest = self.source.layer.descriptor.digest
        stored = self.made.get(digest)
        if stored is None:
            stored = self.made[digest] = self.source.store(place, progress=progress, cancel=cancel)
        return stored


def _record(
    layer: ImageLayer, recipes: Path, losses: Losses, progress: Progress | None, cancel: Cancellation | None
) -> None:
    """Write the recipe of a layer; what cannot be repeated is a loss."""
    from lamella.operations.layers.recipes import make_recipe

    digest = layer.descriptor.digest
    try:
        recipes.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os(error, f"make the directory {str(recipes)!r}") from error
    try:
        with layer.open() as blob:
            target = recipes / f"{digest.replace(':', '-')}.recipe"
            make_recipe(blob, target, compression=layer.compression, progress=progress, cancel=cancel)
    except LossRefused:
        raise
    except Unsupported as error:
        losses.record(Loss(str(digest), "its very bytes", str(error)))
