# SPDX-License-Identifier: Apache-2.0
"""The footer that makes a plain file a fixed virtual disk (Virtual Hard Disk Image Format Specification, 1.0)."""

from __future__ import annotations

import struct
from typing import Final, Self

from msgspec import Struct

from lamella.errors import FormatError, InvalidInput

STRUCTURE: Final = "VHD footer"
SIZE: Final = 512

FIXED: Final = 2

_COOKIE: Final = b"conectix"
_NO_OFFSET: Final = (1 << 64) - 1
_FIELDS: Final = struct.Struct(">8sIIQI4sIIQQIII16sB427x")
_CHECKSUM: Final = slice(64, 68)


class VhdFooter(Struct, frozen=True):
    """The footer of a fixed disk. Numbers are big-endian; the defaults are those of Windows container layers."""

    current_size: int
    """Size of the disk in bytes: the file without the footer."""
    unique_id: bytes
    """16 bytes, random."""
    original_size: int | None = None
    """Size at the creation of the disk; None for the current size."""
    timestamp: int = 0
    """Seconds since 2000-01-01."""
    creator: bytes = bytes(4)
    creator_version: int = 0x000A0000
    creator_host: int = 0
    geometry: int = 0
    """Cylinders, heads and sectors, packed."""
    features: int = 2
    saved_state: int = 0

    def encode(self) -> bytes:
        """Encode the 512 bytes, with checksum. Raises InvalidInput for values that do not fit."""
        if len(self.unique_id) != 16 or len(self.creator) != 4:
            raise InvalidInput("a VHD footer needs a unique id of 16 bytes and a creator of 4 bytes")
        original = self.current_size if self.original_size is None else self.original_size
        try:
            footer = bytearray(
                _FIELDS.pack(
                    _COOKIE,
                    self.features,
                    0x00010000,
                    _NO_OFFSET,
                    self.timestamp,
                    self.creator,
                    self.creator_version,
                    self.creator_host,
                    original,
                    self.current_size,
                    self.geometry,
                    FIXED,
                    0,
                    self.unique_id,
                    self.saved_state,
                )
            )
        except struct.error as error:
            raise InvalidInput(f"{self} does not fit a VHD footer: {error}") from None
        footer[_CHECKSUM] = _sum(footer)
        return bytes(footer)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode a footer. Raises FormatError, also unless the disk is fixed."""
        if len(data) != SIZE:
            raise FormatError(STRUCTURE, 0, f"{len(data)} bytes, not {SIZE}")
        (
            cookie,
            features,
            version,
            data_offset,
            timestamp,
            creator,
            creator_version,
            creator_host,
            original,
            current,
            geometry,
            kind,
            _,
            unique_id,
            saved_state,
        ) = _FIELDS.unpack(data)
        if cookie != _COOKIE:
            raise FormatError(STRUCTURE, 0, "the cookie is not 'conectix'")
        if _sum(data) != bytes(data[_CHECKSUM]):
            raise FormatError(STRUCTURE, 64, "the checksum does not match")
        if version != 0x00010000:
            raise FormatError(STRUCTURE, 12, f"unknown version {version:#x}")
        if kind != FIXED or data_offset != _NO_OFFSET:
            raise FormatError(STRUCTURE, 60, f"the disk type {kind} is not a fixed disk")
        return cls(
            current,
            unique_id,
            original,
            timestamp,
            creator,
            creator_version,
            creator_host,
            geometry,
            features,
            saved_state,
        )


def _sum(footer: bytes | bytearray) -> bytes:
    """Ones' complement of the sum of all bytes outside the checksum field."""
    total = sum(footer) - sum(footer[_CHECKSUM])
    return (~total & 0xFFFFFFFF).to_bytes(4, "big")
