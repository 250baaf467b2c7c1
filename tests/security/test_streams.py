# SPDX-License-Identifier: Apache-2.0
"""Hostile blobs cost little and are refused; large and sparse harmless ones are accepted."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import time
import zlib
from typing import Any, BinaryIO, cast

import pytest
from tests.unit.streams.blobs import Trickle, gzipped, skippable, tar_like, zstd_frame

from lamella.digests import Digest, parse_digest
from lamella.errors import DigestMismatch, Exhausted, FormatError, InvalidInput, LamellaError, SizeMismatch, Unsupported
from lamella.streams.blob_reader import BlobReader
from lamella.streams.limits import BlobFacts, BlobLimits
from lamella.streams.seekable import SeekableBlob
from lamella.streams.zstandard import zstd


def finish(blob: bytes | BinaryIO, **options: Any) -> BlobFacts:
    source = io.BytesIO(blob) if isinstance(blob, bytes) else blob
    with BlobReader(source, **options) as reader:
        return reader.finish()


class Endless(io.RawIOBase):
    """An endless source: a start, then the same piece forever."""

    def __init__(self, start: bytes, piece: bytes) -> None:
        self._rest = start
        self._piece = piece
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = self._piece
        part = self._rest[: len(buffer)]
        buffer[: len(part)] = part
        self._rest = self._rest[len(part) :]
        self.given += len(part)
        return len(part)


def bomb(compression: str) -> bytes:
    """1 GiB of zeros, as small as the format allows without nesting."""
    if compression == "zstd":
        return zstd.compress(bytes(1 << 20), 1) * 1024
    return gzip.compress(bytes(1 << 20), 9, mtime=0) * 1024


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_bomb_stops_at_the_limit_on_its_size(compression: str) -> None:
    before = time.process_time()
    with pytest.raises(Exhausted, match="limit of 10000000 uncompressed bytes"):
        finish(bomb(compression), limits=BlobLimits(max_tar_size=10_000_000))
    assert time.process_time() - before < 2


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_bomb_stops_at_the_limit_on_its_ratio(compression: str) -> None:
    with pytest.raises(Exhausted, match="more than 200 to one"):
        finish(bomb(compression), limits=BlobLimits(max_ratio=200, ratio_floor=10_000_000))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_bomb_stops_when_single_files_are_read_out_of_it(compression: str) -> None:
    blob = bomb(compression)
    with SeekableBlob(lambda: io.BytesIO(blob), limits=BlobLimits(max_tar_size=10_000_000)) as seekable:
        for _ in range(2):
            assert b"".join(seekable.chunks(0, 512)) == bytes(512)
            with pytest.raises(Exhausted):
                list(seekable.chunks(500_000_000, 512))


def test_a_sparse_layer_of_20_gib_is_accepted_by_default() -> None:
    limits = BlobLimits()
    assert limits.max_tar_size is None
    assert limits.ratio_floor > 20 << 30  # below the threshold, at any ratio
    assert limits.max_ratio is not None
    assert limits.max_ratio > 1032  # above it, at the highest ratio of deflate


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_blob_of_the_highest_ratio_is_accepted_by_default(compression: str) -> None:
    assert finish(bomb(compression)).tar_size == 1 << 30


MEMORY = """
import io, resource, sys
from lamella.errors import LamellaError
from lamella.streams.blob_reader import BlobReader
blob = io.BytesIO(bytes.fromhex(sys.argv[1]) * int(sys.argv[2]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    with BlobReader(blob) as reader:
        reader.finish()
except LamellaError:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("piece", "count"),
    [
        (gzip.compress(bytes(1 << 20), 9, mtime=0), 300),
        (zstd_frame(bytes(1 << 20)), 500),
        (gzipped(b""), 200_000),
        (skippable(b""), 200_000),
        (skippable(bytes(5_000)), 2_000),
        (b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 20_000, 1_000),
    ],
    ids=["gzip bomb", "zstd bomb", "empty members", "empty frames", "frames to skip", "a name without an end"],
)
def test_no_blob_takes_much_memory(piece: bytes, count: int) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", MEMORY, piece.hex(), str(count)],
        cwd=sys.prefix,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 40 << 10


def huge_window(log: int) -> bytes:
    """Return a frame of one byte with a window of two to the power of ``log``."""
    return b"\x28\xb5\x2f\xfd\0" + bytes([(log - 10) << 3]) + b"\x09\0\0x"


@pytest.mark.parametrize("log", [28, 31, 41])
def test_a_frame_with_a_huge_window_is_refused_before_it_is_allocated(log: int) -> None:
    with pytest.raises(Exhausted, match=rf"window of {1 << log} bytes, the limit is 134217728 \(2\^27\)"):
        finish(huge_window(log))
    with pytest.raises(Exhausted, match="window"):
        finish(zstd_frame(b"x") + skippable(b"y") + huge_window(log))


def test_a_single_segment_is_a_window_too() -> None:
    frame = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x09\0\0x"
    with pytest.raises(Exhausted, match=f"window of {1 << 40} bytes"):
        finish(frame)


def test_a_window_up_to_the_limit_is_accepted() -> None:
    assert finish(huge_window(27)).tar_size == 1
    data = tar_like(300_000)
    assert finish(zstd.compress(data, options={zstd.CompressionParameter.window_log: 27})).diff_id == Digest.of(data)
    with pytest.raises(Exhausted, match=r"the limit is 1048576 \(2\^20\)"):
        finish(huge_window(21), limits=BlobLimits(window_log_max=20))


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", bytes(1 << 16)),
        (b"", gzipped(bytes(1 << 16))),
        (b"", zstd_frame(tar_like(1 << 16))),
        (b"", skippable(bytes(1 << 16))),
        (gzipped(b"x"), bytes(1 << 16)),
        (gzipped(b"x"), b"garbage " * 512),
        (zstd_frame(b"x"), b"garbage " * 512),
    ],
    ids=["plain", "members", "frames", "to skip", "zeros after gzip", "garbage after gzip", "garbage after zstd"],
)
def test_an_endless_source_stops_at_the_expected_size(start: bytes, piece: bytes) -> None:
    source = Endless(start, piece)
    with pytest.raises(SizeMismatch, match="expected 1000000 bytes, got at least"):
        finish(cast("BinaryIO", source), size=1_000_000, digest=Digest.of(b""))
    assert source.given < 3_000_000


def test_wrong_digests_and_sizes_are_refused_before_the_result_is_used() -> None:
    tar = tar_like(700_000)
    for blob in (tar, gzipped(tar), zstd_frame(tar)):
        right: dict[str, Any] = {"digest": Digest.of(blob), "size": len(blob), "diff_id": Digest.of(tar)}
        assert finish(blob, **right).tar_size == 700_000
        wrong: list[tuple[type[LamellaError], dict[str, Any]]] = [
            (DigestMismatch, {"digest": Digest.of(tar + b"x")}),
            (DigestMismatch, {"diff_id": Digest.of(tar + b"x")}),
            (SizeMismatch, {"size": len(blob) - 1}),
            (SizeMismatch, {"size": len(blob) + 1}),
        ]
        for error, promise in wrong:
            with pytest.raises(error):
                finish(blob, **(right | promise))


@pytest.mark.parametrize("after", [b"\0", bytes(512), b"x", b"more bytes than any header", gzipped(b"a member")])
def test_bytes_after_the_end_never_match_the_expected_blob(after: bytes) -> None:
    tar = tar_like(700_000)
    for blob in (gzipped(tar), zstd_frame(tar), tar):
        with pytest.raises((SizeMismatch, FormatError)):
            finish(blob + after, size=len(blob), digest=Digest.of(blob), diff_id=Digest.of(tar))
        with pytest.raises((DigestMismatch, FormatError)):
            finish(blob + after, digest=Digest.of(blob))


def test_bytes_after_the_end_of_a_compressed_stream_are_refused() -> None:
    tar = tar_like(700_000)
    for blob in (gzipped(tar), zstd_frame(tar)):
        for after in (b"\0", bytes(512), b"x", b"more bytes than any header" * 20):
            with pytest.raises(FormatError):
                finish(blob + after)


@pytest.mark.parametrize("raw", ["", "sha256", "sha256:", "sha256:" + "g" * 64, "sha256:" + "A" * 64, "../etc:passwd"])
def test_malformed_digests_are_refused(raw: str) -> None:
    with pytest.raises(InvalidInput):
        parse_digest(raw)


def test_a_digest_of_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(Unsupported):
        parse_digest("md5:" + "0" * 32)


def test_every_truncation_is_found() -> None:
    tar = os.urandom(300) + bytes(2_000)
    for blob in (gzipped(tar), zstd.compress(tar, options={zstd.CompressionParameter.checksum_flag: 1})):
        for length in range(4, len(blob)):
            with pytest.raises(FormatError):
                finish(blob[:length])


def test_a_flipped_bit_is_found_without_an_expected_digest() -> None:
    tar = tar_like(50) + bytes(500)
    blob = gzipped(tar)
    silent = 0
    for bit in range(80, 8 * len(blob)):  # bits of the gzip header do not affect the tar
        broken = bytearray(blob)
        broken[bit // 8] ^= 1 << bit % 8
        try:
            facts = finish(bytes(broken))
        except FormatError:
            continue
        assert Digest.of(tar) == facts.diff_id
        silent += 1
    assert silent < 8  # padding of the last byte of the deflate stream


def test_members_without_end_are_read_in_linear_time() -> None:
    def cost(count: int) -> float:
        blob = gzipped(b"") * count + zlib.compress(b"", wbits=31) * count
        best = 1e9
        for _ in range(2):
            before = time.process_time()
            finish(blob)
            best = min(best, time.process_time() - before)
        return best

    assert cost(80_000) < 8 * cost(20_000) + 0.2


def test_frames_without_end_are_read_in_linear_time() -> None:
    def cost(count: int) -> float:
        blob = zstd_frame(b"") * count + skippable(b"") * count
        before = time.process_time()
        finish(blob)
        return time.process_time() - before

    assert cost(20_000) < 8 * cost(5_000) + 0.2


def test_one_byte_at_a_time_is_accepted() -> None:
    blob = gzipped(tar_like(20_000))
    assert finish(cast("BinaryIO", Trickle(blob, 1)), size=len(blob)).tar_size == 20_000
