# SPDX-License-Identifier: Apache-2.0
"""Resolution of an image name to one image for one platform.

The flow runs one way: an `ImageName` opens a reader (`transports.open_reader`); `find` picks what the place lists under
the name; `choose_platform` follows indexes through the `ImageGraph` to one manifest; `read_image` reads its config and
pairs layers with diff ids. `open_platform_image` does all of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import BinaryIO, Self

from msgspec import Struct

from lamella.digests import Digest
from lamella.errors import InvalidInput, NotFound, Unsupported
from lamella.images.contract import ImageReader
from lamella.images.graph import ImageGraph
from lamella.images.options import RegistryOptions
from lamella.images.transports import ImageName, open_reader, parse_image_name
from lamella.oci.config import ImageConfig, pair_layers
from lamella.oci.descriptor import Descriptor
from lamella.oci.index import is_image_entry
from lamella.oci.manifest import Manifest
from lamella.oci.mediatypes import FOREIGN_LAYERS, layer_compression
from lamella.oci.platform import Platform, best_match, host_platform, parse_platform


class ImageLayer(Struct, frozen=True):
    """One layer of an image: a blob, and the digest of the tar in it."""

    descriptor: Descriptor
    diff_id: Digest
    compression: str
    """As the media type states; the bytes may differ."""
    reader: ImageReader

    def open(self) -> BinaryIO:
        """Open the blob as `open_layer` does."""
        return open_layer(self.reader, self.descriptor)


class PlatformImage(Struct, frozen=True):
    """One image for one platform: its documents, which agree with each other, and its layers, which are not read yet.

    Closing it closes the reader; leaving its block does so too.
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
    """The platforms under this name; empty for a single image."""

    @property
    def platform(self) -> Platform:
        """The platform that the config states."""
        return self.config.platform

    def close(self) -> None:
        """Close the reader."""
        self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Resolved(Struct, frozen=True):
    """The manifest that a name and a platform choose."""

    descriptor: Descriptor
    """Of the manifest, with the platform that an index states for it."""
    manifest: Manifest
    offers: tuple[Platform, ...] = ()
    """The platforms under the name; empty for a single image."""


def open_platform_image(
    name: str | ImageName, platform: str | Platform | None = None, *, registry: RegistryOptions | None = None
) -> PlatformImage:
    """Open the image that ``name`` names, for ``platform`` or this host.

    Raises InvalidInput, NotFound, Unsupported, Integrity; for a registry Denied and Unavailable too.
    """
    if isinstance(name, str):
        name = parse_image_name(name)
    if isinstance(platform, str):
        platform = parse_platform(platform)
    reader = open_reader(name, registry=registry)
    try:
        return resolve_image(reader, name, platform)
    except BaseException:
        reader.close()
        raise


def resolve_image(
    reader: ImageReader, name: ImageName | None = None, platform: Platform | None = None
) -> PlatformImage:
    """The image in ``reader`` that the tag or position of ``name`` and ``platform`` choose."""
    graph = ImageGraph(reader)
    tag, position = (name.tag, name.position) if name is not None else (None, None)
    return read_image(graph, choose_platform(graph, tag, platform, position), name)


def find(reader: ImageReader, tag: str | None = None, position: int | None = None) -> list[Descriptor]:
    """The descriptors that the place lists under ``tag``: one, or several that differ by platform.

    With neither tag nor position, the only image there. Raises NotFound, InvalidInput where a choice is needed; both
    name the tags.
    """
    listed = reader.images()
    if position is not None:
        if position >= len(listed):
            raise NotFound(f"{reader.where}: there is no image @{position}, there are {len(listed)}")
        return [listed[position].descriptor]
    if tag is not None:
        found = [image.descriptor for image in listed if tag in image.names]
        if not found:
            raise NotFound(f"{reader.where}: no image is named {tag!r}", hint=_list_names(reader))
    else:
        images = [image for image in listed if is_image_entry(image.descriptor)]
        if not images:
            raise NotFound(f"{reader.where}: there is no image")
        if len({image.descriptor.digest for image in images}) > 1 and len({image.names for image in images}) > 1:
            raise InvalidInput(f"{reader.where}: there are {len(images)} images", hint=_list_names(reader))
        found = [image.descriptor for image in images]
    unique: dict[Digest, Descriptor] = {}
    for descriptor in found:
        unique.setdefault(descriptor.digest, descriptor)
    return list(unique.values())


def find_one(reader: ImageReader, tag: str | None = None, position: int | None = None) -> Descriptor:
    """The one manifest or index that the place lists under the name. Raises NotFound, InvalidInput (several)."""
    found = find(reader, tag, position)
    if len(found) > 1:
        raise InvalidInput(
            f"{reader.where}: {len(found)} images there have that name", hint="choose one by number, as in oci:DIR:@0"
        )
    return found[0]


def choose_image(
    graph: ImageGraph,
    tag: str | None = None,
    platform: Platform | None = None,
    position: int | None = None,
    *,
    all_platforms: bool = False,
) -> Descriptor:
    """The manifest that `choose_platform` finds, or with ``all_platforms`` the manifest or index under the name."""
    if not all_platforms:
        return choose_platform(graph, tag, platform, position).descriptor
    if platform is not None:
        raise InvalidInput("one platform and all platforms exclude each other")
    return find_one(graph.reader, tag, position)


def choose_platform(
    graph: ImageGraph, tag: str | None = None, platform: Platform | None = None, position: int | None = None
) -> Resolved:
    """The manifest of the image that ``tag`` names, for ``platform`` or this host.

    Without ``platform`` the only image under the name is taken on any host. Raises NotFound, InvalidInput, Unsupported,
    Integrity.
    """
    reader = graph.reader
    found = find(reader, tag, position)
    images = _list_images(graph, found)
    named = f" named {tag!r}" if tag is not None else ""
    if not images:
        raise NotFound(f"{reader.where}: there is no image manifest{named}")
    if len({image.digest for image in images}) == 1 and platform is None:
        return Resolved(images[0], graph.manifest(images[0]))
    wanted = platform or host_platform()
    offers = [(graph.platform(image), image) for image in images]
    platforms = {str(offered): offered for offered, _ in offers}
    if len(found) > 1 and len(platforms) == 1:
        raise InvalidInput(
            f"{reader.where}: {len(offers)} images{named} are all for {offers[0][0]}", hint=_list_names(reader)
        )
    best = best_match(wanted, offers)
    if best is None:
        raise NotFound(
            f"{reader.where}: there is no image{named} for {wanted}",
            hint=f"choose one with --platform: {', '.join(platforms)[:1000]}",
        )
    return Resolved(best, graph.manifest(best), tuple(platforms.values()))


def read_image(graph: ImageGraph, resolved: Resolved, name: ImageName | None = None) -> PlatformImage:
    """The image of a manifest, with its config and layers. Raises InvalidInput, Unsupported, Integrity."""
    reader, manifest = graph.reader, resolved.manifest
    config = graph.config(manifest)
    layers = tuple(
        ImageLayer(descriptor, diff_id, layer_compression(descriptor.media_type), reader)
        for descriptor, diff_id in pair_layers(manifest, config, f"{reader.where}: {resolved.descriptor.digest}")
    )
    return PlatformImage(reader, name, resolved.descriptor, manifest, config, layers, resolved.offers)


def open_layer(reader: ImageReader, layer: Descriptor) -> BinaryIO:
    """Open a blob as stored, its digest not yet checked.

    Raises as `ImageReader.open_layer`, but Unsupported for a missing non-distributable layer.
    """
    try:
        return reader.open_layer(layer)
    except NotFound:
        if layer.media_type not in FOREIGN_LAYERS:
            raise
        raise Unsupported(
            f"{reader.where}: layer {layer.digest} is non-distributable and not here",
            hint="copy the image again from a registry that has the layer, or allow its addresses with --foreign-urls",
        ) from None


def _list_images(graph: ImageGraph, roots: Iterable[Descriptor]) -> list[Descriptor]:
    """The image manifests that ``roots`` lead to, each once for each of its platforms."""
    found: dict[tuple[Digest, str], Descriptor] = {}
    for entry in graph.entries(roots):
        if is_image_entry(entry):
            found.setdefault((entry.digest, str(entry.platform)), entry)
    return list(found.values())


def _list_names(reader: ImageReader) -> str:
    images = reader.images()
    names = [name for image in images for name in image.names]
    if not names:
        return "none there has a name; choose by number, as in oci:DIR:@0"
    listed = ", ".join(dict.fromkeys(names[:50]))
    nameless = "" if all(image.names for image in images) else "; @0 is the first one, whatever its name"
    return f"named there: {listed}" + (", ..." if len(names) > 50 else "") + nameless
