# SPDX-License-Identifier: Apache-2.0
"""Images of a store by the names that users write, and their snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from lamella.changes.job import Job
from lamella.errors import InvalidInput, NotFound
from lamella.images.resolve import resolve_image
from lamella.images.transports import parse_image_name
from lamella.oci.config import ImageConfig, chain_ids
from lamella.oci.platform import Platform, parse_platform
from lamella.store.contract import ImageRecord
from lamella.store.image_reader import StoreReader

if TYPE_CHECKING:
    from lamella.store.store import LocalNamespace


class UnpackedImage(Struct, frozen=True):
    """An image whose layers are snapshots."""

    name: str
    top: str
    """The snapshot of the top layer; empty for an image without layers."""
    config: ImageConfig


def unpack_by_name(
    namespace: LocalNamespace,
    image: str,
    snapshotter: str,
    *,
    platform: str | Platform | None = None,
    job: Job | None = None,
) -> UnpackedImage:
    """Unpack the layers of an image that have no snapshots yet. Raises NotFound, and as `unpack_image`."""
    from lamella.store.unpack.image import unpack_image

    job = job or Job()
    name = parse_image_name(f"store:{image}")
    platform = parse_platform(platform) if isinstance(platform, str) else platform
    found = resolve_image(StoreReader(namespace, name), name, platform)
    chain = chain_ids([layer.diff_id for layer in found.layers])
    unpack_image(namespace, found.descriptor, snapshotter, job=job)
    return UnpackedImage(str(name).removeprefix("store:"), chain[-1] if chain else "", found.config)


def find_image(namespace: LocalNamespace, text: str) -> ImageRecord:
    """Return the image whose exact or short name is ``text``. Raises NotFound, InvalidInput."""
    try:
        return namespace.images.get(text)
    except NotFound:
        try:
            return namespace.images.get(full_name(text))
        except (NotFound, InvalidInput):
            raise NotFound(
                f"there is no image {text!r} in the store", hint="lamella store images lists the images"
            ) from None


def full_name(text: str) -> str:
    """Return the full form of an image name. Raises InvalidInput, Unsupported."""
    name = parse_image_name(f"store:{text}")
    if name.digest is not None:
        raise InvalidInput(f"{text!r} has a digest; give a name without one")
    return f"{name.path}:{name.tag}"
