# SPDX-License-Identifier: Apache-2.0
"""EROFS images keep the contracts."""

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
from lamella.testing import contract
from lamella.testing.source_suite import SOME


class ErofsPlace:
    """Images side by side; one that is aborted is not there."""

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


class TestErofsSink(contract.SinkTests, contract.DeviceSinkTests, contract.AtomicSinkTests, contract.LimitTests):
    def make(self, tmp_path: Path) -> contract.Place:
        return ErofsPlace(tmp_path)


class UpperPlace:
    """Images over each other, each of which was made as its layer came; one that is aborted is not there."""

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


class TestErofsUpperSink(contract.SinkTests, contract.DeviceSinkTests, contract.AtomicSinkTests, contract.LimitTests):
    def make(self, tmp_path: Path) -> contract.Place:
        return UpperPlace(tmp_path)


class TestErofsImage(contract.TreeTests):
    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Tree:
        layer = ErofsLayer(tmp_path / "layer.erofs")
        apply(changes, ErofsSink(layer))
        return ErofsImage(layer)


class TestErofsTree(contract.TreeTests):
    """The changes lie on another layer."""

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Tree:
        empty, layer = ErofsLayer(tmp_path / "empty.erofs"), ErofsLayer(tmp_path / "layer.erofs")
        apply([], ErofsSink(empty))
        apply(changes, ErofsSink(layer, parents=LayerStack([empty])))
        return ErofsTree(LayerStack([empty, layer]))


class TestErofsStack(contract.TreeTests):
    """The changes lie on another layer, in the form of an overlay's."""

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Tree:
        empty, layer = ErofsLayer(tmp_path / "empty.erofs"), ErofsLayer(tmp_path / "layer.erofs")
        apply([], ErofsUpperSink(empty, parents=LayerStack(())))
        apply(changes, ErofsUpperSink(layer, parents=LayerStack([empty])))
        return ErofsStack(LayerStack([empty, layer]))


class TestErofsChanges(contract.SourceTests):
    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Iterator[Change]:
        layer = ErofsLayer(tmp_path / "layer.erofs")
        apply(changes, ErofsSink(layer))
        found = iter(ErofsChanges(layer))
        next(found)
        return found

    def expected(self) -> list[str]:
        """Without markers, since nothing lies below."""
        return list(
            dump((change for change in SOME if not isinstance(change, Whiteout | Opaque)), inline=64, extents=False)
        )
