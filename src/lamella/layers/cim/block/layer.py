# SPDX-License-Identifier: Apache-2.0
"""Where a block image is, what lies beside it, and that Windows alone knows what is in it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Final

from msgspec import Struct

from lamella.errors import InvalidInput, Unsupported, from_os
from lamella.host.windows.cimfs import HASH_SIZE, Cimfs, MountFlag
from lamella.host.windows.system import this_system
from lamella.layers.cim.image_files import CimLayer
from lamella.layers.cim.native import host_path
from lamella.layers.stack import LayerStack

CHECKSUM: Final = "integrity_checksum"
MERGED_CHECKSUM: Final = "merged_integrity_checksum"
_HEX: Final = frozenset("0123456789abcdef")


class BlockKind(Enum):
    """What holds a block image. All images that are merged are held by the same."""

    FILE = "file"
    DEVICE = "device"


class BlockCimLayer(Struct, frozen=True):
    """The layer in the image ``name`` that the file or device ``block`` holds."""

    block: Path
    name: str
    kind: BlockKind = BlockKind.FILE

    @classmethod
    def parse(cls, place: Path) -> BlockCimLayer:
        """The image at a path like ``DIR/layer.vhd/layer.cim``: the file first, then the name. Raises InvalidInput."""
        if place.suffix.lower() != ".cim" or not place.stem or len(place.parts) < 2:
            raise InvalidInput(
                f"{str(place)!r} is not the path of a block image", hint="give a path like DIR/layer.vhd/layer.cim"
            )
        return cls(place.parent, place.name)

    @property
    def folder(self) -> Path:
        """Where the files are that the host needs outside of the image, and the root hash of a sealed one."""
        return self.block.parent

    def root_hash(self, *, merged: bool = False) -> bytes | None:
        """The root hash that was kept when the image was sealed; None where it was not. Raises InvalidInput."""
        path = self.folder / (MERGED_CHECKSUM if merged else CHECKSUM)
        try:
            text = path.read_text("ascii", "replace")
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise from_os(problem, f"read {str(path)!r}") from problem
        if len(text) != 2 * HASH_SIZE or not _HEX.issuperset(text):
            raise InvalidInput(f"{str(path)!r} does not hold {2 * HASH_SIZE} hexadecimal digits")
        return bytes.fromhex(text)


class BlockOptions(Struct, frozen=True):
    """What a block image is to have besides its files."""

    integrity: bool = False
    """It is sealed, and its root hash kept in a file beside the block, so that mounting it can check what is read."""
    footer: bool = False
    """The block ends like a fixed virtual disk, so that virtual machines can attach it."""


def system_calls() -> Cimfs:
    """Windows' calls. Raises Unsupported on any other host, where block images can be neither written nor read."""
    system = this_system()
    if system is not None:
        return system.images
    raise Unsupported(
        "block images (block CIMs) can be written and read by Windows alone: their layout is not published",
        hint='keep the layer in a forked image (kind "cim", of which the layout is known), or in a folder ("windows")',
    )


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
