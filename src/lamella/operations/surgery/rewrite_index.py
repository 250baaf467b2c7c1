# SPDX-License-Identifier: Apache-2.0
"""Indexes of images for several platforms: taken apart entry by entry, and put together again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import msgspec

from lamella.digests import Digest
from lamella.errors import InvalidInput, NotFound, Unsupported
from lamella.images.contract import ImageReader, ImageWriter
from lamella.images.resolve import MAX_INDEX_DEPTH, find, read_config, read_manifest
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import encode
from lamella.oci.index import Index, decode_index, is_image_entry
from lamella.oci.layout import CONTAINERD_NAME, REF_NAME
from lamella.oci.mediatypes import INDEXES
from lamella.oci.platform import Platform, matches

ABOUT: Final = "vnd.docker.reference.digest"
"""Annotation of an entry that is about an image, such as an attestation: the digest of that image's manifest."""


class Rewriting(Protocol):
    """What becomes of the entries of an index. Whatever stays is to be put into the writer."""

    def index(self, index: Index) -> Index:
        """What takes the place of an index, but for its entries."""
        ...

    def image(self, entry: Descriptor) -> Descriptor | None:
        """What takes the place of an image; None where it is left out."""
        ...

    def other(self, entry: Descriptor) -> bool:
        """Whether an entry that is no image stays. Not asked of what is about an image that is left out."""
        ...


def rewrite_index(reader: ImageReader, writer: ImageWriter, index: Descriptor, rewriting: Rewriting) -> Descriptor:
    """Put the index that comes of ``index`` into ``writer`` and describe it.

    Entries keep their order, platforms and annotations; those that are about an image follow it. Indexes within the
    index are rewritten alike, and left out where nothing is left in them. Where nothing changes, the bytes stay.
    Raises NotFound where nothing is left at all.
    """
    new = _rewritten(reader, writer, index, rewriting, 0)
    if new is None:
        raise NotFound(f"{reader.where}: nothing is left of index {index.digest}")
    return new


def _rewritten(
    reader: ImageReader, writer: ImageWriter, index: Descriptor, rewriting: Rewriting, depth: int
) -> Descriptor | None:
    if depth > MAX_INDEX_DEPTH:
        raise Unsupported(f"{reader.where}: indexes are nested deeper than {MAX_INDEX_DEPTH} levels")
    raw, old = read_index(reader, index)
    became: dict[Digest, Descriptor | None] = {}
    for entry in old.manifests:
        if is_image_entry(entry) and entry.digest not in became:
            if entry.media_type in INDEXES:
                became[entry.digest] = _rewritten(reader, writer, entry, rewriting, depth + 1)
            else:
                became[entry.digest] = rewriting.image(entry)
    entries: list[Descriptor] = []
    for entry in old.manifests:
        if is_image_entry(entry):
            new = became[entry.digest]
            if new is not None:
                entries.append(_replaced(entry, new))
            continue
        about = entry.annotations.get(ABOUT)
        subject = next((new for digest, new in became.items() if digest == about), entry)
        if subject is None or not rewriting.other(entry):
            continue
        if about is not None and subject is not entry and subject.digest != about:
            annotations = {**entry.annotations, ABOUT: str(subject.digest)}
            entry = msgspec.structs.replace(entry, annotations=annotations)
        entries.append(entry)
    if not entries:
        return None
    new_index: Index = msgspec.structs.replace(rewriting.index(old), manifests=entries)
    if new_index == old:
        if not writer.has_blob(index):
            writer.put_blob(index, [raw])
        return bare(index)
    return writer.put_document(new_index.media_type or index.media_type, encode(new_index))


def _replaced(entry: Descriptor, new: Descriptor) -> Descriptor:
    if new.digest == entry.digest and new.media_type == entry.media_type:
        return entry
    replaced: Descriptor = msgspec.structs.replace(
        entry, media_type=new.media_type, digest=new.digest, size=new.size, data="", urls=[]
    )
    return replaced


def bare(image: Descriptor) -> Descriptor:
    """What names the blob, and nothing else."""
    return Descriptor(media_type=image.media_type, digest=image.digest, size=image.size)


def read_index(reader: ImageReader, index: Descriptor) -> tuple[bytes, Index]:
    """The index that ``index`` names, checked, with its bytes."""
    raw = reader.read_document(index)
    return raw, decode_index(raw, index.media_type, f"{reader.where}: index {index.digest}")


def one_image(reader: ImageReader, tag: str | None, position: int | None) -> Descriptor:
    """The one manifest or index that the place lists under the name. Raises NotFound, InvalidInput."""
    found = find(reader, tag, position)
    if len(found) > 1:
        raise InvalidInput(
            f"{reader.where}: {len(found)} images there have that name", hint="choose one by number, as in oci:DIR:@0"
        )
    return found[0]


def platform_of(reader: ImageReader, image: Descriptor) -> Platform:
    """What an image is for, by its entry, or its config where that does not say."""
    return image.platform or read_config(reader, read_manifest(reader, image).manifest).platform


def selects(wanted: Platform, offered: Platform) -> bool:
    """Whether ``wanted`` means ``offered`` and not merely something that runs there too.

    Without a variant it means all of them; the one that no variant stands for may be written out.
    """
    if not wanted.variant:
        return matches(msgspec.structs.replace(wanted, variant=offered.variant), offered)
    plain = Platform(os=wanted.os, architecture=wanted.architecture, variant=wanted.variant)
    other = Platform(os=wanted.os, architecture=wanted.architecture, variant=offered.variant.lower())
    return matches(wanted, offered) and matches(other, plain)


def image_entries(reader: ImageReader, index: Descriptor, depth: int = 0) -> Iterator[Descriptor]:
    """All that an index leads to, but for the indexes in it."""
    if depth > MAX_INDEX_DEPTH:
        raise Unsupported(f"{reader.where}: indexes are nested deeper than {MAX_INDEX_DEPTH} levels")
    for entry in read_index(reader, index)[1].manifests:
        if entry.media_type in INDEXES:
            yield from image_entries(reader, entry, depth + 1)
        else:
            yield entry


def without_names(entry: Descriptor) -> Descriptor:
    """An entry of a layout as an index within it has it."""
    annotations = {key: to for key, to in entry.annotations.items() if key not in (REF_NAME, CONTAINERD_NAME)}
    plain: Descriptor = msgspec.structs.replace(entry, annotations=annotations)
    return plain
