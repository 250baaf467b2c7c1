# SPDX-License-Identifier: Apache-2.0
"""Compressed streams survive writing and reading with any piece size, compressor and number of threads."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from typing import BinaryIO, cast
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.streams.blobs import COMPRESSIONS, HEAD, PACK, Trickle, skippable, tar_like

from lamella.digests import Digest
from lamella.streams import blob_reader, blob_writer
from lamella.streams.blob_reader import BlobReader
from lamella.streams.blob_writer import BlobWriter
from lamella.streams.limits import BlobFacts
from lamella.streams.seekable import SeekableBlob

BLOCK = 8192
SOURCE = tar_like(400_000)

runs = st.tuples(st.sampled_from(["text", "zeros", "noise"]), st.integers(0, 300_000), st.integers(0, 30_000))
tars = st.lists(runs, max_size=5).map(lambda parts: b"".join(piece(*part) for part in parts))
steps = st.lists(st.integers(0, 40_000), min_size=1, max_size=6)


def piece(kind: str, at: int, size: int) -> bytes:
    if kind == "zeros":
        return bytes(size)
    data = SOURCE[at : at + size]
    return data if kind == "text" else zlib.compress(data, 1)


def written(
    tar: bytes, steps: Sequence[int], compression: str, level: int | None, threads: int
) -> tuple[bytes, BlobFacts]:
    """Use blocks so small that every tar has several."""
    out = io.BytesIO()
    with (
        mock.patch.object(blob_writer, "BLOCK_SIZE", BLOCK),
        BlobWriter(out, compression=compression, level=level, threads=threads) as writer,
    ):
        at = turn = 0
        while at < len(tar):
            step = steps[turn % len(steps)] or 1
            writer.write(memoryview(tar)[at : at + step])
            at += step
            turn += 1
        facts = writer.finish()
    return out.getvalue(), facts


def read(blob: BinaryIO, small: int) -> tuple[bytes, BlobFacts]:
    with mock.patch.object(blob_reader, "SMALL_BLOB", small), BlobReader(blob) as reader:
        out = bytearray()
        while buffer := reader.next_buffer():
            out += buffer
        return bytes(out), reader.finish()


@settings(max_examples=60)
@given(tars, steps, st.sampled_from(COMPRESSIONS), st.sampled_from([None, 1, 3, 6]))
def test_the_output_does_not_depend_on_threads_and_pieces(
    tar: bytes, steps: list[int], compression: str, level: int | None
) -> None:
    level = None if compression == "none" else level
    blob, facts = written(tar, [1 << 20], compression, level, 1)
    assert BlobFacts(Digest.of(blob), len(blob), Digest.of(tar), len(tar), compression) == facts
    for threads in (2, 4):
        assert (blob, facts) == written(tar, steps, compression, level, threads)
    found = "none" if not blob else compression
    for small in (HEAD, 1 << 30):
        got, read_facts = read(io.BytesIO(blob), small)
        assert tar == got
        assert (facts.digest, facts.size, facts.diff_id, found) == (
            read_facts.digest,
            read_facts.size,
            read_facts.diff_id,
            read_facts.compression,
        )


@settings(max_examples=60)
@given(
    st.lists(tars, min_size=1, max_size=6), st.sampled_from(["gzip", "zstd"]), st.integers(1, 100_000), st.booleans()
)
def test_members_and_frames_are_read_as_one_stream(parts: list[bytes], compression: str, step: int, skip: bool) -> None:
    between = skippable(b"skipped" * step) if skip and compression == "zstd" else b""
    blob = between + between.join(map(PACK[compression], parts)) + between
    for small in (HEAD, 1 << 30):
        source = Trickle(blob, max(step, len(blob) // 200))
        assert b"".join(parts) == read(cast("BinaryIO", source), small)[0]


@settings(max_examples=60)
@given(tars, st.sampled_from(COMPRESSIONS), st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=8))
def test_any_range_of_the_stream_can_be_read(tar: bytes, compression: str, wanted: list[tuple[float, float]]) -> None:
    blob = PACK[compression](tar)
    with SeekableBlob(lambda: io.BytesIO(blob)) as seekable:
        for one, two in wanted:
            start, end = sorted((int(one * len(tar)), int(two * len(tar))))
            assert tar[start:end] == b"".join(seekable.chunks(start, end - start))
