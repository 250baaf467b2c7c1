# SPDX-License-Identifier: Apache-2.0
"""Where a block image is, what lies beside it, and that Windows alone knows what is in it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Final

from msgspec import Struct

from lamella.errors import InvalidInput, Unsupported, from_os
from lamella.host.windows.cimfs import HASH_SIZE, Cimfs
from lamella.host.windows.system import this_system

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
