# SPDX-License-Identifier: Apache-2.0
"""Holes of files in layers that pack, diff and append write."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.unit.cli.conftest import Run

SIZE = 9 << 20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with a file with holes, one that is a hole, one that ends in data, and a plain one."""
    root = tmp_path / "tree"
    long = root / ("d" * 200)
    long.mkdir(parents=True)
    for path, pieces in {
        root / "holes": [(1 << 20, b"abc"), (5 << 20, b"d" * 4096)],
        root / "nothing": [],
        root / "end": [(SIZE - 4096, b"e" * 4096)],
        long / "begin": [(0, b"f" * 4096)],
    }.items():
        with path.open("wb") as out:
            for offset, data in pieces:
                out.seek(offset)
                out.write(data)
            out.truncate(SIZE)
    (root / "plain").write_bytes(b"plain" * 2000)
    os.link(root / "holes", root / "further")
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_holes_are_zeros_unless_they_are_asked_for(lamella: Run, tree: Path, tmp_path: Path) -> None:
    assert lamella("diff", tree, "-o", tmp_path / "dense.tar", "--compress", "none").returncode == 0
    assert (tmp_path / "dense.tar").stat().st_size > 4 * SIZE


def test_holes_that_are_kept_take_no_room_and_come_back(lamella: Run, tree: Path, tmp_path: Path) -> None:
    blob = tmp_path / "sparse.tar"
    assert lamella("diff", tree, "-o", blob, "--compress", "none", "--sparse").returncode == 0
    assert blob.stat().st_size < 100_000

    assert lamella("apply", blob, tmp_path / "out").returncode == 0
    assert contents(tmp_path / "out") == contents(tree)
    assert (tmp_path / "out/holes").stat().st_blocks == (tree / "holes").stat().st_blocks
    assert (
        lamella("diff", tmp_path / "out", "-o", tmp_path / "again.tar", "--compress", "none", "--sparse").returncode
        == 0
    )
    assert (tmp_path / "again.tar").read_bytes() == blob.read_bytes()


def test_other_readers_understand_kept_holes(lamella: Run, tree: Path, tmp_path: Path) -> None:
    blob = tmp_path / "sparse.tar"
    assert lamella("diff", tree, "-o", blob, "--compress", "none", "--sparse").returncode == 0

    (tmp_path / "gnu").mkdir()
    done = subprocess.run(["tar", "-xf", blob, "-C", tmp_path / "gnu"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(tmp_path / "gnu") == contents(tree)
    with tarfile.open(blob) as archive:
        sizes = {Path(member.name).name: member.size for member in archive if member.isreg() and member.issparse()}
    assert sizes == {"further": SIZE, "nothing": SIZE, "end": SIZE, "begin": SIZE}


def test_files_without_holes_have_the_same_bytes(lamella: Run, tree: Path, tmp_path: Path) -> None:
    for path in (tree / "holes", tree / "further", tree / "nothing", tree / "end"):
        path.unlink()
    (tree / ("d" * 200) / "begin").unlink()
    for name, options in (("dense", []), ("sparse", ["--sparse"])):
        assert lamella("diff", tree, "-o", tmp_path / name, "--compress", "none", *options).returncode == 0
    assert (tmp_path / "dense").read_bytes() == (tmp_path / "sparse").read_bytes()


def test_an_image_is_packed_with_its_holes(lamella: Run, tree: Path, tmp_path: Path) -> None:
    image = f"oci:{tmp_path}/layout:1"
    assert lamella("pack", tree, image, "--sparse", "--compress", "none").returncode == 0
    assert sum(blob.stat().st_size for blob in (tmp_path / "layout/blobs/sha256").iterdir()) < 100_000
    assert lamella("verify", image).returncode == 0
    assert lamella("unpack", image, tmp_path / "out").returncode == 0
    assert contents(tmp_path / "out") == contents(tree)
