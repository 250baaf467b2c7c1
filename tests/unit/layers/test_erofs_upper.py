# SPDX-License-Identifier: Apache-2.0
"""Layers that become EROFS images as they come, where they are odd."""

from __future__ import annotations

from pathlib import Path

from lamella.changes.apply import apply
from lamella.layers.erofs.files import ErofsLayer
from lamella.layers.erofs.tree import ErofsImage
from lamella.layers.erofs.upper import ErofsUpperSink
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath
from lamella.testing.builders import directory, file

DEEP = 1500


def test_a_file_at_the_bottom_of_many_directories_is_taken_after_another_directory_gave_way(tmp_path: Path) -> None:
    deepest = "/".join(["d"] * DEEP)
    changes = [directory(deepest[: 2 * depth - 1]) for depth in range(1, DEEP + 1)]
    changes += [directory("x"), file("x"), file(f"{deepest}/f", b"bottom")]
    layer = ErofsLayer(tmp_path / "layer.erofs")
    apply(changes, ErofsUpperSink(layer, parents=LayerStack([])))
    with ErofsImage(layer) as image:
        assert b"".join(image.open(LayerPath(f"{deepest}/f")).chunks()) == b"bottom"
