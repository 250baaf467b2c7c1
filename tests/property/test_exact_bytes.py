# SPDX-License-Identifier: Apache-2.0
"""A recipe restores every readable tar byte for byte."""

from __future__ import annotations

import gzip
import io
import random
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.test_tar_fuzz import archives, seeds
from tests.property.test_tar_round_trip import archive, members

from lamella.errors import DigestMismatch, FormatError, Integrity, LamellaError, SizeMismatch, Unsupported
from lamella.formats.recipe import FileSegment, RecipeReader
from lamella.operations.layers.apply import apply_blob
from lamella.operations.layers.recipes import make_recipe, restore_blob
from lamella.streams.recompress.compressors import new_compressor


def restore(tar: bytes) -> bytes:
    """Restore ``tar`` by its recipe from its own files, each read at the path that the recipe names."""
    out = io.BytesIO()
    make_recipe(io.BytesIO(tar), out)
    out.seek(0)
    whole = bytearray()
    for segment in RecipeReader(out).segments():
        if isinstance(segment, FileSegment):
            piece = tar[len(whole) : len(whole) + segment.size]
            assert zlib.crc32(piece) == segment.crc32
            whole += piece
        else:
            whole += segment
    return bytes(whole)


quick = settings(max_examples=60)


@quick
@given(st.lists(members(), max_size=5), st.binary(max_size=700))
def test_tars_of_the_writer_with_trailing_junk(written: list[dict[str, Any]], junk: bytes) -> None:
    tar = archive(written) + junk
    assert restore(tar) == tar


@quick
@given(archives())
def test_slightly_malformed_archives(tar: bytes) -> None:
    try:
        found = restore(tar)
    except LamellaError:
        return  # an unreadable tar has no recipe
    assert tar == found


@pytest.mark.parametrize("tar", list(seeds()))
def test_every_tar_dialect(tar: bytes) -> None:
    assert restore(tar) == tar


def tree_tar() -> bytes:
    rng = random.Random(3)
    names = ["d/", "d/a", "d/b", "twice", "twice", "file", "file/below", "sparse", ".wh.gone"]
    made: list[dict[str, Any]] = []
    for at, name in enumerate(names):
        folder = name.endswith("/")
        data = b"" if folder or name == ".wh.gone" else rng.randbytes(700 + at)
        made.append(
            {
                "name": name,
                "typeflag": "5" if folder else "0",
                "mode": 0o755,
                "uid": 0,
                "gid": 0,
                "mtime": 0,
                "data": data,
                "size": len(data),
            }
        )
    return archive(made)


def gzipped(tar: bytes) -> bytes:
    return gzip.compress(tar, 6, mtime=7)


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    (tmp_path / "blob").write_bytes(gzipped(tree_tar()))
    (tmp_path / "tree").mkdir()
    apply_blob(tmp_path / "blob", tmp_path / "tree")
    make_recipe(tmp_path / "blob", tmp_path / "recipe")
    return tmp_path


def test_a_directory_restores_the_blob(unpacked: Path) -> None:
    restore_blob(unpacked / "recipe", unpacked / "tree", unpacked / "again")
    assert (unpacked / "blob").read_bytes() == (unpacked / "again").read_bytes()


def test_a_differently_compressed_tar_restores_the_blob(unpacked: Path) -> None:
    (unpacked / "plain").write_bytes(tree_tar())
    restore_blob(unpacked / "recipe", unpacked / "plain", unpacked / "again")
    assert (unpacked / "blob").read_bytes() == (unpacked / "again").read_bytes()


def test_entries_that_the_layer_replaces_are_in_the_recipe(unpacked: Path) -> None:
    with (unpacked / "recipe").open("rb") as file:
        files = [one.path for one in RecipeReader(file).segments() if isinstance(one, FileSegment)]
    assert files == ["d/a", "d/b", "file/below", "sparse"]


def test_the_first_differing_file_is_named_and_no_output_is_left(unpacked: Path) -> None:
    changed = bytearray((unpacked / "tree/d/b").read_bytes())
    changed[5] ^= 1
    (unpacked / "tree/d/b").write_bytes(changed)
    with pytest.raises(Integrity, match="d/b"):
        restore_blob(unpacked / "recipe", unpacked / "tree", unpacked / "again")
    (unpacked / "tree/d/b").write_bytes(b"short")
    with pytest.raises(SizeMismatch, match="d/b"):
        restore_blob(unpacked / "recipe", unpacked / "tree", unpacked / "again")
    assert not (unpacked / "again").exists()


def test_a_link_cannot_escape_the_directory(unpacked: Path) -> None:
    (unpacked / "tree/d").rename(unpacked / "outside")
    (unpacked / "tree/d").symlink_to(unpacked / "outside")
    with pytest.raises(LamellaError):
        restore_blob(unpacked / "recipe", unpacked / "tree", unpacked / "again")
    (unpacked / "tree/d").unlink()
    (unpacked / "outside").rename(unpacked / "tree/elsewhere")
    (unpacked / "tree/d").symlink_to("/elsewhere")
    restore_blob(unpacked / "recipe", unpacked / "tree", unpacked / "again")
    assert (unpacked / "blob").read_bytes() == (unpacked / "again").read_bytes()


def test_another_tar_is_refused(unpacked: Path) -> None:
    (unpacked / "plain").write_bytes(tree_tar().replace(b"twice", b"again"))
    with pytest.raises((FormatError, DigestMismatch)):
        restore_blob(unpacked / "recipe", unpacked / "plain", unpacked / "out")


def test_a_truncated_or_modified_recipe_is_refused(unpacked: Path) -> None:
    whole = (unpacked / "recipe").read_bytes()
    for damaged in (whole[:4], whole[:-3], whole + b"x", whole[:40] + bytes([whole[40] ^ 4]) + whole[41:]):
        (unpacked / "recipe").write_bytes(damaged)
        with pytest.raises(LamellaError):
            restore_blob(unpacked / "recipe", unpacked / "tree", unpacked / "again")


def test_each_gzip_member_has_its_own_compressor(tmp_path: Path) -> None:
    tar = tree_tar()
    blob = gzipped(tar[:1000]) + gzipped(b"") + gzipped(tar[1000:])
    (tmp_path / "blob").write_bytes(blob)
    (tmp_path / "plain").write_bytes(tar)
    make_recipe(tmp_path / "blob", tmp_path / "recipe")
    restore_blob(tmp_path / "recipe", tmp_path / "plain", tmp_path / "again")
    assert blob == (tmp_path / "again").read_bytes()


LEVELS = (1, *range(4, 10))


@settings(max_examples=30)
@given(
    st.lists(st.binary(max_size=60), max_size=12), st.integers(0, 3000), st.sampled_from(LEVELS), st.integers(1, 50_000)
)
def test_zlib_reads_the_output_of_gos_deflate_whole_and_in_pieces(
    parts: list[bytes], times: int, level: int, step: int
) -> None:
    data = b"".join(parts * times)[:150_000]
    whole = new_compressor(f"go {level}", len(data))
    out = bytes(whole.compress(data)) + whole.flush()
    assert zlib.decompress(out, -15) == data
    pieces = new_compressor(f"go {level}", len(data))
    parts = [bytes(pieces.compress(data[at : at + step])) for at in range(0, len(data), step)]
    assert out == b"".join((*parts, pieces.flush()))


def test_an_unknown_compressor_is_reported() -> None:
    for name in ("zlib", "zlib 10", "go 2", "zstd 3 fast", "x 1", "pigz 6 6", ""):
        with pytest.raises(Unsupported):
            new_compressor(name, 0)
