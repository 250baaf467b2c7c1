# SPDX-License-Identifier: Apache-2.0
"""The compression of a blob, by its first bytes."""

from __future__ import annotations

import bz2
import lzma

import pytest
from tests.unit.streams.blobs import gzipped, skippable, zstd_frame

from lamella.errors import InvalidInput, Unsupported
from lamella.streams.compressions import MAGIC_SIZE, identify


@pytest.mark.parametrize(
    ("blob", "expected"),
    [
        (gzipped(b"x"), "gzip"),
        (b"\x1f\x8b", "gzip"),
        (zstd_frame(b"x"), "zstd"),
        (skippable(b"x"), "zstd"),
        (skippable(b"x", 15), "zstd"),
        (b"", "none"),
        (b"\x1f", "none"),
        (b"\x28\xb5\x2f", "none"),
        (b"\x60\x2a\x4d\x18", "none"),
        (b"BZh9 is a file's name".ljust(512, b"\0"), "none"),
        (bytes(512), "none"),
    ],
)
def test_the_compression_is_found_by_its_magic(blob: bytes, expected: str) -> None:
    assert identify(blob[:MAGIC_SIZE]) == expected


@pytest.mark.parametrize(
    ("blob", "name"), [(bz2.compress(b"x"), "bzip2"), (bz2.compress(b""), "bzip2"), (lzma.compress(b"x"), "xz")]
)
def test_a_compression_that_no_layer_has_is_named(blob: bytes, name: str) -> None:
    with pytest.raises(Unsupported, match=name):
        identify(blob[:MAGIC_SIZE])


@pytest.mark.parametrize(
    ("blob", "says", "found"),
    [
        (gzipped(b"x"), "zstd", "gzip"),
        (zstd_frame(b"x"), "gzip", "zstd"),
        (b"plain", "gzip", "none"),
        (gzipped(b""), "none", "gzip"),
    ],
)
def test_a_media_type_that_the_bytes_belie_is_refused(blob: bytes, says: str, found: str) -> None:
    with pytest.raises(InvalidInput, match=f"expected compression {says} .* found {found}"):
        identify(blob, says)


@pytest.mark.parametrize("says", ["gzip", "zstd", "none"])
def test_an_empty_blob_is_an_uncompressed_stream_whatever_its_media_type(says: str) -> None:
    assert identify(b"", says) == "none"


def test_a_compression_of_another_name_is_refused() -> None:
    with pytest.raises(InvalidInput, match="unknown compression 'GZIP'; choose from gzip, zstd, none"):
        identify(b"", "GZIP")
