# SPDX-License-Identifier: Apache-2.0
"""lamella recipe, and the options by which other verbs record one."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.unit.cli.conftest import Run

from lamella.cli.console import Console
from lamella.cli.main import cli


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], obj=Console())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    place = tmp_path / "tree"
    (place / "d").mkdir(parents=True)
    for name in ("a", "d/b", "d/c"):
        (place / name).write_bytes(name.encode() * 3000)
    return place


def layer_of(layout: Path) -> Path:
    manifest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"].partition(":")[2]
    layer: str = json.loads((layout / "blobs/sha256" / manifest).read_text())["layers"][0]["digest"].partition(":")[2]
    return layout / "blobs/sha256" / layer


def test_diff_records_a_recipe_that_the_tree_answers(tree: Path, tmp_path: Path) -> None:
    blob, recipe, again = tmp_path / "blob", tmp_path / "recipe", tmp_path / "again"
    assert run("diff", tree, "-o", blob, "--recipe", recipe).exit_code == 0
    assert run("recipe", "restore", recipe, tree, "-o", again).exit_code == 0
    assert blob.read_bytes() == again.read_bytes()


def test_diff_wants_a_name_for_the_blob(tree: Path, tmp_path: Path) -> None:
    assert run("diff", tree, "--recipe", tmp_path / "recipe").exit_code == 2
    assert run("diff", tree, "-o", "-", "--recipe", tmp_path / "recipe").exit_code == 2


def test_a_packed_and_converted_layer_comes_back(tree: Path, tmp_path: Path) -> None:
    recipe, again, old, new = (tmp_path / name for name in ("recipe", "again", "old", "new"))
    assert run("pack", tree, f"oci:{old}:a", "--recipe", recipe).exit_code == 0
    assert run("recipe", "restore", recipe, tree, "-o", again).exit_code == 0
    assert layer_of(old).read_bytes() == again.read_bytes()
    done = run("convert", f"oci:{old}:a", f"oci:{new}:a", "--compress", "zstd", "--recipes", tmp_path / "recipes")
    assert done.exit_code == 0
    (made,) = (tmp_path / "recipes").iterdir()
    assert made.name == f"sha256-{layer_of(old).name}.recipe"
    assert run("recipe", "restore", made, layer_of(new), "-o", again).exit_code == 0
    assert layer_of(old).read_bytes() == again.read_bytes()


def test_show_prints_the_compressor_that_make_found(tree: Path, tmp_path: Path) -> None:
    blob, recipe = tmp_path / "blob", tmp_path / "recipe"
    assert run("diff", tree, "-o", blob).exit_code == 0
    made = run("recipe", "make", blob, "-o", recipe, "--json")
    shown = run("recipe", "show", recipe, "--json")
    assert made.exit_code == shown.exit_code == 0
    document = json.loads(shown.stdout)
    assert json.loads(made.stdout) == document
    assert (3, blob.stat().st_size, recipe.stat().st_size) == (
        document["files"],
        document["size"],
        document["recipe_size"],
    )


def test_an_unreproducible_blob_has_exit_code_7(lamella: Run, tmp_path: Path) -> None:
    stream = zlib.compressobj(6, zlib.DEFLATED, 31, 8, zlib.Z_HUFFMAN_ONLY)
    (tmp_path / "blob").write_bytes(stream.compress(bytes(10_240)) + stream.flush())
    done = lamella("recipe", "make", tmp_path / "blob", "-o", tmp_path / "recipe")
    assert done.returncode == 7
    assert "unknown compressor" in done.stderr
    assert not (tmp_path / "recipe").exists()
