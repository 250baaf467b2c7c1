# SPDX-License-Identifier: Apache-2.0
"""What a store unpacks and exports, looked at by tools of other projects."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.interop.test_peers_unpack import layers_of_everything

from lamella.changes.dump import dump
from lamella.changes.tree import walk
from lamella.layers.directory.tree import DirectoryTree
from lamella.operations.store.transfer import ImportOptions, export_image, import_image
from lamella.store.store import Store
from lamella.testing.images import SmallImage, image_of_tars, tagged, write_layout

pytestmark = pytest.mark.interop

Needs = Callable[..., str]


def an_image(place: Path) -> tuple[str, SmallImage]:
    image = image_of_tars(layers_of_everything())
    return write_layout(str(place), [tagged(image.descriptor, "one")], image.blobs), image


@pytest.mark.root
@pytest.mark.parametrize("snapshotter", ["overlayfs", "native", "erofs"])
def test_umoci_unpacks_the_same_tree(snapshotter: str, needs: Needs, tmp_path: Path) -> None:
    needs("umoci")
    layout, _ = an_image(tmp_path / "layout")
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:one", tmp_path / "bundle"], check=True)
    with DirectoryTree(tmp_path / "bundle" / "rootfs") as theirs:
        expected = list(dump(walk(theirs), inline=16, extents=False))
    with Store.open(tmp_path / "store") as store:
        space = store.namespace("default")
        (image,) = import_image(
            space, f"oci:{layout}:one", ImportOptions(name="one", unpack=True, snapshotter=snapshotter)
        ).images
        assert image.unpacked is not None
        snapshots = space.snapshots(snapshotter)
        with snapshots.tree(image.unpacked.snapshot) as ours:
            found = list(dump(walk(ours), inline=16, extents=False))
        for layer in reversed(image.unpacked.layers):
            snapshots.remove(layer.chain_id)
    assert expected == found


def test_skopeo_reads_what_a_store_exports(needs: Needs, tmp_path: Path) -> None:
    needs("skopeo")
    layout, image = an_image(tmp_path / "layout")
    with Store.open(tmp_path / "store") as store:
        space = store.namespace("default")
        import_image(space, f"oci:{layout}:one", ImportOptions(name="example.org/one:1"))
        for form in ("oci", "oci-archive", "docker-archive"):
            export_image(space, "example.org/one:1", f"{form}:{tmp_path}/{form}")
    for form in ("oci", "oci-archive", "docker-archive"):
        done = subprocess.run(
            ["skopeo", "inspect", f"{form}:{tmp_path}/{form}"], check=True, capture_output=True, text=True
        )
        if form != "docker-archive":
            assert image.descriptor["digest"] == json.loads(done.stdout)["Digest"]
        raw = subprocess.run(
            ["skopeo", "inspect", "--config", f"{form}:{tmp_path}/{form}"], check=True, capture_output=True, text=True
        )
        assert image.config["rootfs"]["diff_ids"] == json.loads(raw.stdout)["rootfs"]["diff_ids"]
