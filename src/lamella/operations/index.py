# SPDX-License-Identifier: Apache-2.0
"""An index of images for several platforms, made from images that are somewhere already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from lamella.digests import Digest
from lamella.errors import Conflict, InvalidInput, Unsupported
from lamella.images.contract import ImageReader
from lamella.images.forms import open_reader, open_writer
from lamella.images.naming import ImageName, parse_image_name
from lamella.images.resolve import resolve
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import encode
from lamella.oci.index import is_image_entry, new_index
from lamella.oci.mediatypes import INDEXES, OCI_INDEX
from lamella.oci.platform import Platform, parse_platform
from lamella.operations.copy import Copied, move_blobs
from lamella.operations.indexes import bare, image_entries, one_image, platform_of, without_names
from lamella.operations.settings import merged, pairs

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress


def index(
    sources: Sequence[str | ImageName | tuple[str | ImageName, str | Platform]],
    target: str | ImageName,
    *,
    annotations: Mapping[str, str] | None = None,
    replace: bool = False,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Copied:
    """Write an index of the images ``sources`` as ``target``, in their order.

    A source that is an index itself gives all of its images, with what is about them. With a platform beside its name,
    an index gives the image for that one, and a single image is listed as one for it; else the platform is what the
    image's config says. The images stay as they are. See `open_writer` for ``replace``.

    Raises Conflict where two different images are for one platform, NotFound, InvalidInput, Unsupported.
    """
    chosen = [_parsed(one) for one in sources]
    if not chosen:
        raise InvalidInput("an index needs at least one image")
    target = parse_image_name(target) if isinstance(target, str) else target
    noted = merged({}, pairs("annotations", annotations or {}))
    with ExitStack() as stack, open_writer(target, replace=replace) as writer:
        if not writer.takes_indexes:
            raise Unsupported(f"{writer.where}: there is no place for an index")
        listed: list[tuple[ImageReader, Descriptor]] = []
        for name, platform in chosen:
            reader = stack.enter_context(open_reader(name))
            listed += [(reader, entry) for entry in _entries(reader, name, platform)]
        entries = _unique(entry for _, entry in listed)
        kept = {entry.digest for entry in entries}
        moved: list[Copied] = []
        for reader in dict.fromkeys(reader for reader, _ in listed):
            images = [entry for place, entry in listed if place is reader and entry.digest in kept]
            if images:
                moved.append(move_blobs(reader, writer, images, progress=progress, cancel=cancel))
        document = msgspec.structs.replace(new_index(entries), annotations=noted)
        entry = writer.commit(target.tag, writer.put_document(OCI_INDEX, encode(document)))
        return Copied(
            entry,
            sum(one.blobs for one in moved),
            sum(one.size for one in moved),
            sum(one.present for one in moved),
            sum(one.left for one in moved),
        )


def _parsed(
    source: str | ImageName | tuple[str | ImageName, str | Platform],
) -> tuple[ImageName, Platform | None]:
    name, platform = source if isinstance(source, tuple) else (source, None)
    return (
        parse_image_name(name) if isinstance(name, str) else name,
        parse_platform(platform) if isinstance(platform, str) else platform,
    )


def _entries(reader: ImageReader, name: ImageName, platform: Platform | None) -> list[Descriptor]:
    """What a source gives, described as an index does."""
    image = one_image(reader, name.tag, name.position)
    if image.media_type not in INDEXES:
        return [_entry(image, platform or platform_of(reader, _without_platform(image)))]
    if platform is not None:
        found = resolve(reader, name.tag, platform, name.position).descriptor
        return [_entry(found, platform_of(reader, found))]
    return [
        _entry(entry, platform_of(reader, entry)) if is_image_entry(entry) else entry
        for entry in image_entries(reader, image)
    ]


def _without_platform(image: Descriptor) -> Descriptor:
    """A descriptor that does not say what the image is for, so that its config is asked."""
    return bare(image)


def _entry(image: Descriptor, platform: Platform) -> Descriptor:
    entry: Descriptor = msgspec.structs.replace(without_names(image), platform=platform)
    return entry


def _unique(entries: Iterable[Descriptor]) -> list[Descriptor]:
    """The entries, each once. Raises Conflict where two images are for one platform."""
    by_platform: dict[str, Descriptor] = {}
    by_digest: dict[tuple[Digest, str], Descriptor] = {}
    for entry in entries:
        key = (entry.digest, str(entry.platform))
        if key in by_digest:
            continue
        by_digest[key] = entry
        if is_image_entry(entry):
            other = by_platform.setdefault(str(entry.platform), entry)
            if other is not entry:
                raise Conflict(
                    f"{other.digest} and {entry.digest} are both for {entry.platform}",
                    hint="say what one of them is for, as in IMAGE::linux/arm/v6",
                )
    return list(by_digest.values())
