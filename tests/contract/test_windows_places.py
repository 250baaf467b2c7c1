# SPDX-License-Identifier: Apache-2.0
"""Contracts of Windows layer directories."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lamella.changes.apply import apply
from lamella.changes.contracts import Tree
from lamella.changes.dump import dump
from lamella.changes.losses import Losses
from lamella.changes.model import Change, Entry, Inline, Kind, Link, Put, Stream, Whiteout, Windows
from lamella.changes.tree import fold
from lamella.layers.stack import LayerStack
from lamella.layers.windows.folder.reader import FolderChanges
from lamella.layers.windows.layout import WindowsLayer
from lamella.layers.windows.sink import WindowsSink
from lamella.layers.windows.tree import WindowsTree
from lamella.paths import LayerPath
from lamella.testing import limits_suite, source_suite
from lamella.testing.builders import sparse


def put(path: str, kind: Kind, data: bytes = b"") -> Put:
    attributes = 0x10 if kind is Kind.DIRECTORY else 0x20
    facet = Windows(attributes, 1, 2, 3, 4, b"\1\0\4\x80" + bytes(16), {"A": b"\0\xff"})
    content = Inline(data) if kind is Kind.FILE else None
    return Put(Entry(LayerPath(path), kind, None, len(data), "", facet), content)


HOLES = sparse(2 << 20, [(1 << 20, b"x" * 4096)])
LAYER: tuple[Change, ...] = (
    put("Files", Kind.DIRECTORY),
    put("Files/a", Kind.FILE, b"text"),
    Stream(LayerPath("Files/a"), "zone", Inline(b"stream")),
    Link(LayerPath("Files/b"), LayerPath("Files/a")),
    put("Files/c", Kind.FILE, bytes(range(256)) * 5000),
    put("Files/é", Kind.FILE),
    Put(Entry(LayerPath("Files/s"), Kind.FILE, None, HOLES.size, "", Windows(0x220, 1, 2, 3, 4)), HOLES),
    put("Hives", Kind.DIRECTORY),
    put("Hives/x", Kind.FILE, b"hive"),
    put("Files/z", Kind.FILE, b"last"),
)


class TestBaseLayer(source_suite.SourceTests):
    layer = LAYER

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> FolderChanges:
        layer = WindowsLayer(tmp_path / "base")
        apply(changes, WindowsSink(layer))
        return FolderChanges(layer)

    def expected(self) -> list[str]:
        return list(dump(self.layer, inline=64, extents=False))


class TestLayerWithParents(TestBaseLayer):
    layer = (*LAYER[:-1], Whiteout(LayerPath("Files/gone")), LAYER[-1])

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> FolderChanges:
        base, layer = WindowsLayer(tmp_path / "base"), WindowsLayer(tmp_path / "above")
        apply(LAYER[:1], WindowsSink(base))
        apply(changes, WindowsSink(layer, parents=LayerStack([base])))
        return FolderChanges(layer)


class TestMergedView(source_suite.TreeTests):
    def make(self, tmp_path: Path, changes: Iterable[Change]) -> WindowsTree:
        return WindowsTree(fold(changes))


class FolderPlace:
    """A transport folder over an empty base layer, read without its contents."""

    def __init__(self, where: Path) -> None:
        self.losses = Losses()
        self._base, self._layer = WindowsLayer(where / "base"), WindowsLayer(where / "layer")
        apply([], WindowsSink(self._base))

    def sink(self) -> WindowsSink:
        return WindowsSink(self._layer, parents=LayerStack([self._base]), losses=self.losses)

    def tree(self) -> Tree:
        return limits_suite.without_contents(FolderChanges(self._layer))


class TestWindowsSink(limits_suite.LimitTests):
    layers = tuple(limits_suite.windows_layers())
    sizes = ()

    def make(self, tmp_path: Path) -> FolderPlace:
        return FolderPlace(tmp_path)
