# SPDX-License-Identifier: Apache-2.0
"""Results of one pass over a layer blob, and limits on the resources that reading one takes."""

from __future__ import annotations

from typing import Final, TypeAlias

from msgspec import Struct

from lamella.digests import Digest

Buffer: TypeAlias = bytes | bytearray | memoryview


class BlobFacts(Struct, frozen=True):
    """Results of one pass over a blob. Sizes are in bytes."""

    digest: Digest
    """The digest of the blob as stored; empty if it was not computed."""
    size: int
    diff_id: Digest
    """The digest of the uncompressed tar; empty if it was not computed."""
    tar_size: int
    compression: str
    """A name of `lamella.streams.compressions`."""


class BlobLimits(Struct, frozen=True):
    """Limits on reading a blob; exceeding one raises Exhausted.

    A layer with a sparse file of many gigabytes compresses as well as a decompression bomb, so the defaults accept
    everything that deflate can express: the size is unlimited, and the ratio, which only zstd can exceed, is checked
    above ``ratio_floor``. Set ``max_tar_size`` to protect a disk.
    """

    max_tar_size: int | None = None
    """Uncompressed bytes; None for no limit."""
    max_ratio: int | None = 1100
    """Uncompressed to compressed bytes (deflate reaches 1032, zstd 32,000); None for no limit."""
    ratio_floor: int = 32 << 30
    """Uncompressed bytes up to which the ratio is not checked."""
    window_log_max: int = 27
    """Largest zstd window, as a power of two; the decoder allocates it. 27 is the limit of zstd(1)."""


DEFAULT_LIMITS: Final = BlobLimits()
