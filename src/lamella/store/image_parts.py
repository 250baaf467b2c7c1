# SPDX-License-Identifier: Apache-2.0
"""What an image of a store consists of, and what of it is not there."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from msgspec import Struct, field

from lamella.digests import Digest
from lamella.errors import LamellaError, NotFound
from lamella.oci.index import decode_index
from lamella.oci.manifest import decode_manifest
from lamella.oci.mediatypes import FOREIGN_LAYERS, INDEXES, MANIFESTS
from lamella.store.gc.labels import REF_SNAPSHOT
from lamella.store.image_reader import StoreReader

if TYPE_CHECKING:
    from lamella.oci.descriptor import Descriptor
    from lamella.store.store import Space


class Parts(Struct):
    """What is not there of an image."""

    missing: list[Digest] = field(default_factory=list)
    """Blobs without which it cannot be used."""
    absent: list[Digest] = field(default_factory=list)
    """Others: images of an index for platforms that nobody brought, layers that were brought by being unpacked."""


def parts_of(space: Space, target: Descriptor, damaged: Container[str] = ()) -> Parts:
    """Go through all that ``target`` leads to. A blob in ``damaged`` is as good as not there."""
    parts = Parts()
    reader = StoreReader(space)
    seen: set[Digest] = set()
    todo = [(target, True)]
    while todo:
        one, needed = todo.pop()
        if one.digest in seen:
            continue
        seen.add(one.digest)
        if not _has(space, one.digest, damaged):
            (parts.missing if needed else parts.absent).append(one.digest)
            continue
        try:
            if one.media_type in INDEXES:
                entries = decode_index(reader.read_document(one), one.media_type, str(one.digest)).manifests
                there = [entry for entry in entries if _has(space, entry.digest, damaged)]
                # With none of them, nobody chose to do without the others.
                todo += [(entry, not there) for entry in reversed(entries)]
            elif one.media_type in MANIFESTS:
                manifest = decode_manifest(reader.read_document(one), one.media_type, str(one.digest))
                unpacked = _is_unpacked(space, manifest.config.digest)
                todo.append((manifest.config, True))
                todo += [
                    (layer, not unpacked and layer.media_type not in FOREIGN_LAYERS)
                    for layer in reversed(manifest.layers)
                ]
        except LamellaError:
            parts.missing.append(one.digest)  # what cannot be read is as good as not there
    return parts


def _has(space: Space, digest: Digest, damaged: Container[str]) -> bool:
    if digest in damaged:
        return False
    try:
        space.content.info(digest)
    except NotFound:
        return False
    return True


def _is_unpacked(space: Space, config: Digest) -> bool:
    try:
        labels = space.content.info(config).labels
    except NotFound:
        return False
    return any(label.startswith(REF_SNAPSHOT) for label in labels)
