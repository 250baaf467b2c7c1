# SPDX-License-Identifier: Apache-2.0
"""Results of one pass over a layer blob, and limits on the resources that reading one takes."""

from __future__ import annotations

from typing import Final, TypeAlias

from msgspec import Struct

from lamella.digests import Digest

Buffer: TypeAlias = bytes | bytearray | memoryview


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
