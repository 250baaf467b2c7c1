# SPDX-License-Identifier: Apache-2.0
"""The compressions of layer blobs: one row for each, with its magic, decoder, encoder and levels.

Importing the table loads no codec.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from lamella.errors import InvalidInput, Unsupported
from lamella.extensions import Table

if TYPE_CHECKING:
    from lamella.streams.compress import Encoder
    from lamella.streams.decompress import Decoder, Source
    from lamella.streams.limits import BlobLimits

MAGIC_SIZE: Final = 512
"""Bytes from the start of a blob that `identify` needs; fewer only if the blob is shorter."""

NONE: Final = "none"
"""The name of the row for uncompressed blobs."""

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"
_XZ: Final = b"\xfd7zXZ\x00"
_BZIP2_BLOCKS: Final = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")
_USTAR: Final = slice(257, 262)


class Compression(Struct, frozen=True):
    """Everything in which a compression differs from the others.

    Its name is also the suffix of its media types: ``application/vnd.oci.image.layer.v1.tar+NAME``.
    """

    matches: Callable[[bytes], bool]
    """Whether the first `MAGIC_SIZE` bytes of a blob have the magic of the compression."""
    decoder: Callable[[Source, BlobLimits], Decoder]
    encoder: Callable[[int, int], Encoder]
    """Takes a level and a number of threads."""
    levels: range = range(0)
    """Empty if there are no levels."""
    default_level: int = 0
    in_docker_format: bool = False
    """Whether layers of images in Docker's format can have it."""


def new_encoder(compression: str, level: int | None, threads: int) -> Encoder:
    """An encoder of ``compression``, at its default level if ``level`` is None.

    Raises InvalidInput for an unknown compression or level.
    """
    row = COMPRESSIONS[compression]
    if level is None:
        level = row.default_level
    elif not row.levels:
        raise InvalidInput(f"the compression {compression!r} has no levels")
    elif level not in row.levels:
        raise InvalidInput(f"{compression} level {level} is not one of {row.levels[0]} to {row.levels[-1]}")
    return row.encoder(level, threads)


def new_decoder(compression: str, source: Source, limits: BlobLimits) -> Decoder:
    """A decoder of ``source``. Raises InvalidInput for an unknown compression."""
    return COMPRESSIONS[compression].decoder(source, limits)


def identify(head: bytes, expected: str | None = None) -> str:
    """The name of the compression of a blob that starts with ``head``, by its magic.

    ``expected`` is the compression that the media type names. An empty blob is an uncompressed empty stream whatever
    the media type, as in containerd. Raises InvalidInput if the two differ, Unsupported for bzip2 and xz.
    """
    if expected is not None:
        COMPRESSIONS[expected]
    found = compression_of(head)
    if found == NONE and (other := _unsupported(head)):
        raise Unsupported(f"layer blob is compressed with {other}", hint="recompress it with gzip or zstd")
    if expected is not None and found != expected and head:
        raise InvalidInput(f"layer blob: expected compression {expected} by its media type, found {found} by its magic")
    return found


def compression_of(head: bytes) -> str:
    """The name of the compression whose magic is in ``head``; `NONE` if there is no known magic."""
    for name, row in COMPRESSIONS.built_in.items():
        if row.matches(head):
            return name
    if head[_USTAR] == b"ustar" or not head[:MAGIC_SIZE].strip(b"\0"):
        return NONE  # a tar: do not search installed packages
    for name, row in COMPRESSIONS.rows().items():
        if row.matches(head):
            return name
    return NONE


def _unsupported(head: bytes) -> str:
    if head.startswith(_XZ):
        return "xz"
    return "bzip2" if head.startswith(b"BZh") and head[4:10] in _BZIP2_BLOCKS else ""


def _gzip_decoder(source: Source, limits: BlobLimits) -> Decoder:
    from lamella.streams.decompress import GzipDecoder

    del limits
    return GzipDecoder(source)


def _gzip_encoder(level: int, threads: int) -> Encoder:
    from lamella.streams.compress import GzipEncoder

    return GzipEncoder(level, threads)


def _is_zstd(head: bytes) -> bool:
    return head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] >> 4 == 5)


def _zstd_decoder(source: Source, limits: BlobLimits) -> Decoder:
    from lamella.streams.decompress import ZstdDecoder

    return ZstdDecoder(source, limits.window_log_max)


def _zstd_encoder(level: int, threads: int) -> Encoder:
    from lamella.streams.compress import ZstdEncoder

    return ZstdEncoder(level, threads)


def _plain_encoder(level: int, threads: int) -> Encoder:
    from lamella.streams.compress import PlainEncoder

    del level, threads
    return PlainEncoder()


COMPRESSIONS: Final = Table(
    "compression",
    "lamella.compressions",
    Compression,
    {
        "gzip": Compression(
            lambda head: head.startswith(_GZIP),
            _gzip_decoder,
            _gzip_encoder,
            levels=range(1, 10),
            default_level=5,
            in_docker_format=True,
        ),
        "zstd": Compression(_is_zstd, _zstd_decoder, _zstd_encoder, levels=range(1, 20), default_level=3),
        NONE: Compression(
            lambda head: False,  # noqa: ARG005
            lambda source, limits: source,  # noqa: ARG005
            _plain_encoder,
            in_docker_format=True,
        ),
    },
)
"""All compressions, by the names that ``--compress`` takes."""
