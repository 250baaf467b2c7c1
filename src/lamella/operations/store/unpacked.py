# SPDX-License-Identifier: Apache-2.0
"""Images of a store by the names that people write, and what they are unpacked to."""

from __future__ import annotations

from msgspec import Struct

from lamella.changes.job import Job
from lamella.errors import InvalidInput, NotFound
from lamella.images.resolve import resolve_image
from lamella.images.transports import parse_image_name
from lamella.oci.config import ImageConfig, chain_ids
from lamella.oci.platform import Platform, parse_platform
from lamella.store.contract import ImageRecord
from lamella.store.image_reader import StoreReader
from lamella.store.store import LocalNamespace


class UnpackedImage(Struct, frozen=True):
    """An image whose layers are snapshots."""

    name: str
    top: str
    """The snapshot of its uppermost layer; empty for an image without layers."""
    config: ImageConfig


def unpacked_image(
    space: LocalNamespace,
    image: str,
    snapshotter: str,
    *,
    platform: str | Platform | None = None,
    job: Job | None = None,
) -> UnpackedImage:
    """The image that ``image`` names, unpacked into ``snapshotter`` as far as it is not.

    Raises NotFound, and as `unpack_image` does.
    """
    from lamella.store.unpack.image import unpack_image

    name = parse_image_name(f"store:{image}")
    wanted = parse_platform(platform) if isinstance(platform, str) else platform
    found = resolve_image(StoreReader(space, name), name, wanted)
    chain = chain_ids([layer.diff_id for layer in found.layers])
    job = job or Job()
    unpack_image(space, found.descriptor, snapshotter, progress=job.progress, cancel=job.cancel)
    return UnpackedImage(str(name).removeprefix("store:"), chain[-1] if chain else "", found.config)


def find_image(space: LocalNamespace, text: str) -> ImageRecord:
    """The record of the image that ``text`` names, exactly or as people write it. Raises NotFound, InvalidInput."""
    try:
        return space.images.get(text)
    except NotFound:
        try:
            return space.images.get(full_name(text))
        except (NotFound, InvalidInput):
            raise NotFound(
                f"there is no image {text!r} in the store", hint="lamella store images tells what there is"
            ) from None


def full_name(text: str) -> str:
    """The name in full of what people write, as the store keeps it. Raises InvalidInput, Unsupported."""
    name = parse_image_name(f"store:{text}")
    if name.digest is not None:
        raise InvalidInput(f"{text!r} has a digest, which is not for a name to say")
    return f"{name.path}:{name.tag}"
