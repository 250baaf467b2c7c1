# SPDX-License-Identifier: Apache-2.0
"""One image for one platform, ready to be read."""

from __future__ import annotations

from types import TracebackType
from typing import BinaryIO, Self

from msgspec import Struct

from lamella.digests import Digest
from lamella.errors import NotFound, Unsupported
from lamella.images.contract import ImageReader
from lamella.images.graph import ImageGraph
from lamella.images.options import RegistryOptions
from lamella.images.resolve import Resolved, resolve
from lamella.images.transports import ImageName, parse_image_name
from lamella.oci.config import ImageConfig, pair_layers
from lamella.oci.descriptor import Descriptor
from lamella.oci.manifest import Manifest
from lamella.oci.mediatypes import FOREIGN_LAYERS, layer_compression
from lamella.oci.platform import Platform, parse_platform


class ImageLayer(Struct, frozen=True):
    """One layer of an image: a blob, and the digest of the tar in it."""

    descriptor: Descriptor
    diff_id: Digest
    compression: str
    """What the media type says; the bytes may say otherwise."""
    reader: ImageReader

    def open(self) -> BinaryIO:
        """The blob as stored, its digest not yet checked. Raises NotFound, SizeMismatch, Unsupported (foreign)."""
        try:
            return self.reader.open_layer(self.descriptor)
        except NotFound:
            if self.descriptor.media_type in FOREIGN_LAYERS:
                raise foreign_layer(self.reader, self.descriptor) from None
            raise


class Image(Struct, frozen=True):
    """An image whose documents have been read and agree with each other; the layers' bytes are still where they were.

    Closing it lets go of the place; a block does so at its end.
    """

    reader: ImageReader
    name: ImageName | None
    descriptor: Descriptor
    """Of the manifest."""
    manifest: Manifest
    config: ImageConfig
    layers: tuple[ImageLayer, ...]
    """Base first."""
    offers: tuple[Platform, ...] = ()
    """The platforms that there are images for under this name, where there was a choice."""

    @property
    def platform(self) -> Platform:
        """What the image was built for, as its config says."""
        return self.config.platform

    def close(self) -> None:
        """Let go of the place."""
        self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_image(
    name: str | ImageName, platform: str | Platform | None = None, *, registry: RegistryOptions | None = None
) -> Image:
    """The image that ``name`` names, for ``platform`` or this host; its layers are not read yet.

    ``registry`` says how a registry is talked to. Raises InvalidInput, NotFound, Unsupported, Integrity; for a registry
    Denied and Unavailable too.
    """
    from lamella.images.transports import open_reader

    if isinstance(name, str):
        name = parse_image_name(name)
    if isinstance(platform, str):
        platform = parse_platform(platform)
    reader = open_reader(name, registry=registry)
    try:
        return image_from(reader, name, platform)
    except BaseException:
        reader.close()
        raise


def image_from(reader: ImageReader, name: ImageName | None = None, platform: Platform | None = None) -> Image:
    """The image in ``reader`` that ``name`` (its tag or position) and ``platform`` choose."""
    graph = ImageGraph(reader)
    return image_of(graph, resolve(graph, name.tag if name else None, platform, name.position if name else None), name)


def image_of(graph: ImageGraph, resolved: Resolved, name: ImageName | None = None) -> Image:
    """The image that has been chosen in ``graph``. Raises InvalidInput, Unsupported, Integrity."""
    reader, manifest = graph.reader, resolved.manifest
    config = graph.config(manifest)
    layers = tuple(
        ImageLayer(descriptor, diff_id, layer_compression(descriptor.media_type), reader)
        for descriptor, diff_id in pair_layers(manifest, config, f"{reader.where}: {resolved.descriptor.digest}")
    )
    return Image(reader, name, resolved.descriptor, manifest, config, layers, resolved.offers)


def foreign_layer(reader: ImageReader, layer: Descriptor) -> Unsupported:
    """What to raise for a layer that is not here because its licence kept it elsewhere."""
    return Unsupported(
        f"{reader.where}: layer {layer.digest} is non-distributable and not here",
        hint="copy the image again from a registry that has the layer, or allow its addresses with --foreign-urls",
    )
