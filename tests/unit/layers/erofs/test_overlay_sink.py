# SPDX-License-Identifier: Apache-2.0
"""Layers that become EROFS images as they come, where they are odd."""

from __future__ import annotations

import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.changes.apply import apply
from lamella.changes.contracts import Tree
from lamella.changes.model import Put
from lamella.formats.erofs.writer import NewInode
from lamella.layers.erofs.from_directory import write_image
from lamella.layers.erofs.image_writer import NewImage
from lamella.layers.erofs.overlay_sink import ErofsUpperSink
from lamella.layers.erofs.tree import ErofsChanges, ErofsImage, ErofsLayer, ErofsStack, ErofsTree
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath
from lamella.testing.builders import directory, file, whiteout
from lamella.testing.reading import outline

DEEP = 1500


def test_a_file_at_the_bottom_of_many_directories_is_taken_after_another_directory_gave_way(tmp_path: Path) -> None:
    deepest = "/".join(["d"] * DEEP)
    changes = [directory(deepest[: 2 * depth - 1]) for depth in range(1, DEEP + 1)]
    changes += [directory("x"), file("x"), file(f"{deepest}/f", b"bottom")]
    layer = ErofsLayer(tmp_path / "layer.erofs")
    apply(changes, ErofsUpperSink(layer, parents=LayerStack([])))
    with ErofsImage(layer) as image:
        assert b"".join(image.open(LayerPath(f"{deepest}/f")).chunks()) == b"bottom"


@pytest.fixture
def with_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LayerStack[ErofsLayer]:
    """A base layer, and above it one that a container left a socket in, where the base layer has a file."""
    base, upper = ErofsLayer(tmp_path / "base.erofs"), ErofsLayer(tmp_path / "upper.erofs")
    apply([file("s", b"below"), file("f")], ErofsUpperSink(base, parents=LayerStack([])))
    (tmp_path / "upper").mkdir()
    monkeypatch.chdir(tmp_path / "upper")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("s")
    write_image(tmp_path / "upper", upper.path)
    return LayerStack([base, upper])


@pytest.mark.parametrize("opened", [ErofsStack, ErofsTree])
def test_a_socket_hides_what_is_below(
    with_socket: LayerStack[ErofsLayer], opened: Callable[[LayerStack[ErofsLayer]], ErofsStack | ErofsTree]
) -> None:
    with opened(with_socket) as shown:
        tree: Tree = shown
        assert tree.lookup(LayerPath("s")) is None
        assert outline(tree) == {"f": "file"}
        if isinstance(shown, ErofsStack):
            assert shown.seen(LayerPath("s")) is None


def test_a_socket_is_stated_as_a_whiteout_and_not_there_in_its_own_image(with_socket: LayerStack[ErofsLayer]) -> None:
    upper = with_socket.nearest_first()[0]
    with ErofsChanges(upper) as changes:
        assert [whiteout("s")] == [change for change in changes if not isinstance(change, Put)]
    with ErofsImage(upper) as image:
        assert image.lookup(LayerPath("s")) is None
        assert image.entries(LayerPath("")) == []


def test_a_whiteout_is_one_whatever_else_is_noted_on_it(tmp_path: Path) -> None:
    base, upper = ErofsLayer(tmp_path / "base.erofs"), ErofsLayer(tmp_path / "upper.erofs")
    apply([file("gone", b"below"), file("kept")], ErofsUpperSink(base, parents=LayerStack([])))
    root = NewInode(stat.S_IFDIR | 0o755)
    root.children[b"gone"] = NewInode(stat.S_IFCHR, xattrs={"trusted.overlay.redirect": b"elsewhere"})
    NewImage(upper.path).finish(root)
    with ErofsChanges(upper) as changes:
        assert [whiteout("gone")] == [change for change in changes if not isinstance(change, Put)]
    with ErofsStack(LayerStack([base, upper])) as shown:
        assert outline(shown) == {"kept": "file"}
