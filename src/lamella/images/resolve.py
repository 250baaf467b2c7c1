# SPDX-License-Identifier: Apache-2.0
"""The one image that a name and a platform choose among the images of a place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec import Struct

from lamella.errors import InvalidInput, NotFound
from lamella.images.contract import ImageReader
from lamella.oci.descriptor import Descriptor
from lamella.oci.index import is_image_entry
from lamella.oci.manifest import Manifest
from lamella.oci.platform import Platform, best_match, host_platform

if TYPE_CHECKING:
    from lamella.images.graph import ImageGraph


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
    unique: dict[str, Descriptor] = {}
    for descriptor in found:
        unique.setdefault(descriptor.digest, descriptor)
    return list(unique.values())


def find_one(reader: ImageReader, tag: str | None = None, position: int | None = None) -> Descriptor:
    """The manifest or index that the place lists under the name. Raises NotFound, InvalidInput (several)."""
    found = find(reader, tag, position)
    if len(found) > 1:
        raise InvalidInput(
            f"{reader.where}: {len(found)} images there have that name", hint="choose one by number, as in oci:DIR:@0"
        )
    return found[0]


def resolve(
    graph: ImageGraph, tag: str | None = None, platform: Platform | None = None, position: int | None = None
) -> Resolved:
    """The image that ``tag`` names, for ``platform``, or where none is given for this host.

    The only image under the name is taken for any host. Raises NotFound, InvalidInput, Unsupported, Integrity.
    """
    reader = graph.reader
    found = find(reader, tag, position)
    images = _images(graph, found)
    if not images:
        raise NotFound(f"{reader.where}: there is no image manifest{_called(tag)}")
    if len({image.digest for image in images}) == 1 and platform is None:
        return Resolved(images[0], graph.manifest(images[0]))
    wanted = platform or host_platform()
    offers = [(graph.platform(image), image) for image in images]
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
    return Resolved(best, graph.manifest(best), tuple({str(offered): offered for offered, _ in offers}.values()))


def _images(graph: ImageGraph, roots: Iterable[Descriptor]) -> list[Descriptor]:
    """The image manifests that ``roots`` lead to, each once for each of its platforms."""
    found: dict[tuple[str, str], Descriptor] = {}
    for entry in graph.entries(roots):
        if is_image_entry(entry):
            found.setdefault((entry.digest, str(entry.platform)), entry)
    return list(found.values())


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
