# SPDX-License-Identifier: Apache-2.0
"""Images from anywhere into a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.job import Job
from lamella.errors import InvalidInput, LamellaError
from lamella.images.contract import ImageReader
from lamella.images.graph import ImageGraph
from lamella.images.resolve import choose_platform, find, find_one
from lamella.images.transports import ImageName, Syntax, parse_image_name
from lamella.oci.descriptor import Descriptor
from lamella.oci.index import is_image_entry
from lamella.oci.platform import Platform, parse_platform
from lamella.oci.reference import parse_reference
from lamella.operations.copy import move_blobs
from lamella.store.image_writer import StoreWriter
from lamella.store.metadata.leases import under_lease
from lamella.store.unpack.image import Unpacked, unpack_image

if TYPE_CHECKING:
    from lamella.layers.policy import Policy
    from lamella.store.store import LocalNamespace

_HINT: Final = "give it one with --name"


class ImportedImage(Struct, frozen=True):
    """One image that has its name in the store now."""

    name: str
    """In full, as docker.io/library/busybox:latest."""
    target: Descriptor
    """The manifest, or the index with all platforms."""
    unpacked: Unpacked | None = None


class Imported(Struct, frozen=True):
    """What came of an import."""

    images: tuple[ImportedImage, ...]
    blobs: int
    """Blobs that were written; documents are blobs too."""
    size: int
    """Bytes of them."""
    present: int
    """Blobs that the store had already."""


class ImportOptions(Struct, frozen=True, kw_only=True):
    """Which images to import, and what to do with them."""

    name: str | None = None
    """The name in the store (``busybox`` is enough); None for the full names that the images have in the source."""
    platform: str | Platform | None = None
    """The image to take from an index; None for the platform of this machine."""
    all_platforms: bool = False
    """Import an index with the images of all platforms."""
    replace: bool = False
    """Replace another image that has the name."""
    unpack: bool = False
    """Also unpack the layers into snapshots."""
    snapshotter: str | None = None
    """The snapshotter to unpack into; None for the default."""
    policy: Policy | None = None
    """Owners and devices of unpacked files."""


DEFAULT_OPTIONS: Final = ImportOptions()


def import_image(
    space: LocalNamespace,
    source: str | ImageName,
    options: ImportOptions = DEFAULT_OPTIONS,
    *,
    job: Job | None = None,
) -> Imported:
    """Copy the image ``source`` into a namespace of a store.

    Without a name, all images of the source that have a full name there are taken, unless ``source`` selects one.
    After a failure no image has a new name.

    Raises AlreadyExists, InvalidInput (no name), and what `copy_image` and `unpack_image` raise.
    """
    from lamella.images.transports import open_reader

    job = job or Job()
    source = parse_image_name(source) if isinstance(source, str) else source
    platform = parse_platform(options.platform) if isinstance(options.platform, str) else options.platform
    if options.all_platforms and platform is not None:
        raise InvalidInput("one platform and all platforms exclude each other")
    with (
        open_reader(source) as reader,
        under_lease(space) as held,
        StoreWriter(held, replace=options.replace) as writer,
    ):
        graph = ImageGraph(reader, cancel=job.cancel)
        wanted = _wanted(graph, source, options.name, platform, all_platforms=options.all_platforms)
        for full, image in wanted.items():
            writer.check_name(full, image)
        moved = move_blobs(graph, writer, list(wanted.values()), progress=job.progress, cancel=job.cancel)
        for full, image in wanted.items():
            writer.give_name(full, image)
        images = [ImportedImage(full, image) for full, image in wanted.items()]
        if options.unpack:
            images = _unpack(held, images, options, platform, job)
    return Imported(tuple(images), moved.blobs, moved.size, moved.present)


def full_name(text: str) -> str:
    """The name of an image in the store that a person means: short forms made full. Raises InvalidInput."""
    return str(parse_reference(text).with_default_tag())


def _unpack(
    space: LocalNamespace, images: Sequence[ImportedImage], options: ImportOptions, platform: Platform | None, job: Job
) -> list[ImportedImage]:
    results: dict[str, Unpacked] = {}
    for image in images:
        digest = image.target.digest
        if digest not in results:
            results[digest] = unpack_image(
                space,
                image.target,
                options.snapshotter,
                platform=platform,
                policy=options.policy,
                losses=job.losses,
                progress=job.progress,
                cancel=job.cancel,
            )
    return [replace(image, unpacked=results[image.target.digest]) for image in images]


def _wanted(
    graph: ImageGraph,
    source: ImageName,
    name: str | None,
    platform: Platform | None,
    *,
    all_platforms: bool,
) -> dict[str, Descriptor]:
    """The image or index that each full name shall name."""
    reader = graph.reader
    if name is not None or source.syntax is not Syntax.PATH or source.tag is not None or source.position is not None:
        full = full_name(name) if name is not None else _own_name(reader, source)
        return {full: _chosen(graph, source.tag, source.position, platform, all_platforms=all_platforms)}
    wanted: dict[str, Descriptor] = {}
    nameless = 0
    for position, listed in enumerate(reader.images()):
        if not is_image_entry(listed.descriptor):
            continue
        names = [full for full in map(_full, listed.names) if full is not None]
        nameless += not names
        image = None
        for full in names:
            if image is None:
                image = _chosen(graph, None, position, platform, all_platforms=all_platforms)
            if wanted.setdefault(full, image).digest != image.digest:
                raise InvalidInput(f"{reader.where}: two images there are named {full!r}", hint="choose one by number")
    if not wanted:
        raise InvalidInput(f"{reader.where}: no image there has a full name", hint=_HINT)
    return wanted


def _own_name(reader: ImageReader, source: ImageName) -> str:
    """The full name of the one image that ``source`` names."""
    if source.syntax is not Syntax.PATH:
        return f"{source.path}:{source.tag}" if source.tag else f"{source.path}@{source.digest}"
    found = {image.digest for image in find(reader, source.tag, source.position)}
    names = [full for listed in reader.images() if listed.descriptor.digest in found for full in _fulls(listed.names)]
    unique = list(dict.fromkeys(names))
    if source.tag in unique:
        return source.tag
    if len(unique) != 1:
        raise InvalidInput(f"{source}: the image has {'several names' if unique else 'no full name'}", hint=_HINT)
    return unique[0]


def _chosen(
    graph: ImageGraph, tag: str | None, position: int | None, platform: Platform | None, *, all_platforms: bool
) -> Descriptor:
    if all_platforms:
        return find_one(graph.reader, tag, position)
    return choose_platform(graph, tag, platform, position).descriptor


def _fulls(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        full = _full(name)
        if full is not None:
            yield full


def _full(name: str) -> str | None:
    """The full form of a name that an image has somewhere; None for a mere tag, which says nothing in a store."""
    if "/" not in name and ":" not in name:
        return None
    try:
        return full_name(name)
    except LamellaError:
        return None
