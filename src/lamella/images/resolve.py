# SPDX-License-Identifier: Apache-2.0
"""Finds the one image that a name and a platform mean among what a place holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from lamella.errors import InvalidInput, NotFound, Unsupported
from lamella.images.contract import ImageReader
from lamella.oci.config import ImageConfig, decode_config
from lamella.oci.descriptor import Descriptor
from lamella.oci.index import decode_index, is_image_entry
from lamella.oci.manifest import Manifest, decode_manifest
from lamella.oci.mediatypes import CONFIGS, INDEXES
from lamella.oci.platform import Platform, best_match, host_platform

MAX_INDEX_DEPTH: Final = 8
"""Indexes within indexes."""


class Resolved(Struct, frozen=True):
    """One image for one platform."""

    descriptor: Descriptor
    """Of the manifest, with its platform where an index on the way to it said so."""
    manifest: Manifest
    offers: tuple[Platform, ...] = ()
    """Where there was a choice, the platforms that there are images for."""


def find(reader: ImageReader, tag: str | None = None, position: int | None = None) -> list[Descriptor]:
    """What the place lists under ``tag``: one descriptor, or several that differ by platform.

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
            raise NotFound(f"{reader.where}: no image is named {tag!r}", hint=_names_hint(reader))
    else:
        images = [image for image in listed if is_image_entry(image.descriptor)]
        if not images:
            raise NotFound(f"{reader.where}: there is no image")
        if len({image.descriptor.digest for image in images}) > 1 and len({image.names for image in images}) > 1:
            raise InvalidInput(f"{reader.where}: there are {len(images)} images", hint=_names_hint(reader))
        found = [image.descriptor for image in images]
    unique = {descriptor.digest: descriptor for descriptor in reversed(found)}
    return list(reversed(unique.values()))


def resolve(
    reader: ImageReader, tag: str | None = None, platform: Platform | None = None, position: int | None = None
) -> Resolved:
    """The image that ``tag`` names, for ``platform``, or where none is given for this host.

    An image that is there for one platform alone is taken whatever the host is. Raises NotFound, InvalidInput,
    Unsupported, Integrity.
    """
    found = find(reader, tag, position)
    images = list(_images(reader, found, None, 0, set()))
    if not images:
        raise NotFound(f"{reader.where}: there is no image manifest{_called(tag)}")
    if len(images) == 1 and platform is None:
        return read_manifest(reader, images[0])
    wanted = platform or host_platform()
    offers = [(_platform_of(reader, image), image) for image in images]
    if len(found) > 1 and len({str(offered) for offered, _ in offers}) == 1:
        raise InvalidInput(
            f"{reader.where}: {len(offers)} images{_called(tag)} are all for {offers[0][0]}", hint=_names_hint(reader)
        )
    best = best_match(wanted, offers)
    if best is None:
        there = ", ".join(dict.fromkeys(str(offered) for offered, _ in offers))
        raise NotFound(
            f"{reader.where}: there is no image{_called(tag)} for {wanted}",
            hint=f"choose one with --platform: {there[:1000]}",
        )
    chosen = read_manifest(reader, best)
    return Resolved(
        chosen.descriptor, chosen.manifest, tuple({str(offered): offered for offered, _ in offers}.values())
    )


def read_manifest(reader: ImageReader, descriptor: Descriptor) -> Resolved:
    """The manifest that ``descriptor`` names, checked."""
    raw = reader.read_document(descriptor)
    return Resolved(descriptor, decode_manifest(raw, descriptor.media_type, _what(reader, "manifest", descriptor)))


def read_config(reader: ImageReader, manifest: Manifest) -> ImageConfig:
    """The image config of ``manifest``. Raises Unsupported where it is the config of something else."""
    descriptor = manifest.config
    if descriptor.media_type not in CONFIGS:
        raise Unsupported(
            f"{reader.where}: a config of type {descriptor.media_type!r} is not that of a container image"
        )
    return decode_config(reader.read_document(descriptor), _what(reader, "config", descriptor))


def _images(
    reader: ImageReader, entries: Sequence[Descriptor], above: Platform | None, depth: int, seen: set[str]
) -> Iterator[Descriptor]:
    """The manifests that ``entries`` lead to. Each document is read once, so that its cost is bounded by the place."""
    for entry in entries:
        if not is_image_entry(entry) or entry.digest in seen:
            continue
        seen.add(entry.digest)
        platform = entry.platform or above
        if entry.media_type in INDEXES:
            if depth >= MAX_INDEX_DEPTH:
                raise Unsupported(f"{reader.where}: indexes are nested deeper than {MAX_INDEX_DEPTH} levels")
            what = _what(reader, "index", entry)
            inner = decode_index(reader.read_document(entry), entry.media_type, what)
            yield from _images(reader, inner.manifests, platform, depth + 1, seen)
        else:
            yield entry if platform is entry.platform else msgspec.structs.replace(entry, platform=platform)


def _platform_of(reader: ImageReader, image: Descriptor) -> Platform:
    return image.platform or read_config(reader, read_manifest(reader, image).manifest).platform


def _what(reader: ImageReader, kind: str, descriptor: Descriptor) -> str:
    return f"{reader.where}: {kind} {descriptor.digest}"


def _called(tag: str | None) -> str:
    return f" named {tag!r}" if tag is not None else ""


def _names_hint(reader: ImageReader) -> str:
    images = reader.images()
    names = [name for image in images for name in image.names]
    if not names:
        return "none there has a name; choose by number, as in oci:DIR:@0"
    shown = ", ".join(dict.fromkeys(names[:50]))
    nameless = "" if all(image.names for image in images) else "; @0 is the first one, whatever its name"
    return f"named there: {shown}" + (", ..." if len(names) > 50 else "") + nameless
