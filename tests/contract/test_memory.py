# SPDX-License-Identifier: Apache-2.0
"""Contracts of the in-memory tree, its sink, and lists of changes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lamella.changes.losses import Losses
from lamella.changes.model import Change
from lamella.changes.tree import MemorySink, MemoryTree, fold
from lamella.testing import limits_suite, sink_suite, source_suite


class MemoryPlace:
    """One tree that each layer changes in place."""

    def __init__(self) -> None:
        self.losses = Losses()
        self._tree = MemoryTree()

    def sink(self) -> MemorySink:
        return MemorySink(self._tree)

    def tree(self) -> MemoryTree:
        return self._tree


class TestMemorySink(sink_suite.SinkTests, sink_suite.DeviceSinkTests, limits_suite.LimitTests):
    def make(self, tmp_path: Path) -> sink_suite.Place:
        return MemoryPlace()


class TestMemoryTree(source_suite.TreeTests):
    def make(self, tmp_path: Path, changes: Iterable[Change]) -> MemoryTree:
        return fold(changes)


class TestList(source_suite.SourceTests):
    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Iterable[Change]:
        return list(changes)
