# SPDX-License-Identifier: Apache-2.0
"""What is known of a layer's blob: how it is compressed, what one pass over it found, and what it may cost."""

from __future__ import annotations

from typing import Final, TypeAlias

from msgspec import Struct

from lamella.digests import Digest
from lamella.errors import InvalidInput, Unsupported

Buffer: TypeAlias = bytes | bytearray | memoryview

COMPRESSIONS: Final = ("gzip", "zstd", "none")

MAGIC_SIZE: Final = 16
"""Bytes from the start of a blob that `identify` wants to see; fewer only where the blob has no more."""

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"
_XZ: Final = b"\xfd7zXZ\x00"
_BZIP2_BLOCKS: Final = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")


class BlobFacts(Struct, frozen=True):
    """What one pass over a blob found. Sizes are in bytes."""

    digest: Digest
    """Of the blob as stored; empty where the pass did not hash."""
    size: int
    diff_id: Digest
    """Of the uncompressed tar; empty where the pass did not hash."""
    tar_size: int
    compression: str
    """``gzip``, ``zstd`` or ``none``."""


class BlobLimits(Struct, frozen=True):
    """What reading a blob may cost; passing a limit raises Exhausted.

    The defaults let everything pass that deflate can express, since a layer with a sparse file of many gigabytes is
    as dense as a bomb: no bound on the size, and a ratio that only zstd can pass, looked at where the output has
    outgrown the largest honest case. A caller with a disk to protect sets ``max_tar_size``.
    """

    max_tar_size: int | None = None
    """Uncompressed bytes; None for no bound."""
    max_ratio: int | None = 1100
    """Uncompressed to compressed bytes (deflate reaches 1032, zstd 32,000); None for no bound."""
    ratio_floor: int = 32 << 30
    """Uncompressed bytes up to which the ratio may be anything."""
    window_log_max: int = 27
    """Largest zstd window, as a power of two; the decoder takes that much memory. 27 is what zstd(1) allows."""


DEFAULT_LIMITS: Final = BlobLimits()


def identify(head: bytes, expected: str | None = None) -> str:
    """The compression of the blob that starts with ``head``, by its magic: one of `COMPRESSIONS`.

    ``expected`` is what the media type says. An empty blob is an uncompressed stream of nothing whatever the media
    type says, as containerd has it. Raises InvalidInput where the two differ, Unsupported for bzip2 and xz.
    """
    if expected is not None and expected not in COMPRESSIONS:
        raise InvalidInput(f"unknown compression {expected!r}, expected one of {', '.join(COMPRESSIONS)}")
    found = _by_magic(head)
    if found not in COMPRESSIONS:
        raise Unsupported(f"layer blob is compressed with {found}", hint="recompress it with gzip or zstd")
    if expected is not None and found != expected and head:
        raise InvalidInput(f"layer blob: expected compression {expected} by its media type, found {found} by its magic")
    return found


def _by_magic(head: bytes) -> str:
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] >> 4 == 5):
        return "zstd"
    if head.startswith(_XZ):
        return "xz"
    if head.startswith(b"BZh") and head[4:10] in _BZIP2_BLOCKS:
        return "bzip2"
    return "none"
