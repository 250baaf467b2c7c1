# SPDX-License-Identifier: Apache-2.0
"""What an image of a store consists of, and what of it is not there."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from msgspec import Struct, field

from lamella.digests import Digest
from lamella.errors import LamellaError, NotFound
from lamella.images.graph import ImageGraph, Kind, Node
from lamella.oci.mediatypes import FOREIGN_LAYERS
from lamella.store.gc.labels import REF_SNAPSHOT
from lamella.store.image_reader import StoreReader

if TYPE_CHECKING:
    from lamella.oci.descriptor import Descriptor
    from lamella.store.store import LocalNamespace


class Parts(Struct):
    """What is not there of an image."""

    missing: list[Digest] = field(default_factory=list)
    """Blobs without which it cannot be used."""
    absent: list[Digest] = field(default_factory=list)
    """Others: images of an index for platforms that nobody brought, layers that were brought by being unpacked."""


def parts_of(space: LocalNamespace, target: Descriptor, damaged: Container[str] = ()) -> Parts:
    """What ``target`` leads to and the store lacks. A blob in ``damaged`` counts as lacking."""
    parts = Parts()
    needed = {target.digest}
    lacking: list[Digest] = []

    def select(node: Node) -> Iterable[Descriptor]:
        if not _has(space, node.digest, damaged):
            lacking.append(node.digest)
            return ()
        match node.kind:
            case Kind.INDEX:
                if not any(_has(space, entry.digest, damaged) for entry in node.parts):
                    needed.update(entry.digest for entry in node.parts)  # otherwise the user chose some platforms
            case Kind.MANIFEST:
                config = node.manifest.config.digest
                needed.add(config)
                if not _is_unpacked(space, config):
                    needed.update(one.digest for one in node.manifest.layers if one.media_type not in FOREIGN_LAYERS)
        return node.parts

    def record(unreadable: Descriptor, _: LamellaError) -> None:
        needed.add(unreadable.digest)
        lacking.append(unreadable.digest)

    for _ in ImageGraph(StoreReader(space)).walk([target], select, record):
        pass
    for digest in dict.fromkeys(lacking):
        (parts.missing if digest in needed else parts.absent).append(digest)
    return parts


def _has(space: LocalNamespace, digest: Digest, damaged: Container[str]) -> bool:
    if digest in damaged:
        return False
    try:
        space.content.info(digest)
    except NotFound:
        return False
    return True


def _is_unpacked(space: LocalNamespace, config: Digest) -> bool:
    try:
        labels = space.content.info(config).labels
    except NotFound:
        return False
    return any(label.startswith(REF_SNAPSHOT) for label in labels)
