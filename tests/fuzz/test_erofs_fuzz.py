# SPDX-License-Identifier: Apache-2.0
"""A damaged EROFS image is read or refused with an expected error, in bounded time."""

from __future__ import annotations

import struct
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.changes.apply import apply
from lamella.changes.model import Change, Link, Opaque, Put, Whiteout
from lamella.errors import FormatError, Unsupported
from lamella.formats.erofs.structures import START, crc32c
from lamella.layers.erofs.sink import ErofsSink
from lamella.layers.erofs.tree import ErofsChanges, ErofsLayer
from lamella.testing.builders import device, directory, file, link, sparse, symlink

LONGEST = 2  # seconds; each input takes some milliseconds


@cache
def image() -> bytes:
    layer: list[Change] = [
        directory("d", xattrs={"user.a": b"1", "trusted.b": b"22"}),
        *(file(f"d/{'n' * 200}{number}", b"x" * number) for number in range(30)),
        device("dev", 1, 3),
        file("big", bytes(range(256)) * 40),
        sparse_file := file("holes", sparse(70_000, [(40_960, b"a" * 9000)])),
        link("hard", sparse_file.entry.path),
        symlink("link", "d/e"),
    ]
    with tempfile.TemporaryDirectory() as where:
        path = Path(where, "a.erofs")
        apply(layer, ErofsSink(ErofsLayer(path)))
        return path.read_bytes()


def summed(data: bytes) -> bytes:
    """The image with the checksum that its superblock should have."""
    changed = bytearray(data)
    if len(changed) >= 4096:
        struct.pack_into("<I", changed, START + 4, 0)
        struct.pack_into("<I", changed, START + 4, crc32c(bytes(changed[START:4096])))
    return bytes(changed)


def seeds() -> Iterator[bytes]:
    yield image()


def fuzz_erofs(data: bytes) -> None:
    """One input as the image of a layer, all of it read; with the checksum made right, so that the rest is reached."""
    start = time.process_time()
    read(summed(data))
    assert time.process_time() - start < LONGEST


def read(data: bytes) -> int | None:
    """How many changes there are and bytes in them; None where something is refused."""
    count = 0
    with tempfile.NamedTemporaryFile() as held:
        held.write(data)
        held.flush()
        try:
            with ErofsChanges(ErofsLayer(Path(held.name))) as changes:
                for change in changes:
                    assert isinstance(change, Put | Link | Whiteout | Opaque)
                    count += 1
                    if isinstance(change, Put) and change.content is not None:
                        for _, length in change.content.extents or ():
                            assert length
                        for chunk in change.content.chunks():
                            count += len(chunk)
                            assert count < 64 * len(data) + 1000
        except (FormatError, Unsupported):
            return None
    return count


def test_a_good_image_is_read() -> None:
    assert (read(image()) or 0) > 10_000
    fuzz_erofs(image())


@pytest.mark.parametrize("value", [0, 0xFF, None], ids=["zero", "all ones", "one more"])
def test_each_byte_of_what_is_not_content_changed(value: int | None) -> None:
    good = image()
    metadata = int.from_bytes(good[START + 40 : START + 44], "little") * 4096
    places = [*range(START, START + 128), *range(metadata + 32, metadata + 2500, 3 if value is None else 7)]
    refused = 0
    for at in places:
        changed = bytearray(good)
        changed[at] = (changed[at] + 1) % 256 if value is None else value
        if bytes(changed) != good:
            refused += read(summed(bytes(changed))) is None
    assert refused > 10


def test_an_image_cut_anywhere_is_refused() -> None:
    good = image()
    for length in range(0, len(good) - 4096, 512):
        assert read(good[:length]) is None


def test_a_checksum_that_is_wrong_is_told() -> None:
    changed = bytearray(image())
    changed[START + 16] ^= 1
    assert read(bytes(changed)) is None


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(image())
    metadata = int.from_bytes(data[START + 40 : START + 44], "little") * 4096
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.one_of(st.integers(START, START + 127), st.integers(metadata, len(data) - 1)))
        piece = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\1\0"])))
        data[at : at + len(piece)] = piece
    return bytes(data[: len(image())])


@settings(max_examples=200)
@given(damaged())
def test_images_that_are_damaged(data: bytes) -> None:
    fuzz_erofs(data)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_image(data: bytes) -> None:
    fuzz_erofs(data)
    fuzz_erofs(image()[:4096] + data)
