# SPDX-License-Identifier: Apache-2.0
"""Images mounted by Windows as volumes, each under the GUID that follows from the id of the container it is for."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from lamella.errors import InvalidInput
from lamella.host.windows.cimfs import Cimfs, MountFlag
from lamella.layers.blockcim.place import BlockCimLayer, BlockKind
from lamella.layers.cim.files import CimLayer
from lamella.layers.cim.system import host_path
from lamella.layers.stack import LayerStack

_NAMESPACE: Final = uuid.UUID("6827367b-c388-4e9b-961c-6d2c936c0000")
_FLAGS: Final = {BlockKind.FILE: MountFlag.SINGLE_FILE, BlockKind.DEVICE: MountFlag.BLOCK_DEVICE}


def volume_of(container: str) -> uuid.UUID:
    """The GUID of the volume for a container, the one that hcsshim gives it."""
    return uuid.uuid5(_NAMESPACE, container)


def volume_path(volume: uuid.UUID) -> str:
    """The root of a volume; the files of a container are in its directory ``Files``."""
    return f"\\\\?\\Volume{{{volume}}}\\"


@contextmanager
def mounted(calls: Cimfs, layer: CimLayer, container: str) -> Iterator[str]:
    """The root of the volume that a forked image is, for as long as the block lasts. Raises Unsupported, NotFound."""
    calls.check_layers()
    volume = volume_of(container)
    calls.mount(host_path(layer.directory), layer.path.name, MountFlag(0), volume)
    try:
        yield volume_path(volume)
    finally:
        calls.dismount(volume)


@contextmanager
def mounted_blocks(
    calls: Cimfs, layers: LayerStack[BlockCimLayer], container: str, *, merged: BlockCimLayer | None = None
) -> Iterator[str]:
    """The root of the volume that block images come to, one as it is, several by how they were ``merged``.

    What was sealed is checked as it is read. Raises InvalidInput, Unsupported, NotFound.
    """
    images = layers.nearest_first()
    if (len(images) > 1) is not (merged is not None):
        raise InvalidInput(f"{len(images)} block images: several take a merged one, and one takes none")
    top = merged or images[0]
    root_hash = top.root_hash(merged=merged is not None)
    calls.check_mounting_blocks(verified=root_hash is not None)
    volume, flags = volume_of(container), _FLAGS[top.kind]
    if merged is not None:
        all_images = [(host_path(image.block), image.name) for image in (merged, *images)]
        calls.merge_mount(all_images, flags, volume, root_hash=root_hash)
    elif root_hash is not None:
        calls.mount_verified(host_path(top.block), top.name, flags, volume, root_hash)
    else:
        calls.mount(host_path(top.block), top.name, flags, volume)
    try:
        yield volume_path(volume)
    finally:
        calls.dismount(volume)
