# SPDX-License-Identifier: Apache-2.0
"""Go's deflate, repeated: what ``compress/gzip`` of Go 1.24.4 wrote of the same bytes at the same level."""

from __future__ import annotations

import hashlib
import random
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Final

import pytest
from tests.unit.streams.blobs import tar_like

from lamella.operations.layers.recipes import make_recipe, restore_blob
from lamella.streams.recompress.compressors import new_compressor

_NOISE: Final = random.Random(11).randbytes(70_000)
INPUTS: Final = {
    "like a tar": tar_like(300_000, 3),
    "zeros": bytes(140_000),
    "noise": _NOISE,
    "noise again": _NOISE[:30_000] * 5,
    "letters": bytes(random.Random(12).choices(b"etaoin", k=65_535 + 200)),
    "a little more than a block": tar_like(65_535 + 129, 4),
    "and a rest without matches": tar_like(65_535 + 100, 4),
    "and a rest that is stored": tar_like(65_535 + 16, 4),
    "two blocks": tar_like(2 * 65_535, 5),
    "short": b"a short text, a short text",
    "nothing": b"",
}
WRITTEN: Final = {
    ("like a tar", 1): "9f2acff4cd47d6ea",
    ("like a tar", 4): "f78abf5d3d816f65",
    ("like a tar", 6): "dfc90ffca3cc7c5b",
    ("like a tar", 9): "2de4601c16e38fdc",
    ("zeros", 1): "80bfda095cebc3e6",
    ("zeros", 4): "7e78d276863ccdce",
    ("zeros", 6): "7e78d276863ccdce",
    ("zeros", 9): "448020245ee3cf70",
    ("noise", 1): "c83e03a163851ce9",
    ("noise", 4): "0b82f6b7291dfe2e",
    ("noise", 6): "0b82f6b7291dfe2e",
    ("noise", 9): "5873686b5d89b8e5",
    ("noise again", 1): "d7da277fe3c76476",
    ("noise again", 4): "db0945ec96bc7a8e",
    ("noise again", 6): "db0945ec96bc7a8e",
    ("noise again", 9): "dbdb05c87e1ab979",
    ("letters", 1): "8988ae0e8e373757",
    ("letters", 4): "bff204afd13f602e",
    ("letters", 6): "8a2cfb95ff4dafe8",
    ("letters", 9): "0b902f1a59c6bfa0",
    ("a little more than a block", 1): "0b1eeb1e82a3024f",
    ("a little more than a block", 4): "777c8870fa062dcc",
    ("a little more than a block", 6): "65e02a4aec048456",
    ("a little more than a block", 9): "a5b8017154d2add1",
    ("and a rest without matches", 1): "2e46b733c5db674b",
    ("and a rest without matches", 4): "4b7b17ca54492251",
    ("and a rest without matches", 6): "a7925499473f11e8",
    ("and a rest without matches", 9): "f8bc57b2e74afec2",
    ("and a rest that is stored", 1): "0c526a757f3ba5d7",
    ("and a rest that is stored", 4): "a5578552cfaf580a",
    ("and a rest that is stored", 6): "ac3c7967eebb23d7",
    ("and a rest that is stored", 9): "0588d948f13868a9",
    ("two blocks", 1): "83811cd41bbcd78c",
    ("two blocks", 4): "743cc49c55980344",
    ("two blocks", 6): "a50b5281bb562080",
    ("two blocks", 9): "10315250e44a27c8",
    ("short", 1): "06a61fbb8d5f213f",
    ("short", 4): "6609741d11794e28",
    ("short", 6): "6609741d11794e28",
    ("short", 9): "b9a3de049a388504",
    ("nothing", 1): "81da0491c5af5635",
    ("nothing", 4): "30e6fa98fb48c2b1",
    ("nothing", 6): "30e6fa98fb48c2b1",
    ("nothing", 9): "10c2221846da8b42",
}
"""The start of the SHA-256 of the whole file."""


def gzip_of(data: bytes, level: int, step: int) -> bytes:
    compressor = new_compressor(f"go {level}", len(data))
    pieces = [compressor.compress(data[at : at + step]) for at in range(0, len(data), step)]
    head = bytes((0x1F, 0x8B, 8, 0, 0, 0, 0, 0, {1: 4, 9: 2}.get(level, 0), 0xFF))
    tail = struct.pack("<II", zlib.crc32(data), len(data))
    return b"".join((head, *pieces, compressor.flush(), tail))


@pytest.mark.parametrize(("name", "level"), WRITTEN)
def test_it_is_what_go_wrote(name: str, level: int) -> None:
    for step in (1 << 20, 50_000):
        blob = gzip_of(INPUTS[name], level, step)
        assert hashlib.sha256(blob).hexdigest()[:16] == WRITTEN[name, level]


@pytest.mark.parametrize("level", [1, 6])
def test_it_is_found_and_given_back(tmp_path: Path, level: int) -> None:
    tar, blob = tmp_path / "tar", tmp_path / "blob"
    (tmp_path / "file").write_bytes(INPUTS["like a tar"])
    with tarfile.open(tar, "w") as archive:
        archive.add(tmp_path / "file", "file")
    blob.write_bytes(gzip_of(tar.read_bytes(), level, 1 << 20))
    made = make_recipe(blob, tmp_path / "recipe")
    assert [member.by for member in made.head.members] == [f"go {level}"]
    restore_blob(tmp_path / "recipe", tar, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == blob.read_bytes()
