# SPDX-License-Identifier: Apache-2.0
"""Any part of a layer's stream can be read, in any order, at a cost that fits the order."""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from tests.unit.streams.blobs import COMPRESSIONS, PACK, Trickle, gzipped, tar_like

from lamella.errors import Exhausted, FormatError, InvalidInput, Unsupported
from lamella.streams.limits import BlobLimits
from lamella.streams.seekable import SeekableBlob

TAR = tar_like(2_600_000)
FORWARD = [(0, 1), (1, 512), (512, 0), (1000, 300_000), (2_000_000, 600_000)]
ANYWHERE = [*FORWARD, (0, 512), (2_599_999, 1), (700_000, 900_000), (0, 2_600_000)]


class Opened:
    """Opens a blob, and remembers what it has opened."""

    def __init__(self, opener: Callable[[], BinaryIO]) -> None:
        self._opener = opener
        self.files: list[BinaryIO] = []

    def __call__(self) -> BinaryIO:
        self.files.append(self._opener())
        return self.files[-1]


def in_memory(compression: str) -> Opened:
    blob = PACK[compression](TAR)
    return Opened(lambda: io.BytesIO(blob))


def part(blob: SeekableBlob, offset: int, length: int) -> bytes:
    return b"".join(blob.chunks(offset, length))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_parts_are_what_the_stream_has_there(compression: str) -> None:
    with SeekableBlob(in_memory(compression), compression) as blob:
        for offset, length in ANYWHERE:
            assert TAR[offset : offset + length] == part(blob, offset, length)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_forward_reads_open_the_blob_once_and_keep_nothing(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    opened = in_memory(compression)
    with SeekableBlob(opened) as blob:
        assert opened.files == []
        for offset, length in FORWARD:
            assert TAR[offset : offset + length] == part(blob, offset, length)
        assert len(opened.files) == 1


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_step_back_opens_the_blob_once_more_and_never_again(compression: str) -> None:
    opened = in_memory(compression)
    with SeekableBlob(opened) as blob:
        for offset, length in [*ANYWHERE, *ANYWHERE[::-1]]:
            assert TAR[offset : offset + length] == part(blob, offset, length)
        assert len(opened.files) == 2
        assert opened.files[0].closed
    assert opened.files[1].closed


def test_an_uncompressed_file_is_read_in_place(tmp_path: Path) -> None:
    (tmp_path / "tar").write_bytes(TAR)
    opened = Opened(lambda: (tmp_path / "tar").open("rb"))
    with SeekableBlob(opened, "none") as blob:
        for offset, length in ANYWHERE:
            assert TAR[offset : offset + length] == part(blob, offset, length)
        assert len(opened.files) == 1
    assert opened.files[0].closed


def test_an_uncompressed_stream_that_cannot_seek_is_read_too() -> None:
    with SeekableBlob(lambda: cast("BinaryIO", Trickle(TAR))) as blob:
        for offset, length in ANYWHERE:
            assert TAR[offset : offset + length] == part(blob, offset, length)


def test_the_temporary_file_lies_where_it_was_asked_for(tmp_path: Path) -> None:
    with SeekableBlob(in_memory("gzip"), directory=tmp_path / "missing") as blob:
        part(blob, 512, 512)
        with pytest.raises(Exception, match="temporary file"):
            part(blob, 0, 512)
    with SeekableBlob(in_memory("gzip"), directory=tmp_path) as blob:
        part(blob, 512, 512)
        part(blob, 0, 512)
        assert list(tmp_path.iterdir()) == []  # it has no name


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_several_parts_may_be_read_at_once(compression: str) -> None:
    with SeekableBlob(in_memory(compression)) as blob:
        first, second = blob.chunks(0, 1_000_000), blob.chunks(500_000, 1_000_000)
        got = [b"", b""]
        for one, two in zip(first, second, strict=True):
            got = [got[0] + one, got[1] + two]
        assert [TAR[:1_000_000], TAR[500_000:1_500_000]] == got


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_several_threads_may_read(compression: str) -> None:
    wrong: list[int] = []
    with SeekableBlob(in_memory(compression)) as blob:

        def look(seed: int) -> None:
            for number in range(20):
                offset = (seed * 7_919 + number * 104_729) % 2_500_000
                if TAR[offset : offset + 100_000] != part(blob, offset, min(100_000, len(TAR) - offset)):
                    wrong.append(offset)

        threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_part_past_the_end_is_an_error(compression: str) -> None:
    with SeekableBlob(in_memory(compression)) as blob:
        for offset, length, at in ((2_599_990, 20, 2_600_000), (3_000_000, 1, 3_000_000), (2_599_990, 20, 2_600_000)):
            with pytest.raises(FormatError, match=f"uncompressed layer at offset {at}: ends .* early"):
                part(blob, offset, length)
        assert TAR[:10] == part(blob, 0, 10)


def test_a_damaged_blob_is_an_error_each_time() -> None:
    damaged = gzipped(TAR)[:-1000]
    with SeekableBlob(lambda: io.BytesIO(damaged)) as blob:
        for _ in range(3):
            assert TAR[:1000] == part(blob, 0, 1000)
            with pytest.raises(FormatError, match="truncated"):
                part(blob, 2_599_000, 1000)


def test_what_the_blob_is_must_be_what_it_should_be() -> None:
    for raw, error in ((gzipped(TAR), InvalidInput), (b"\xfd7zXZ\0" + bytes(90), Unsupported)):
        file = io.BytesIO(raw)
        with SeekableBlob(lambda file=file: file, "zstd") as blob, pytest.raises(error):  # type: ignore[misc]
            part(blob, 0, 1)
        assert file.closed


def test_a_limit_on_the_tar_holds_both_ways() -> None:
    with SeekableBlob(in_memory("gzip"), limits=BlobLimits(max_tar_size=1_500_000)) as blob:
        assert TAR[1000:2000] == part(blob, 1000, 1000)
        assert TAR[:1000] == part(blob, 0, 1000)
        with pytest.raises(Exhausted):
            part(blob, 2_000_000, 1)


def test_a_closed_blob_gives_nothing() -> None:
    blob = SeekableBlob(in_memory("none"))
    rest = blob.chunks(0, 2_000_000)
    assert next(rest)
    blob.close()
    blob.close()
    with pytest.raises(ValueError, match="closed"):
        next(rest)


def test_closing_gives_back_every_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for compression in COMPRESSIONS:
        (tmp_path / compression).write_bytes(PACK[compression](TAR))
        with SeekableBlob(lambda name=compression: (tmp_path / name).open("rb")) as blob:  # type: ignore[misc]
            part(blob, 1000, 1000)
            part(blob, 0, 1000)
    assert before == len(os.listdir("/proc/self/fd"))
