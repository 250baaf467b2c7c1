# SPDX-License-Identifier: Apache-2.0
"""Small images put into a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.digests import parse_digest
from lamella.oci.descriptor import Descriptor
from lamella.store.image_writer import StoreWriter
from lamella.testing.images import SmallImage

if TYPE_CHECKING:
    from lamella.store.store import Space


def descriptor_of(image: SmallImage) -> Descriptor:
    """The descriptor of an image's manifest."""
    named = image.descriptor
    return Descriptor(media_type=named["mediaType"], digest=parse_digest(named["digest"]), size=named["size"])


def put_image(space: Space, image: SmallImage, name: str) -> Descriptor:
    """Put an image into a namespace under a name, without checking any of its bytes; its manifest."""
    manifest = descriptor_of(image)
    with StoreWriter(space) as writer:
        for digest, raw in image.blobs.items():
            blob = Descriptor(media_type="", digest=parse_digest(digest), size=len(raw))
            if not writer.has_blob(blob):
                writer.put_blob(blob, [raw])
        writer.give_name(name, manifest)
    return manifest
