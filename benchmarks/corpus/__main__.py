# SPDX-License-Identifier: Apache-2.0
"""Builds the benchmarks' images: `python -m benchmarks.corpus [--where DIR] [NAME ...]`."""

from __future__ import annotations

import argparse
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from benchmarks.corpus import packages
from benchmarks.corpus.layouts import Layout, compress, layers_of, tar_tree
from benchmarks.corpus.recipes import RECIPES, Layer

COMPRESSIONS = ("gzip", "zstd")


def default_place() -> Path:
    """Return where the corpora live: LAMELLA_CORPUS, or a folder of the user's cache."""
    given = os.environ.get("LAMELLA_CORPUS")
    return Path(given) if given else Path.home() / ".cache/lamella/corpus"


def ensure(name: str, where: Path) -> Path:
    """Return the layout of a corpus, built if it isn't there; a build that is interrupted leaves none."""
    layout = where / name
    if not (layout / "ready").exists():
        shutil.rmtree(layout, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=where) as scratch:
            _build(RECIPES[name], where / "downloads", Path(scratch), layout)
        (layout / "ready").touch()
    return layout


def _build(recipe: tuple[Layer, ...], downloads: Path, scratch: Path, layout: Path) -> None:
    plain = Layout(scratch / "plain")
    descriptors = []
    for number, layer in enumerate(recipe):
        tree = scratch / f"tree{number}"
        tree.mkdir(mode=0o755)
        packages.debian(layer.debian, downloads / "debian", tree)
        packages.wheels(layer.wheels, downloads / "wheels", tree)
        packages.npm(layer.npm, downloads / "npm", tree)
        if layer.least:
            packages.leave_out_below(tree, layer.least)
        tar = scratch / "layer.tar"
        tar_tree(tree, layer.removes, tar)
        shutil.rmtree(tree)
        descriptors.append(plain.add_blob("application/vnd.oci.image.layer.v1.tar", tar))
    plain.write_image(descriptors, [descriptor["digest"] for descriptor in descriptors], "plain")
    for how in COMPRESSIONS:
        compress(scratch / "plain", layout, how)


def describe(layout: Path) -> str:
    """Return one line a layer: its entries and its sizes."""
    lines = []
    for number, blob in enumerate(layers_of(layout, "gzip")):
        with tarfile.open(blob, "r:gz") as tar:
            sizes = [member.size for member in tar]
        lines.append(
            f"{layout.name:12} layer {number}  {len(sizes):7,} entries  "
            f"{sum(sizes) / 1e6:8,.0f} MB  {blob.stat().st_size / 1e6:8,.0f} MB as gzip"
        )
    return "\n".join(lines)


def main() -> None:
    """Build the corpora that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corpus", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--where", type=Path, default=default_place(), help="a folder outside the repository")
    parser.add_argument("--describe", action="store_true", help="count the entries of each layer")
    options = parser.parse_args()
    options.where.mkdir(parents=True, exist_ok=True)
    for name in options.names or RECIPES:
        if name not in RECIPES:
            parser.error(f"no corpus is named {name}")
        layout = ensure(name, options.where.resolve())
        print(describe(layout) if options.describe else layout)


if __name__ == "__main__":
    main()
