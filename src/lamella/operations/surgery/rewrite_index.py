# SPDX-License-Identifier: Apache-2.0
"""Rewriting of image indexes: images are replaced or left out, and their referrers follow them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from lamella.digests import Digest
from lamella.errors import NotFound
from lamella.images.contract import ImageWriter
from lamella.images.graph import SUBJECT, ImageGraph, Kind, Node, kind_of, subject_of
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import encode
from lamella.oci.index import Index, is_image_entry
from lamella.oci.layout import CONTAINERD_NAME, REF_NAME
from lamella.oci.platform import Platform, matches


class Rewriting(Protocol):
    """What becomes of the entries of an index. The blobs of every entry that stays must be put into the writer."""

    def index(self, index: Index) -> Index:
        """Replace an index, except for its entries."""
        ...

    def image(self, entry: Descriptor) -> Descriptor | None:
        """Replace an image, or leave it out with None. Called once for each image and platform."""
        ...

    def other(self, entry: Descriptor) -> bool:
        """Whether an entry that is no image stays. Not called for referrers of an image that is left out."""
        ...


def rewrite_index(graph: ImageGraph, writer: ImageWriter, index: Descriptor, rewriting: Rewriting) -> Descriptor:
    """Rewrite ``index``, put the result into ``writer`` and return its descriptor.

    Entries keep their order, platforms and annotations; referrers follow their image. Nested indexes are rewritten
    first, and left out where nothing is left in them. An index without changes keeps its bytes.
    Raises NotFound where nothing is left at all, and as `ImageGraph.walk` does.
    """
    rewritten: dict[Digest, Descriptor | None] = {}
    images: dict[tuple[Digest, str], Descriptor | None] = {}

    def replace(entry: Descriptor) -> Descriptor | None:
        if kind_of(entry) is Kind.INDEX:
            return rewritten[entry.digest]
        key = entry.digest, str(entry.platform)
        if key not in images:
            images[key] = rewriting.image(entry)
        return images[key]

    for node in graph.walk([index], _nested):
        old = node.index
        entries = _rewrite_entries(old, replace, rewriting)
        new: Index = msgspec.structs.replace(rewriting.index(old), manifests=entries)
        if not entries:
            rewritten[node.digest] = None
        elif new != old:
            rewritten[node.digest] = writer.put_document(new.media_type or node.descriptor.media_type, encode(new))
        else:
            if not writer.has_blob(node.descriptor):
                writer.put_blob(node.descriptor, [node.raw])
            rewritten[node.digest] = bare(node.descriptor)
    result = rewritten[index.digest]
    if result is None:
        raise NotFound(f"{graph.where}: nothing is left of index {index.digest}")
    return result


def _nested(node: Node) -> Iterable[Descriptor]:
    """Follow indexes alone."""
    return (entry for entry in node.index.manifests if kind_of(entry) is Kind.INDEX)


def _rewrite_entries(
    old: Index, replace: Callable[[Descriptor], Descriptor | None], rewriting: Rewriting
) -> list[Descriptor]:
    """The entries of ``old`` with images replaced, and referrers kept or left out with them."""
    replaced = [replace(entry) if is_image_entry(entry) else None for entry in old.manifests]
    subjects: dict[str, Descriptor | None] = {}
    for entry, new in zip(old.manifests, replaced, strict=True):
        if is_image_entry(entry):
            subjects[entry.digest] = subjects.get(entry.digest) or new
    entries: list[Descriptor] = []
    for entry, new in zip(old.manifests, replaced, strict=True):
        if is_image_entry(entry):
            if new is not None:
                entries.append(_replaced(entry, new))
            continue
        about = subject_of(entry)
        subject = subjects.get(about, entry) if about is not None else entry
        if subject is None or not rewriting.other(entry):
            continue
        if subject is not entry and subject.digest != about:
            annotations = {**entry.annotations, SUBJECT: str(subject.digest)}
            entry = msgspec.structs.replace(entry, annotations=annotations)
        entries.append(entry)
    return entries


def _replaced(entry: Descriptor, new: Descriptor) -> Descriptor:
    if new.digest == entry.digest and new.media_type == entry.media_type:
        return entry
    replaced: Descriptor = msgspec.structs.replace(
        entry, media_type=new.media_type, digest=new.digest, size=new.size, data="", urls=[]
    )
    return replaced


def bare(image: Descriptor) -> Descriptor:
    """The descriptor of the blob without platform, annotations and the like."""
    return Descriptor(media_type=image.media_type, digest=image.digest, size=image.size)


def selects(wanted: Platform, offered: Platform) -> bool:
    """Whether ``wanted`` means ``offered`` and not merely something that runs there too.

    Without a variant it means all of them; the one that no variant stands for may be written out.
    """
    if not wanted.variant:
        return matches(msgspec.structs.replace(wanted, variant=offered.variant), offered)
    plain = Platform(os=wanted.os, architecture=wanted.architecture, variant=wanted.variant)
    other = Platform(os=wanted.os, architecture=wanted.architecture, variant=offered.variant.lower())
    return matches(wanted, offered) and matches(other, plain)


def without_names(entry: Descriptor) -> Descriptor:
    """An entry of a layout's index.json without the names that belong there alone."""
    annotations = {key: to for key, to in entry.annotations.items() if key not in (REF_NAME, CONTAINERD_NAME)}
    plain: Descriptor = msgspec.structs.replace(entry, annotations=annotations)
    return plain
