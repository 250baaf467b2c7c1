# SPDX-License-Identifier: Apache-2.0
"""Which compressors' blobs are given back to the byte, and which are said not to be: the table of the document."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.containerd import Containerd
from tests.unit.streams.blobs import tar_like

from lamella.errors import Unsupported
from lamella.formats.tar import TarWriter
from lamella.operations.layers.recipes import make_recipe, restore_blob

pytestmark = pytest.mark.interop

Needs = Callable[..., str]


def layer(where: Path, size: int = 700_000) -> Path:
    path = where / "layer.tar"
    with path.open("wb") as file:
        writer = TarWriter(file.write)
        for at, count in enumerate((size, 0, 7_001)):
            data = tar_like(count, at)
            writer.member(f"file{at}", "0", size=count, mode=0o644, uid=0, gid=0, mtime=0)
            writer.data(data)
        writer.close()
    return path


def given_back(blob: Path, place: Path) -> str:
    """The compressor that was found, once the blob has come back from ``place``."""
    recipe, again = blob.with_name("recipe"), blob.with_name("again")
    made = make_recipe(blob, recipe)
    assert made.size < 5_000
    restore_blob(recipe, place, again)
    assert blob.read_bytes() == again.read_bytes()
    return made.head.members[0].by


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (("pigz", "-p", "4", "-c"), "pigz 6"),
        (("pigz", "-p", "4", "-9", "-c"), "pigz 9"),
        (("zstd", "-q", "-c"), "zstd 3"),
    ],
    ids=["pigz", "pigz-9", "zstd"],
)
def test_a_tool_that_can_be_repeated(needs: Needs, tmp_path: Path, command: tuple[str, ...], found: str) -> None:
    needs(command[0])
    tar = layer(tmp_path)
    blob = tmp_path / "blob"
    blob.write_bytes(subprocess.run([*command, tar], capture_output=True, check=True).stdout)
    assert found in given_back(blob, tar)


@pytest.mark.parametrize("level", [1, 6, 9])
def test_pythons_gzip_can_be_repeated(tmp_path: Path, level: int) -> None:
    tar = layer(tmp_path)
    blob = tmp_path / "blob"
    blob.write_bytes(gzip.compress(tar.read_bytes(), level))
    assert f"zlib {level}" == given_back(blob, tar)


@pytest.mark.root
def test_containerds_blob_comes_back_from_the_directory(needs: Needs, tmp_path: Path) -> None:
    needs("containerd", "ctr")
    where = Path(tempfile.mkdtemp(prefix="lamella-"))
    tree = tmp_path / "tree"
    tree.mkdir()
    for at in range(4):
        (tree / f"file{at}").write_bytes(tar_like(150_000, at))

    def fill(place: Path) -> None:
        shutil.copytree(tree, place, dirs_exist_ok=True)

    try:
        with Containerd(where / "containerd") as running, (tmp_path / "blob").open("wb") as file:
            running.commit_tree("t", fill)
            media_type = "application/vnd.oci.image.layer.v1.tar+gzip"
            ctr = ("ctr", "--address", str(where / "containerd/socket"), "--namespace", "bench")
            subprocess.run(
                [*ctr, "snapshots", "--snapshotter", "native", "diff", "--media-type", media_type, "t"],
                stdout=file,
                check=True,
            )
    finally:
        shutil.rmtree(where)
    assert given_back(tmp_path / "blob", tree) == "go 6"


def test_gnu_gzip_is_said_to_be_out_of_reach(needs: Needs, tmp_path: Path) -> None:
    needs("gzip")
    blob = tmp_path / "blob"
    blob.write_bytes(subprocess.run(["gzip", "-c", layer(tmp_path)], capture_output=True, check=True).stdout)
    with pytest.raises(Unsupported, match="unknown compressor"):
        make_recipe(blob, tmp_path / "recipe")


def test_skopeo_is_said_to_be_out_of_reach(needs: Needs, tmp_path: Path) -> None:
    needs("skopeo", "umoci")
    layout = tmp_path / "layout"
    run = subprocess.run
    run(["umoci", "init", "--layout", layout], check=True, capture_output=True)
    run(["umoci", "new", "--image", f"{layout}:a"], check=True, capture_output=True)
    run(["umoci", "raw", "add-layer", "--image", f"{layout}:a", layer(tmp_path)], check=True, capture_output=True)
    plain, packed = tmp_path / "plain.tar", tmp_path / "packed"
    copy = ["skopeo", "--insecure-policy", "copy"]
    run([*copy, f"oci:{layout}:a", f"docker-archive:{plain}:x:y"], check=True, capture_output=True)
    run([*copy, f"docker-archive:{plain}", f"oci:{packed}:a"], check=True, capture_output=True)
    for place in (layout, packed):
        blob = max((place / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
        with pytest.raises(Unsupported, match="unknown compressor"):
            make_recipe(blob, tmp_path / "recipe")
