# SPDX-License-Identifier: Apache-2.0
"""The tree in memory and its sink keep the contracts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lamella.changes.losses import Losses
from lamella.changes.model import Change
from lamella.changes.tree import MemorySink, MemoryTree, fold
from lamella.testing import contract


class MemoryPlace:
    """One tree, to which each layer is applied in place."""

    def __init__(self) -> None:
        self.losses = Losses()
        self._tree = MemoryTree()

    def sink(self) -> MemorySink:
        return MemorySink(self._tree)

    def tree(self) -> MemoryTree:
        return self._tree


class TestMemorySink(contract.SinkTests, contract.DeviceSinkTests, contract.LimitTests):
    def make(self, tmp_path: Path) -> contract.Place:
        return MemoryPlace()


class TestMemoryTree(contract.TreeTests):
    def make(self, tmp_path: Path, changes: Iterable[Change]) -> MemoryTree:
        return fold(changes)


class TestList(contract.SourceTests):
    """A list of changes is a source; the simplest there is."""

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Iterable[Change]:
        return list(changes)
