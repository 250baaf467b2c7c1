# SPDX-License-Identifier: Apache-2.0
"""Contracts of EROFS images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from lamella.changes.apply import apply
from lamella.changes.contracts import Tree
from lamella.changes.dump import dump
from lamella.changes.losses import Losses
from lamella.changes.model import Change, Opaque, Whiteout
from lamella.changes.tree import MemoryTree
from lamella.layers.erofs.overlay_sink import ErofsUpperSink
from lamella.layers.erofs.sink import ErofsSink
from lamella.layers.erofs.tree import ErofsChanges, ErofsImage, ErofsLayer, ErofsStack, ErofsTree
from lamella.layers.stack import LayerStack
from lamella.testing import limits_suite, sink_suite, source_suite
from lamella.testing.source_suite import LAYER


class ErofsPlace:
    """One merged image per layer; an aborted sink leaves no image."""

    def __init__(self, where: Path) -> None:
        self.losses = Losses()
        self._layers = [ErofsLayer(where / f"{number}.erofs") for number in range(6)]

    def _committed(self) -> LayerStack[ErofsLayer]:
        return LayerStack(layer for layer in self._layers if layer.path.exists())

    def sink(self) -> ErofsSink:
        stack = self._committed()
        return ErofsSink(self._layers[len(stack)], parents=stack, losses=self.losses)

    def tree(self) -> Tree:
        stack = self._committed()
        return ErofsTree(stack) if len(stack) else MemoryTree()


class TestErofsSink(
    sink_suite.SinkTests, sink_suite.DeviceSinkTests, sink_suite.AtomicSinkTests, limits_suite.LimitTests
):
    def make(self, tmp_path: Path) -> sink_suite.Place:
        return ErofsPlace(tmp_path)


class UpperPlace:
    """One image per layer, stacked as an overlay; an aborted sink leaves no image."""

    def __init__(self, where: Path) -> None:
        self.losses = Losses()
        self._layers = [ErofsLayer(where / f"{number}.erofs") for number in range(6)]

    def _committed(self) -> LayerStack[ErofsLayer]:
        return LayerStack(layer for layer in self._layers if layer.path.exists())

    def sink(self) -> ErofsUpperSink:
        stack = self._committed()
        return ErofsUpperSink(self._layers[len(stack)], parents=stack, losses=self.losses)

    def tree(self) -> Tree:
        stack = self._committed()
        return ErofsStack(stack) if len(stack) else MemoryTree()


class TestErofsUpperSink(
    sink_suite.SinkTests, sink_suite.DeviceSinkTests, sink_suite.AtomicSinkTests, limits_suite.LimitTests
):
    def make(self, tmp_path: Path) -> sink_suite.Place:
        return UpperPlace(tmp_path)


class TestErofsImage(source_suite.TreeTests):
    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Tree:
        layer = ErofsLayer(tmp_path / "layer.erofs")
        apply(changes, ErofsSink(layer))
        return ErofsImage(layer)


class TestErofsTree(source_suite.TreeTests):
    """The changes lie above an empty layer, merged into one image."""

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Tree:
        empty, layer = ErofsLayer(tmp_path / "empty.erofs"), ErofsLayer(tmp_path / "layer.erofs")
        apply([], ErofsSink(empty))
        apply(changes, ErofsSink(layer, parents=LayerStack([empty])))
        return ErofsTree(LayerStack([empty, layer]))


class TestErofsStack(source_suite.TreeTests):
    """The changes lie above an empty layer, as an overlay stack."""

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Tree:
        empty, layer = ErofsLayer(tmp_path / "empty.erofs"), ErofsLayer(tmp_path / "layer.erofs")
        apply([], ErofsUpperSink(empty, parents=LayerStack(())))
        apply(changes, ErofsUpperSink(layer, parents=LayerStack([empty])))
        return ErofsStack(LayerStack([empty, layer]))


class TestErofsChanges(source_suite.SourceTests):
    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Iterator[Change]:
        layer = ErofsLayer(tmp_path / "layer.erofs")
        apply(changes, ErofsSink(layer))
        found = iter(ErofsChanges(layer))
        next(found)
        return found

    def expected(self) -> list[str]:
        """A base image has no markers."""
        return list(
            dump((change for change in LAYER if not isinstance(change, Whiteout | Opaque)), inline=64, extents=False)
        )
