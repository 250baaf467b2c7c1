# SPDX-License-Identifier: Apache-2.0
"""A blob is read in full buffers, and everything promised about it is checked."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from tests.unit.streams.blobs import (
    COMPRESSIONS,
    HEAD,
    PACK,
    SIZES,
    Failing,
    Trickle,
    gzipped,
    skippable,
    tar_like,
    workers,
    zstd_frame,
)

from lamella.digests import Digest
from lamella.errors import (
    Cancelled,
    DigestMismatch,
    Exhausted,
    FormatError,
    InvalidInput,
    NotFound,
    SizeMismatch,
    Unsupported,
)
from lamella.progress import Cancellation
from lamella.streams import blob_reader
from lamella.streams.blob_reader import BlobReader
from lamella.streams.buffers import BUFFER_SIZE
from lamella.streams.limits import BlobFacts, BlobLimits


@pytest.fixture(params=["in one thread", "in several"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Read every blob both as a small and as a large one, and see that no thread is left."""
    monkeypatch.setattr(blob_reader, "SMALL_BLOB", 1 << 30 if request.param == "in one thread" else HEAD)
    yield request.param
    assert workers() == []


def facts(tar: bytes, blob: bytes, compression: str) -> BlobFacts:
    return BlobFacts(Digest.of(blob), len(blob), Digest.of(tar), len(tar), compression)


def read(source: bytes | BinaryIO | Path, **options: Any) -> tuple[bytes, BlobFacts]:
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    with BlobReader(source, **options) as reader:
        out = bytearray()
        while buffer := reader.next_buffer():
            out += buffer
        return bytes(out), reader.finish()


def refuse(error: type[Exception], blob: bytes | BinaryIO, match: str | None = None, **options: Any) -> None:
    with pytest.raises(error, match=match):
        read(blob, **options)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("size", SIZES)
def test_each_buffer_is_full_save_the_last(compression: str, size: int) -> None:
    tar = tar_like(size)
    blob = PACK[compression](tar)
    with BlobReader(io.BytesIO(blob)) as reader:
        buffers = []
        while buffer := reader.next_buffer():
            buffers.append(bytes(buffer))
        assert len(reader.next_buffer()) == 0
        whole, rest = divmod(size, BUFFER_SIZE)
        assert [BUFFER_SIZE] * whole + [rest] * bool(rest) == [len(buffer) for buffer in buffers]
        assert tar == b"".join(buffers)
        assert facts(tar, blob, compression) == reader.finish()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_all_that_was_promised_holds(compression: str) -> None:
    tar = tar_like(2_600_000)
    blob = PACK[compression](tar)
    want = facts(tar, blob, compression)
    promised = {"digest": want.digest, "size": want.size, "diff_id": want.diff_id, "compression": compression}
    assert (tar, want) == read(blob, **promised)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_finish_reads_what_nobody_has(compression: str) -> None:
    tar = tar_like(2_600_000)
    blob = PACK[compression](tar)
    with BlobReader(io.BytesIO(blob)) as reader:
        found = reader.finish()
        assert facts(tar, blob, compression) == found
        assert found is reader.finish()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["sha512", "sha384"])
def test_digests_of_other_kinds_are_checked(compression: str, kind: str) -> None:
    tar = tar_like(300_000)
    blob = PACK[compression](tar)
    digest = Digest.of(blob, kind)
    assert digest == read(blob, digest=digest)[1].digest
    assert Digest.of(tar) == read(blob, digest=digest)[1].diff_id
    assert Digest.of(tar, kind) == read(blob, diff_id=Digest.of(tar, kind))[1].diff_id


def test_a_gzip_stream_may_have_several_members() -> None:
    parts = [tar_like(size, size) for size in (1, 0, 700_000, 3, 900_000)]
    blob = b"".join(map(gzipped, parts))
    assert b"".join(parts) == read(blob)[0]


def test_a_zstd_stream_may_have_several_frames_and_skippable_ones() -> None:
    parts = [tar_like(size, size) for size in (1, 0, 700_000, 3, 900_000)]
    blob = skippable(b"first") + skippable(b"").join(map(zstd_frame, parts)) + skippable(bytes(600_000), 9)
    assert b"".join(parts) == read(blob)[0]
    assert read(skippable(b"alone"))[0] == b""


def test_hundreds_of_small_frames_are_read() -> None:
    parts = [tar_like(number * 37, number) for number in range(400)]
    assert b"".join(parts) == read(b"".join(map(zstd_frame, parts)))[0]
    assert b"".join(parts) == read(b"".join(map(gzipped, parts)))[0]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("step", [1, 4_093, 70_000])
def test_a_source_may_give_little_at_a_time(compression: str, step: int) -> None:
    tar = tar_like(1_200_000 if step > 1 else 20_000)
    blob = PACK[compression](tar)
    assert (tar, facts(tar, blob, compression)) == read(cast("BinaryIO", Trickle(blob, step)))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_pipe_is_read(compression: str) -> None:
    tar = tar_like(2_600_000)
    blob = PACK[compression](tar)
    ours, theirs = os.pipe()

    def write() -> None:
        with os.fdopen(theirs, "wb") as pipe:
            pipe.write(blob)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(ours, "rb", buffering=0) as pipe:
        assert (tar, facts(tar, blob, compression)) == read(cast("BinaryIO", pipe))
    thread.join()


def test_a_path_is_opened_when_it_is_read_and_closed_after(tmp_path: Path) -> None:
    tar = tar_like(2_600_000)
    path = tmp_path / "blob"
    with BlobReader(path) as reader:
        path.write_bytes(gzipped(tar))
        before = len(os.listdir("/proc/self/fd"))
        reader.next_buffer()
        assert before + 1 == len(os.listdir("/proc/self/fd"))
    assert before == len(os.listdir("/proc/self/fd"))
    assert tar == read(path)[0]


def test_a_path_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with BlobReader(tmp_path / "blob") as reader, pytest.raises(NotFound, match=r"open .*blob"):
        reader.next_buffer()


def test_a_file_stays_the_callers() -> None:
    source = io.BytesIO(gzipped(b"x"))
    read(source)
    assert not source.closed


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_another_digest_is_found_out(compression: str) -> None:
    blob = PACK[compression](tar_like(2_600_000))
    other = Digest.of(b"other")
    refuse(DigestMismatch, blob, f"layer blob: expected digest {other}, got {Digest.of(blob)}", digest=other)
    refuse(DigestMismatch, blob, "diff id", diff_id=other)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("off", [-1, 1])
def test_another_size_is_found_out(compression: str, off: int) -> None:
    blob = PACK[compression](tar_like(1_500_000))
    refuse(SizeMismatch, blob, f"expected {len(blob) + off} bytes", size=len(blob) + off)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_blob_larger_than_promised_is_not_read_to_its_end(compression: str) -> None:
    data = os.urandom(8_000_000)  # of which no compression makes less
    blob = gzipped(data) if compression == "gzip" else zstd_frame(data) if compression == "zstd" else data
    source = Trickle(blob, 1 << 16)
    refuse(SizeMismatch, cast("BinaryIO", source), "expected 100000 bytes, got at least", size=100_000)
    assert source.given < 2_000_000


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("missing", [1, 4, 8, 9, 1000])
def test_a_truncated_blob_is_said_to_be_truncated(compression: str, missing: int) -> None:
    blob = PACK[compression](tar_like(1_500_000))[:-missing]
    refuse(FormatError, blob, f"{compression} stream at offset {len(blob)}: truncated")


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_blob_damaged_on_its_way_is_said_to_be_another_one(compression: str) -> None:
    blob = PACK[compression](tar_like(1_500_000))
    broken = bytearray(blob)
    broken[len(blob) // 2 : len(blob) // 2 + 40] = bytes(40)
    refuse(FormatError, bytes(broken))
    refuse(DigestMismatch, bytes(broken), digest=Digest.of(blob), size=len(blob))
    refuse(SizeMismatch, blob[:-9], digest=Digest.of(blob), size=len(blob))
    refuse(FormatError, bytes(broken), digest=Digest.of(bytes(broken)), size=len(blob))


@pytest.mark.parametrize(
    ("blob", "match"),
    [
        (b"\x1f\x8b\x07" + bytes(20), "compression method"),
        (gzipped(b"x" * 9000)[:-8] + bytes(8), "gzip stream .*CRC"),
        (gzipped(b"x" * 9000)[:-4] + bytes(4), "gzip stream"),
        (b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 600_000, "gzip header"),
        (gzipped(b"x") + b"no member follows here", "gzip stream"),
        (gzipped(b"x" * 9000) + bytes(1), "zeros after the last member"),
        (gzipped(b"x" * 9000) + bytes(512), "zeros after the last member"),
        (gzipped(b"x") + gzipped(b"y") + bytes(512), "zeros after the last member"),
        (gzipped(b"") + bytes(10), "zeros after the last member"),
        (zstd_frame(b"x") + b"no frame follows here", "zstd stream"),
        (zstd_frame(b"x") + bytes(1), "truncated|zstd stream"),
        (zstd_frame(b"x") + skippable(bytes(99))[:-1], "truncated"),
        (b"\x28\xb5\x2f\xfd", "truncated"),
    ],
)
def test_bytes_that_are_no_stream_are_refused(blob: bytes, match: str) -> None:
    refuse(FormatError, blob, match)


@pytest.mark.parametrize("tail", [gzipped(b""), gzipped(b"z" * 255), gzipped(bytes(256)), gzipped(bytes(65536))])
def test_a_last_member_that_ends_with_zeros_is_not_taken_for_padding(tail: bytes) -> None:
    assert len(read(gzipped(b"x" * 3000) + tail)[0]) >= 3000
    read(tail)


def test_a_media_type_that_the_bytes_belie_is_refused() -> None:
    refuse(InvalidInput, zstd_frame(bytes(100)), "expected compression gzip .* found zstd", compression="gzip")
    refuse(Unsupported, b"\xfd7zXZ\0" + bytes(40), "xz")


@pytest.mark.parametrize("says", [*COMPRESSIONS, None])
def test_an_empty_blob_is_a_stream_of_nothing(says: str | None) -> None:
    assert (b"", facts(b"", b"", "none")) == read(b"", compression=says)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_limit_on_the_tar_stops_the_reading(compression: str) -> None:
    tar = tar_like(3_000_000)
    blob = PACK[compression](tar)
    assert tar == read(blob, limits=BlobLimits(max_tar_size=3_000_000))[0]
    refuse(Exhausted, blob, "limit of 2999999 uncompressed bytes", limits=BlobLimits(max_tar_size=2_999_999))


def test_a_limit_on_the_ratio_counts_from_its_floor_on() -> None:
    blob = zstd_frame(bytes(5_000_000))
    assert len(read(blob, limits=BlobLimits(max_ratio=100, ratio_floor=5_000_000))[0]) == 5_000_000
    refuse(Exhausted, blob, "more than 100 to one", limits=BlobLimits(max_ratio=100, ratio_floor=4_000_000))
    assert len(read(blob, limits=BlobLimits(max_ratio=None, ratio_floor=0))[0]) == 5_000_000


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("error", [OSError(5, "broken"), EOFError("far too early"), ValueError("of its own")])
def test_an_error_of_the_source_comes_as_it_is(compression: str, error: Exception) -> None:
    blob = PACK[compression](tar_like(2_000_000))[:-30]
    source = cast("BinaryIO", Failing(blob, error))
    with BlobReader(source) as reader:
        with pytest.raises(type(error)) as caught:
            reader.finish()
        assert error is caught.value
        with pytest.raises(type(error)):
            reader.next_buffer()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_what_came_before_an_error_is_given_out_first(compression: str, way: str) -> None:
    tar = tar_like(3 * BUFFER_SIZE)
    blob = PACK[compression](tar)
    with BlobReader(cast("BinaryIO", Failing(blob[:-10], OSError(5, "broken")))) as reader:
        if way == "in several":
            assert tar[:BUFFER_SIZE] == reader.next_buffer()
        with pytest.raises(OSError, match="broken"):
            reader.finish()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("buffers", [0, 1, 3])
def test_a_caller_that_stops_early_leaves_no_thread(compression: str, buffers: int) -> None:
    blob = PACK[compression](tar_like(2_600_000) * 10)

    def give_up() -> None:
        with BlobReader(io.BytesIO(blob)) as reader:
            for _ in range(buffers):
                reader.next_buffer()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        give_up()
    assert workers() == []


@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_a_ring_of_few_buffers_is_enough(buffers: int) -> None:
    tar = tar_like(2_600_000) * 3
    assert tar == read(gzipped(tar), buffers=buffers)[0]


def test_a_closed_reader_gives_nothing() -> None:
    reader = BlobReader(io.BytesIO(gzipped(b"x")))
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.next_buffer()


def test_what_is_not_wanted_is_not_hashed() -> None:
    tar = tar_like(2_600_000)
    for compression in COMPRESSIONS:
        blob = PACK[compression](tar)
        for blob_too, stream_too in product((False, True), repeat=2):
            got, found = read(blob, hash_blob=blob_too, hash_stream=stream_too, size=len(blob))
            assert tar == got
            digest, diff_id = Digest.of(blob) if blob_too else Digest(""), Digest.of(tar) if stream_too else Digest("")
            assert BlobFacts(digest, len(blob), diff_id, len(tar), compression) == found
            refuse(SizeMismatch, blob, hash_blob=blob_too, hash_stream=stream_too, size=len(blob) - 1)
    with pytest.raises(ValueError, match="is expected"):
        BlobReader(io.BytesIO(b""), hash_blob=False, digest=Digest.of(b""))
    with pytest.raises(ValueError, match="is expected"):
        BlobReader(io.BytesIO(b""), hash_stream=False, diff_id=Digest.of(b""))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_progress_adds_up_to_the_blob(compression: str) -> None:
    blob = PACK[compression](tar_like(5_000_000))
    steps: list[int] = []
    threads = set()

    def advance(amount: int) -> None:
        steps.append(amount)
        threads.add(threading.current_thread())

    read(blob, progress=advance)
    assert len(blob) == sum(steps)
    assert {threading.current_thread()} == threads


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_cancelled_reading_stops(compression: str) -> None:
    cancel = Cancellation()
    blob = PACK[compression](tar_like(2_600_000) * 4)
    with BlobReader(io.BytesIO(blob), cancel=cancel) as reader:
        reader.next_buffer()
        cancel.cancel()
        with pytest.raises(Cancelled):
            reader.finish()


def stuck() -> tuple[BinaryIO, int]:
    """A pipe that gives the start of a blob and then nothing; its other end."""
    ours, theirs = os.pipe()
    os.write(theirs, gzipped(os.urandom(40_000))[:-100])
    return cast("BinaryIO", os.fdopen(ours, "rb", buffering=0)), theirs


def give_up_on(reader: BlobReader) -> None:
    with pytest.raises(ValueError, match="closed"):
        reader.finish()


def gone(seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while workers() and time.monotonic() < end:
        time.sleep(0.01)
    return not workers()


def test_closing_does_not_wait_for_a_source_that_gives_nothing(way: str) -> None:
    if way == "in one thread":
        return
    source, theirs = stuck()
    with source:
        reader = BlobReader(source)
        caller = threading.Thread(target=give_up_on, args=(reader,), daemon=True)
        caller.start()
        while not workers():
            time.sleep(0.01)
        before = time.monotonic()
        reader.close()
        assert time.monotonic() - before < 4
        os.close(theirs)
        assert gone()
        caller.join()


def test_cancelling_does_not_wait_for_a_source_that_gives_nothing(way: str) -> None:
    if way == "in one thread":
        return
    source, theirs = stuck()
    cancel = Cancellation()
    with source:
        timer = threading.Timer(0.2, cancel.cancel)
        timer.start()
        with pytest.raises(Cancelled), BlobReader(source, cancel=cancel) as reader:
            reader.finish()
        timer.join()
        os.close(theirs)
        assert gone()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is Python's own affair, whatever else runs in this process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_wait_for_a_source_that_gives_nothing() -> None:
    source, theirs = stuck()
    with source:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt), BlobReader(source) as reader:
            reader.finish()
        timer.join()
        os.close(theirs)
        assert gone()


def test_a_small_blob_is_read_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_reader, "SMALL_BLOB", 256 << 10)
    for size, threads in ((200_000, False), (30_000_000, True)):
        with BlobReader(io.BytesIO(bytes(size))) as reader:
            reader.next_buffer()
            assert threads == bool(workers())


def test_hashing_that_fails_is_told(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        name = "sha256"

        def update(self, data: object) -> None:
            raise MemoryError

    for broken in (0, 1):
        states = [cast("Any", Broken()) if number == broken else hashlib.sha256() for number in (0, 1)]
        monkeypatch.setattr(blob_reader, "_new_hash", lambda _, states=states: states.pop(0))
        with pytest.raises(MemoryError), BlobReader(io.BytesIO(gzipped(os.urandom(9_000_000)))) as reader:
            reader.finish()
