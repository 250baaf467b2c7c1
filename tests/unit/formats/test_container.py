# SPDX-License-Identifier: Apache-2.0
"""Numbers and bytes in one zstd frame, as recipes and framings have them."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import pytest

from lamella.errors import FormatError
from lamella.formats.container import FramedReader, encode_varint, frame_compressor

WINDOW_LOG = 20


def framed(data: bytes) -> bytes:
    compressor = frame_compressor(1, WINDOW_LOG)
    return compressor.compress(data) + compressor.flush()


def reader(raw: bytes) -> FramedReader:
    return FramedReader(BytesIO(raw), "thing", WINDOW_LOG)


@pytest.mark.parametrize(
    ("number", "raw"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), ((1 << 63) - 1, b"\xff" * 8 + b"\x7f")]
)
def test_a_number_is_read_as_it_is_written(number: int, raw: bytes) -> None:
    assert encode_varint(number) == raw
    assert reader(framed(raw)).number("size") == number


def test_bytes_come_whole_or_as_many_as_there_are() -> None:
    source = reader(framed(b"x" * 1_000_000 + b"y" * 1_000_000))
    assert source.take(1_000_000) == b"x" * 1_000_000
    found = b""
    while len(found) < 1_000_000:
        found += source.some(1_000_000 - len(found))
    assert found == b"y" * 1_000_000
    source.expect_end()


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (lambda source: source.number("size"), "thing at offset 9: size: too large a number"),
        (lambda source: source.number("size", 5), "too large a number"),
        (lambda source: source.take(11), "thing at offset 0: truncated"),
        (lambda source: (source.some(10), source.some(1)), "thing at offset 10: truncated"),
        (lambda source: source.expect_end(), "trailing data"),
    ],
)
def test_what_is_not_there_is_refused(read: Callable[[FramedReader], object], problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        read(reader(framed(b"\xff" * 10)))


def test_a_number_above_its_limit_is_refused() -> None:
    with pytest.raises(FormatError, match="size: 6 is above the limit of 5"):
        reader(framed(b"\x06")).number("size", 5)


def read_to_the_end(raw: bytes) -> None:
    source = reader(raw)
    source.take(1000)
    source.expect_end()


def test_a_frame_that_is_cut_or_followed_by_anything_is_refused() -> None:
    whole = framed(bytes(1000))
    read_to_the_end(whole)
    for end in range(len(whole)):
        with pytest.raises(FormatError, match="truncated"):
            read_to_the_end(whole[:end])
    with pytest.raises(FormatError, match="trailing data"):
        read_to_the_end(whole + b"more")
