# SPDX-License-Identifier: Apache-2.0
"""Import of images into a store, and export out of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.job import Job
from lamella.errors import InvalidInput, LamellaError
from lamella.images.contract import ImageReader
from lamella.images.graph import ImageGraph
from lamella.images.resolve import choose_image, find
from lamella.images.transports import STORE, ImageName, Syntax, parse_image_name
from lamella.oci.descriptor import Descriptor
from lamella.oci.index import is_image_entry
from lamella.oci.platform import Platform, parse_platform
from lamella.oci.reference import parse_reference
from lamella.operations.copy import Copied, copy_image, move_blobs
from lamella.store.contract import Resource
from lamella.store.gc.labels import CONTENT
from lamella.store.image_reader import StoreReader
from lamella.store.image_writer import StoreWriter
from lamella.store.metadata.leases import under_lease

if TYPE_CHECKING:
    from lamella.layers.policy import Policy
    from lamella.store.store import LocalNamespace
    from lamella.store.unpack.image import Unpacked

_HINT: Final = "name it with --name"


class ImportOptions(Struct, frozen=True, kw_only=True):
    """What to import, and under which name."""

    name: str | None = None
    """The name in the store, as ``busybox``; by default the full names that the images have."""
    platform: str | Platform | None = None
    """The image to take from an index; by default that for this host."""
    all_platforms: bool = False
    """Take an index with the images of all platforms."""
    replace: bool = False
    """Give a name that another image has to the imported one."""
    unpack: bool = False
    """Unpack the image into snapshots."""
    snapshotter: str | None = None
    """Where to unpack; by default the snapshotter of the image's operating system."""
    policy: Policy | None = None
    """How to unpack owners and devices."""


DEFAULT_OPTIONS: Final = ImportOptions()


class ImportedImage(Struct, frozen=True):
    """An image that has its name in the store."""

    name: str
    """The full name, as docker.io/library/busybox:latest."""
    target: Descriptor
    """The manifest, or the index with all platforms."""
    unpacked: Unpacked | None = None


class Imported(Struct, frozen=True):
    """The result of an import."""

    images: tuple[ImportedImage, ...]
    blobs: int
    """Number of blobs written, documents included."""
    size: int
    """Bytes of the blobs written."""
    present: int
    """Number of blobs that the store had already."""


def import_image(
    namespace: LocalNamespace,
    source: str | ImageName,
    options: ImportOptions = DEFAULT_OPTIONS,
    *,
    job: Job | None = None,
) -> Imported:
    """Import what ``source`` names into a namespace.

    Without `ImportOptions.name`, imports all images of ``source`` that have a full name. After a failure, no name
    refers to an incomplete image. Raises AlreadyExists, InvalidInput (no name), and as `copy_image` and `unpack_image`.
    """
    from lamella.images.transports import open_reader

    job = job or Job()
    source = parse_image_name(source) if isinstance(source, str) else source
    platform = parse_platform(options.platform) if isinstance(options.platform, str) else options.platform
    if options.all_platforms and platform is not None:
        raise InvalidInput("one platform and all platforms exclude each other")
    with (
        open_reader(source) as reader,
        under_lease(namespace) as leased,
        StoreWriter(leased, replace=options.replace) as writer,
    ):
        graph = ImageGraph(reader, cancel=job.cancel)
        targets = _choose_targets(graph, source, options, platform)
        for name, target in targets.items():
            writer.check_name(name, target)
        moved = move_blobs(graph, writer, list(targets.values()), job)
        for name, target in targets.items():
            writer.give_name(name, target)
        images = [ImportedImage(name, target) for name, target in targets.items()]
        if options.unpack:
            images = _unpack_images(leased, images, platform, options, job)
    return Imported(tuple(images), moved.blobs, moved.size, moved.present)


def export_image(
    namespace: LocalNamespace,
    name: str,
    target: str | ImageName,
    *,
    platform: str | Platform | None = None,
    all_platforms: bool = False,
    replace: bool = False,
    job: Job | None = None,
) -> Copied:
    """Copy the image ``name`` (as ``busybox``) of a namespace to another place.

    Its name in a layout or an archive is the full name, unless ``target`` has a tag. Raises as `copy_image`.
    """
    from lamella.images.transports import open_writer

    job = job or Job()
    target = parse_image_name(target) if isinstance(target, str) else target
    source = parse_image_name(f"{STORE}:{name}")
    tag = target.tag
    if tag is None and target.syntax is Syntax.PATH and source.tag is not None:
        tag = f"{source.path}:{source.tag}"
    with (
        StoreReader(namespace, source) as reader,
        _keep_images(namespace, reader),
        open_writer(target, replace=replace) as writer,
    ):
        graph = ImageGraph(reader, cancel=job.cancel)
        wanted = parse_platform(platform) if isinstance(platform, str) else platform
        image = choose_image(graph, source.tag, wanted, all_platforms=all_platforms)
        return copy_image(graph, writer, image, tag, job)


@contextmanager
def _keep_images(namespace: LocalNamespace, reader: StoreReader) -> Iterator[None]:
    """Hold the images of ``reader`` by a lease for the block, unless the store is open for reading only."""
    if namespace.store.readonly:
        yield
        return
    with under_lease(namespace) as leased:
        for image in reader.images():
            assert leased.lease is not None  # noqa: S101  # `under_lease` sets it
            leased.leases.add(leased.lease, Resource(CONTENT, image.descriptor.digest))
        yield


def _unpack_images(
    namespace: LocalNamespace,
    images: Sequence[ImportedImage],
    platform: Platform | None,
    options: ImportOptions,
    job: Job,
) -> list[ImportedImage]:
    from lamella.store.unpack.image import unpack_image  # late: it takes 4 ms, and --unpack alone needs it

    results: dict[str, Unpacked] = {}
    for image in images:
        digest = image.target.digest
        if digest not in results:
            results[digest] = unpack_image(
                namespace,
                image.target,
                options.snapshotter,
                platform=platform,
                policy=options.policy,
                job=job,
            )
    return [replace(image, unpacked=results[image.target.digest]) for image in images]


def _choose_targets(
    graph: ImageGraph, source: ImageName, options: ImportOptions, platform: Platform | None
) -> dict[str, Descriptor]:
    """Return the image or index that each full name will refer to."""
    reader, all_platforms = graph.reader, options.all_platforms
    named = source.syntax is not Syntax.PATH or source.tag is not None or source.position is not None
    if options.name is not None or named:
        name = _full_name(options.name) if options.name is not None else _only_name(reader, source)
        return {name: choose_image(graph, source.tag, platform, source.position, all_platforms=all_platforms)}
    targets: dict[str, Descriptor] = {}
    for position, listed in enumerate(reader.images()):
        if not is_image_entry(listed.descriptor):
            continue
        target = None
        for name in _full_names(listed.names):
            if target is None:
                target = choose_image(graph, None, platform, position, all_platforms=all_platforms)
            if targets.setdefault(name, target).digest != target.digest:
                raise InvalidInput(f"{reader.where}: two images are named {name!r}", hint="choose one by number")
    if not targets:
        raise InvalidInput(f"{reader.where}: no image has a full name", hint=_HINT)
    return targets


def _only_name(reader: ImageReader, source: ImageName) -> str:
    """Return the full name of the image that ``source`` names. Raises InvalidInput (no name, or several)."""
    if source.syntax is not Syntax.PATH:
        return f"{source.path}:{source.tag}" if source.tag else f"{source.path}@{source.digest}"
    found = {image.digest for image in find(reader, source.tag, source.position)}
    listed = [one for one in reader.images() if one.descriptor.digest in found]
    names = list(dict.fromkeys(name for one in listed for name in _full_names(one.names)))
    if source.tag in names:
        return source.tag
    if len(names) != 1:
        raise InvalidInput(f"{source}: the image has {'several names' if names else 'no full name'}", hint=_HINT)
    return names[0]


def _full_names(names: Sequence[str]) -> Iterator[str]:
    """Yield the full forms of the names of an image, without mere tags, which have no meaning in a store."""
    for name in names:
        if "/" in name or ":" in name:
            try:
                yield _full_name(name)
            except LamellaError:
                pass


def _full_name(name: str) -> str:
    return str(parse_reference(name).with_default_tag())
