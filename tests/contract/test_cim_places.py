# SPDX-License-Identifier: Apache-2.0
"""Contracts of composite images (CIM)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from lamella.changes.apply import apply
from lamella.changes.contracts import Tree
from lamella.changes.dump import dump
from lamella.changes.losses import Losses
from lamella.changes.model import Change, Entry, Inline, Kind, Link, Put, Stream, Whiteout, Windows
from lamella.layers.cim.image import CimLayer, OpenCim
from lamella.layers.cim.sink import CimSink
from lamella.layers.cim.source import all_changes, changes_since
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath
from lamella.testing import limits_suite, source_suite
from lamella.testing.builders import sparse


def put(path: str, kind: Kind, data: bytes = b"") -> Put:
    attributes = 0x10 if kind is Kind.DIRECTORY else 0x20
    facet = Windows(attributes, 100, 200, 300, 400, b"\1\0\4\x80" + bytes(16), {"A": b"\0\xff"})
    content = Inline(data) if kind is Kind.FILE else None
    return Put(Entry(LayerPath(path), kind, None, len(data), "", facet), content)


HOLES = sparse(2 << 20, [(1 << 20, b"x" * 4096)])
LAYER: tuple[Change, ...] = (
    put("Files", Kind.DIRECTORY),
    put("Files/a", Kind.FILE, b"text"),
    Stream(LayerPath("Files/a"), "zone", Inline(b"stream")),
    Link(LayerPath("Files/b"), LayerPath("Files/a")),
    put("Files/c", Kind.FILE, bytes(range(256)) * 5000),
    Put(Entry(LayerPath("Files/s"), Kind.FILE, None, HOLES.size, "", Windows(0x220, 0, 0, 0, 0, b"sd")), HOLES),
    put("Files/é", Kind.FILE),
    put("z", Kind.FILE, b"last"),
)
"""In the order of a walk, the only order that an image keeps."""


class Stated:
    """Changes of an image, relative to its parent if given, without the root; keeps the images open."""

    def __init__(self, layer: CimLayer, parent: CimLayer | None = None) -> None:
        self.image = OpenCim(layer)
        self.below = None if parent is None else OpenCim(parent)

    def __iter__(self) -> Iterator[Change]:
        changes = all_changes(self.image) if self.below is None else changes_since(self.image, self.below)
        return (change for change in changes if not isinstance(change, Put) or change.entry.path)


class TestBaseImage(source_suite.SourceTests):
    layer = LAYER

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Stated:
        layer = CimLayer(tmp_path / "base.cim")
        apply(changes, CimSink(layer, windows=False))
        return Stated(layer)

    def expected(self) -> list[str]:
        return list(dump(self.layer, inline=64, extents=False))


class TestFork(TestBaseImage):
    layer = (LAYER[0], Whiteout(LayerPath("Files/gone")), *LAYER[1:])

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Stated:
        base, layer = CimLayer(tmp_path / "base.cim"), CimLayer(tmp_path / "above.cim")
        apply([LAYER[0], put("Files/gone", Kind.FILE, b"g")], CimSink(base, windows=False))
        apply(changes, CimSink(layer, parents=LayerStack([base]), windows=False))
        return Stated(layer, base)


class CimPlace:
    """A base image, read without its contents."""

    def __init__(self, layer: CimLayer) -> None:
        self.losses = Losses()
        self._layer = layer

    def sink(self) -> CimSink:
        return CimSink(self._layer, windows=False, losses=self.losses)

    def tree(self) -> Tree:
        return limits_suite.without_contents(all_changes(OpenCim(self._layer)))


class TestCimSink(limits_suite.LimitTests):
    layers = tuple(limits_suite.windows_layers())
    sizes = ()

    def make(self, tmp_path: Path) -> CimPlace:
        return CimPlace(CimLayer(tmp_path / "layer.cim"))
