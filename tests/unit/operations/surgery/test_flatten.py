# SPDX-License-Identifier: Apache-2.0
"""Merging some layers changes nothing for whoever unpacks the image, and the history still accounts for the rest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lamella
from lamella.changes.model import Change, Put
from lamella.changes.tree import walk
from lamella.errors import InvalidInput
from lamella.images.resolve import open_platform_image
from lamella.operations.layers.write import LayerOptions, write_layer
from lamella.operations.surgery.flatten import parse_layers
from lamella.operations.trees.open import open_tree
from lamella.testing.builders import directory, file, link, opaque, symlink, whiteout
from lamella.testing.reading import text
from lamella.testing.strategies import stacks

MakeImage = Callable[..., str]
View = Callable[[str], list[str]]

LAYERS: list[list[Change]] = [
    [directory("usr"), directory("usr/lib"), file("usr/lib/a", b"base"), file("same", b"1"), symlink("lib", "usr/lib")],
    [file("lib/b", b"through a link"), file("tmp", b"x"), whiteout("usr/lib/a")],
    [directory("etc"), file("etc/x", b"x"), whiteout("tmp"), file("same", b"2")],
    [opaque("etc"), file("etc/y", b"y"), link("z", "etc/y"), file("same", b"1")],
    [directory("top", mode=0o700)],
]


@pytest.mark.parametrize("chosen", ["0..4", "1..3", "2..", "..1", "3", "1..2"])
def test_a_range_becomes_one_layer_and_the_view_stays(make_image: MakeImage, view: View, chosen: str) -> None:
    name = make_image(*LAYERS)
    before = view(name)
    with open_platform_image(name) as image:
        layers = image.layers
    merged = lamella.flatten(name, name, layers=chosen)
    numbers = parse_layers(chosen, 5)
    with open_platform_image(name) as image:
        kept = [layer.diff_id for layer in layers if layers.index(layer) not in numbers]
        assert [layer.diff_id for layer in image.layers if layer.diff_id in kept] == kept
        assert image.layers[numbers.start].diff_id == merged.written.facts.diff_id
        assert len(image.layers) == 5 - len(numbers) + 1
        assert sum(not step.empty_layer for step in image.config.history) == len(image.layers)
    assert view(name) == before


def test_a_merged_layer_has_nothing_that_is_gone_again(make_image: MakeImage, tmp_path: Path) -> None:
    name = make_image(*LAYERS)
    lamella.flatten(name, f"oci:{tmp_path}/out:x", layers=range(1, 4))
    with lamella.open_image(f"oci:{tmp_path}/out:x") as image, image.layers[1].open() as blob:
        (tmp_path / "layer").write_bytes(blob.read())
    with open_tree(f"blob:{tmp_path}/layer") as tree:
        names = [change.entry.path for change in walk(tree) if isinstance(change, Put)]
    assert names == ["", "etc", "etc/y", "usr", "usr/lib", "usr/lib/b"]  # "same" is again what it was below


def test_steps_without_a_layer_keep_their_places(
    make_image: MakeImage, rewrite: Callable[[str, Callable[[Any, Any], None]], None]
) -> None:
    def with_steps(manifest: Any, config: Any) -> None:
        env = {"created_by": "ENV", "empty_layer": True}
        first, second, third, *rest = config["history"]
        config["history"] = [first, env, second, {**env, "created_by": "CMD"}, third, *rest, env]

    name = make_image(*LAYERS)
    rewrite(name, with_steps)
    lamella.flatten(name, name, layers=range(1, 3))
    with open_platform_image(name) as image:
        assert [(step.created_by, step.empty_layer) for step in image.config.history] == [
            ("step 0", False),
            ("ENV", True),
            ("CMD", True),
            ("lamella flatten", False),
            ("step 3", False),
            ("step 4", False),
            ("ENV", True),
        ]
        assert image.config.history[3].comment == "2 layers merged"


@pytest.mark.parametrize("chosen", ["5", "3..1", "1..5", "a", "..", "-1", range(2), range(0, 4, 2), range(3, 9)])
def test_missing_layers_are_refused(make_image: MakeImage, chosen: str | range) -> None:
    name = make_image(*LAYERS)
    with open_platform_image(name) as image:
        before = image.descriptor.digest
    if chosen in ("..", range(2)):
        lamella.flatten(name, name, layers=chosen)
        return
    with pytest.raises(InvalidInput):
        lamella.flatten(name, name, layers=chosen)
    with open_platform_image(name) as image:
        assert image.descriptor.digest == before


def test_a_range_is_written_with_both_ends() -> None:
    assert [parse_layers(chosen, 6) for chosen in ("2..4", "2..", "..4", "..", "3")] == [
        range(2, 5),
        range(2, 6),
        range(5),
        range(6),
        range(3, 4),
    ]


@settings(max_examples=30)
@given(stacks(symlinks=True), st.data())
def test_any_layers_can_be_merged(stack: list[list[Change]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        blobs = []
        for number, layer in enumerate(stack):
            blobs.append(Path(directory, str(number)))
            with open(blobs[-1], "wb") as output:
                write_layer(layer, output, LayerOptions(subsecond=True))
        image = lamella.Image.scratch("linux/amd64").append(*blobs)
        first = data.draw(st.integers(0, len(stack) - 1))
        last = data.draw(st.integers(first, len(stack) - 1))
        image.write(f"oci:{directory}/image:whole")
        image.flatten(range(first, last + 1)).write(f"oci:{directory}/image:merged")
        with open_tree(f"oci:{directory}/image:whole") as whole, open_tree(f"oci:{directory}/image:merged") as merged:
            assert list(text(whole)) == list(text(merged))
