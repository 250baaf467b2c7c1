# SPDX-License-Identifier: Apache-2.0
"""A blob's bytes depend on the tar and the level alone, and whatever goes wrong on the way is told."""

from __future__ import annotations

import errno
import gzip
import io
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

import pytest
from tests.unit.streams.blobs import COMPRESSIONS, tar_like, workers

from lamella.digests import Digest
from lamella.errors import InvalidInput, StreamConsumed
from lamella.streams.blob_writer import BlobWriter
from lamella.streams.compress import BLOCK_SIZE
from lamella.streams.compressions import COMPRESSIONS as ROWS
from lamella.streams.limits import BlobFacts, Buffer
from lamella.streams.zstandard import zstd

UNPACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "zstd": zstd.decompress, "none": bytes}
SIZES = (0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE, 5_300_000)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    end = time.monotonic() + 3
    while workers() and time.monotonic() < end:
        time.sleep(0.01)
    assert workers() == []


def write(tar: bytes, compression: str, step: int = 300_001, **options: Any) -> tuple[bytes, BlobFacts]:
    out = io.BytesIO()
    with BlobWriter(out, compression=compression, **options) as writer:
        for at in range(0, len(tar), step):
            writer.write(tar[at : at + step])
        facts = writer.finish()
    assert not out.closed
    return out.getvalue(), facts


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("size", SIZES)
def test_the_facts_are_those_of_the_blob_and_of_the_tar(compression: str, size: int) -> None:
    tar = tar_like(size)
    blob, facts = write(tar, compression)
    assert tar == UNPACK[compression](blob)
    assert BlobFacts(Digest.of(blob), len(blob), Digest.of(tar), size, compression) == facts


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("size", SIZES)
def test_neither_threads_nor_pieces_change_a_byte(compression: str, size: int) -> None:
    tar = tar_like(size)
    want, _ = write(tar, compression, threads=1)
    for threads, step in ((2, 4_099), (4, 1 << 20), (3, 6_000_000), (None, 1_500_000)):
        assert want == write(tar, compression, step, threads=threads)[0]


@pytest.mark.parametrize(
    ("compression", "level"), [(name, level) for name in ("gzip", "zstd") for level in ROWS[name].levels if level < 13]
)
def test_each_level_gives_the_tar_back(compression: str, level: int) -> None:
    tar = tar_like(1_200_000)
    assert tar == UNPACK[compression](write(tar, compression, level=level, threads=2)[0])


def test_a_higher_level_gives_a_smaller_blob() -> None:
    tar = tar_like(1_200_000)
    fast, default, best = (len(write(tar, "gzip", level=level)[0]) for level in (3, None, 9))
    assert fast > default > best
    assert write(tar, "gzip", level=5)[0] == write(tar, "gzip")[0]
    assert write(tar, "zstd", level=3)[0] == write(tar, "zstd")[0]


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_gzip_is_one_member_without_name_or_time(size: int) -> None:
    blob, _ = write(tar_like(size), "gzip")
    assert blob[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    state = zlib.decompressobj(31)
    assert size == len(state.decompress(blob))
    assert state.eof
    assert state.unused_data == b""


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_zstd_is_one_frame_with_a_checksum(size: int) -> None:
    blob, _ = write(tar_like(size), "zstd")
    assert len(blob) == zstd.get_frame_size(blob)
    assert blob[4] & 4
    with pytest.raises(zstd.ZstdError, match="checksum"):
        zstd.decompress(blob[:-1] + bytes([blob[-1] ^ 1]))


def test_a_block_refers_to_the_one_before_it() -> None:
    noise = tar_like(BLOCK_SIZE)[-30_000:]
    tar = bytes(BLOCK_SIZE - 30_000) + noise + noise
    alone = len(write(bytes(BLOCK_SIZE - 30_000) + noise, "gzip")[0])
    assert len(write(tar, "gzip")[0]) - alone < 500


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_callers_buffer_is_free_on_return(compression: str) -> None:
    tar = tar_like(4_000_000)
    out = io.BytesIO()
    scratch = bytearray(700_000)
    with BlobWriter(out, compression=compression) as writer:
        for at in range(0, len(tar), len(scratch)):
            size = len(tar[at : at + len(scratch)])
            scratch[:size] = tar[at : at + size]
            writer.write(memoryview(scratch)[:size])
            scratch[:] = bytes(len(scratch))
        writer.finish()
    assert tar == UNPACK[compression](out.getvalue())


def test_the_sink_may_be_a_function() -> None:
    got = bytearray()
    with BlobWriter(got.extend, compression="none") as writer:
        writer.write(b"abc")
        assert Digest.of(b"abc") == writer.finish().digest
    assert got == b"abc"


class Sipping(io.RawIOBase):
    """Takes some of what it is given."""

    def __init__(self) -> None:
        self.got = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:  # type: ignore[override]
        part = bytes(data[:60_001])
        self.got += part
        return len(part)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_file_that_takes_little_at_once_gets_all(compression: str) -> None:
    tar = tar_like(3_000_000)
    sink = Sipping()
    with BlobWriter(cast("BinaryIO", sink), compression=compression) as writer:
        writer.write(tar)
        facts = writer.finish()
    assert facts.digest == Digest.of(bytes(sink.got))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"compression": "bzip2"}, "unknown compression 'bzip2'"),
        ({"compression": "gzip", "level": 0}, "gzip level 0 is not one of 1 to 9"),
        ({"compression": "gzip", "level": 10}, "gzip level 10 is not one of 1 to 9"),
        ({"compression": "zstd", "level": 20}, "zstd level 20 is not one of 1 to 19"),
        ({"compression": "none", "level": 1}, "the compression 'none' has no levels"),
    ],
)
def test_a_compression_or_level_that_there_is_not_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        BlobWriter(io.BytesIO(), **options)


def feed(writer: BlobWriter, blocks: int) -> None:
    block = tar_like(BLOCK_SIZE)
    for _ in range(blocks):
        writer.write(block)
    writer.finish()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("blocks", [1, 2, 40])
def test_a_full_disk_is_told(compression: str, blocks: int) -> None:
    with open("/dev/full", "wb", buffering=0) as full, BlobWriter(full, compression=compression, threads=2) as writer:
        with pytest.raises(OSError, match="No space left") as caught:
            feed(writer, blocks)
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises((OSError, StreamConsumed)):  # the same again, or that it is over
            writer.finish()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_sink_that_fails_later_is_told(compression: str) -> None:
    left = 3

    def sink(_: Buffer) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ZeroDivisionError

    with BlobWriter(sink, compression=compression, threads=2) as writer, pytest.raises(ZeroDivisionError):
        feed(writer, 60)


def test_a_file_that_does_not_block_and_has_no_room_is_an_error() -> None:
    class Full(Sipping):
        def write(self, data: Buffer) -> int:  # type: ignore[override]
            return cast("int", None)

    with pytest.raises(BlockingIOError), BlobWriter(cast("BinaryIO", Full()), compression="none") as writer:
        feed(writer, 1)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_compressor_that_fails_is_told(compression: str) -> None:
    with BlobWriter(io.BytesIO(), compression=compression, threads=2) as writer:

        def broken(data: memoryview, before: bytes) -> bytes:
            raise MemoryError(len(data), before)

        writer._encoder.block = broken  # type: ignore[method-assign]
        with pytest.raises(MemoryError):
            feed(writer, 40)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_leaving_the_block_early_gives_up(compression: str) -> None:
    out = io.BytesIO()
    writer = BlobWriter(out, compression=compression, threads=4)

    def give_up() -> None:
        with writer:
            for _ in range(9):
                writer.write(tar_like(BLOCK_SIZE))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        give_up()
    assert workers() == []
    with pytest.raises(StreamConsumed):
        writer.write(b"more")
    with pytest.raises(StreamConsumed):
        writer.finish()
    writer.abort()


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_nothing_follows_the_end(size: int) -> None:
    out = io.BytesIO()
    with BlobWriter(out, compression="gzip") as writer:
        writer.write(bytes(size))
        facts = writer.finish()
        with pytest.raises(StreamConsumed):
            writer.write(b"x")
        assert facts is writer.finish()
        writer.abort()
    assert len(out.getvalue()) == facts.size


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_slow_sink_holds_the_writer_back(compression: str) -> None:
    opened = threading.Event()
    taken: list[int] = []
    block = memoryview(zlib.compress(b"") + tar_like(BLOCK_SIZE))[:BLOCK_SIZE]

    def sink(_: Buffer) -> None:
        if len(taken) > 1:
            opened.wait()

    def work() -> None:
        with BlobWriter(sink, compression=compression, threads=2) as writer:
            for _ in range(60):
                writer.write(block)
                taken.append(1)
            writer.finish()

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.7)
    held = len(taken)
    opened.set()
    thread.join()
    assert len(taken) == 60
    # zstd gathers four blocks and more before it gives any
    assert held < 40 if compression == "zstd" else held <= 6


def test_giving_up_does_not_wait_for_a_sink_that_takes_nothing() -> None:
    opened = threading.Event()
    with BlobWriter(lambda _: opened.wait() if workers() else None, compression="none", threads=1) as writer:
        for _ in range(3):
            writer.write(tar_like(BLOCK_SIZE))
        before = time.monotonic()
        writer.abort()
        assert time.monotonic() - before < 3
    opened.set()


def test_a_tar_of_one_block_is_written_without_threads() -> None:
    with BlobWriter(io.BytesIO(), compression="gzip") as writer:
        writer.write(bytes(BLOCK_SIZE))
        assert workers() == []
        writer.write(b"x")
        assert workers() != []
        writer.finish()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_memory_that_it_takes_does_not_grow_with_the_tar(compression: str) -> None:
    block = bytes(BLOCK_SIZE)
    held = []
    tracemalloc.start()
    try:
        with BlobWriter(lambda _: None, compression=compression, threads=1) as writer:
            for count in range(120):
                writer.write(block)
                if count in (19, 119):
                    held.append(tracemalloc.get_traced_memory()[0])
            writer.finish()
    finally:
        tracemalloc.stop()
    assert held[1] - held[0] < 2 * BLOCK_SIZE, "more than a block that is on its way"
