# SPDX-License-Identifier: Apache-2.0
"""Any blob is read or refused with an expected error, with and without threads alike."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.streams.blobs import HEAD, gzipped, skippable, tar_like, zstd_frame

from lamella.digests import Digest
from lamella.errors import LamellaError
from lamella.streams import blob_reader
from lamella.streams.blob_reader import BlobReader
from lamella.streams.limits import BlobFacts, BlobLimits
from lamella.streams.zstandard import zstd

LIMITS = BlobLimits(max_tar_size=4 << 20, max_ratio=2000, ratio_floor=1 << 20, window_log_max=20)


def check_wording(error: LamellaError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


def outcome(data: bytes, small: int) -> BlobFacts | type[LamellaError]:
    """What reading comes to; the stream given out is the one whose diff id is told."""
    out = bytearray()
    with mock.patch.object(blob_reader, "SMALL_BLOB", small), BlobReader(io.BytesIO(data), limits=LIMITS) as reader:
        try:
            while buffer := reader.next_buffer():
                out += buffer
            facts = reader.finish()
        except LamellaError as error:
            check_wording(error)
            return type(error)
    assert (len(data), Digest.of(data)) == (facts.size, facts.digest)
    assert (len(out), Digest.of(bytes(out))) == (facts.tar_size, facts.diff_id)
    return facts


def reference(data: bytes) -> bytes | None:
    """What the usual libraries make of a gzip or zstd stream; None where they refuse it or it is too large."""
    try:
        if data.startswith(b"\x28\xb5\x2f\xfd"):
            frame = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: LIMITS.window_log_max})
            out = frame.decompress(data, LIMITS.max_tar_size or -1)
            return out if frame.eof and not frame.unused_data else None
        out = b""
        while data:
            member = zlib.decompressobj(31)
            out += member.decompress(data, (LIMITS.max_tar_size or 0) - len(out) or 1)
            if not member.eof:
                return None
            data = member.unused_data
        return out
    except (zlib.error, zstd.ZstdError):
        return None


def fuzz_decompress(data: bytes) -> None:
    """One input; what the usual libraries read is read, and as they read it."""
    found = outcome(data, 1 << 30)
    assert found == outcome(data, HEAD)
    if data.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")) and (expected := reference(data)) is not None:
        assert isinstance(found, BlobFacts)
        assert found.diff_id == Digest.of(expected)


def seeds() -> Iterator[bytes]:
    """Good blobs, small ones and ones of several members and frames."""
    text = tar_like(3_000)
    yield from (b"", text, gzipped(b""), gzipped(text), gzipped(text) + gzipped(bytes(70_000)))
    yield from (zstd_frame(b""), zstd_frame(text), zstd_frame(text) + skippable(b"between") + zstd_frame(bytes(70_000)))
    yield zstd.compress(text, options={zstd.CompressionParameter.checksum_flag: 1})
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    yield stream.compress(text) + stream.flush(zlib.Z_FULL_FLUSH) + stream.compress(text) + stream.flush()
    yield b"\x1f\x8b\x08\x1c" + bytes(6) + b"\x02\0xx" + b"name\0comment\0" + gzipped(text)[10:]


SEEDS = list(seeds())
cuts = st.tuples(st.integers(0, 4_000), st.integers(0, 12), st.binary(max_size=12))


def changed(seed: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    body = bytearray(seed)
    for at, size, new in changes:
        at = at % (len(body) + 1)
        body[at : at + size] = new
    return bytes(body)


@settings(max_examples=300)
@given(st.builds(changed, st.sampled_from(SEEDS), st.lists(cuts, max_size=3)))
def test_blobs_that_are_nearly_good_are_read_or_refused(data: bytes) -> None:
    fuzz_decompress(data)


@settings(max_examples=100)
@given(st.builds(bytes.__add__, st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"]), st.binary(max_size=200)))
def test_bytes_after_a_magic_are_read_or_refused(data: bytes) -> None:
    fuzz_decompress(data)


def test_good_blobs_are_read() -> None:
    for data in SEEDS:
        assert isinstance(outcome(data, HEAD), BlobFacts)
        fuzz_decompress(data)
