# SPDX-License-Identifier: Apache-2.0
"""Contracts of directories, overlay layers and tar archives."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from lamella.changes.apply import apply
from lamella.changes.contracts import Source, Tree
from lamella.changes.dump import dump
from lamella.changes.losses import Losses
from lamella.changes.model import Buffer, Change, Kind, Opaque, Put
from lamella.changes.tree import walk
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.directory.tree import DirectoryTree
from lamella.layers.overlay.layer import OverlayLayer
from lamella.layers.overlay.sink import OverlaySink
from lamella.layers.overlay.tree import OverlayChanges, OverlayTree
from lamella.layers.process_reader import Blob, ReaderProcess
from lamella.layers.stack import LayerStack
from lamella.layers.tar.sink import TarSink
from lamella.layers.tar.source import tar_changes
from lamella.paths import ROOT
from lamella.testing import limits_suite, sink_suite, source_suite
from lamella.testing.source_suite import LAYER


def bare(directory: Path) -> Path:
    """Create a directory with the default metadata of a root."""
    directory.mkdir(mode=0o755)
    os.utime(directory, ns=(0, 0))
    return directory


class DirectoryPlace:
    def __init__(self, root: Path) -> None:
        self.losses = Losses()
        self._root = root

    def sink(self) -> DirectorySink:
        return DirectorySink(self._root, losses=self.losses)

    def tree(self) -> DirectoryTree:
        return DirectoryTree(self._root)


@pytest.mark.root
class TestDirectorySink(sink_suite.SinkTests, sink_suite.DeviceSinkTests, limits_suite.LimitTests):
    def make(self, tmp_path: Path) -> sink_suite.Place:
        return DirectoryPlace(bare(tmp_path / "root"))


class OverlayPlace:
    """One directory per layer; the stack leaves out the directories of aborted sinks."""

    def __init__(self, where: Path) -> None:
        self.losses = Losses()
        self._where = where
        self._layers: list[OverlayLayer] = []
        self._next: OverlayLayer | None = None
        self._count = 0

    def _committed(self) -> LayerStack[OverlayLayer]:
        layer, self._next = self._next, None
        if layer is not None and not (layer.path.parent / f"{layer.path.name}.aborted").exists():
            self._layers.append(layer)
        return LayerStack(self._layers)

    def sink(self) -> OverlaySink:
        stack = self._committed()
        self._count += 1
        layer = self._next = OverlayLayer(bare(self._where / str(self._count)))
        return MarkingSink(layer, parents=stack, losses=self.losses)

    def tree(self) -> Tree:
        stack = self._committed()
        return OverlayTree(stack) if len(stack) else DirectoryTree(bare(self._where / "empty"))


class MarkingSink(OverlaySink):
    """Creates a marker file on abort."""

    def __init__(self, layer: OverlayLayer, *, parents: LayerStack[OverlayLayer], losses: Losses) -> None:
        super().__init__(layer, parents=parents, losses=losses)
        self._marker = layer.path.parent / f"{layer.path.name}.aborted"

    def abort(self) -> None:
        super().abort()
        self._marker.touch()


@pytest.mark.root
class TestOverlaySink(
    sink_suite.SinkTests, sink_suite.DeviceSinkTests, sink_suite.AtomicSinkTests, limits_suite.LimitTests
):
    def make(self, tmp_path: Path) -> sink_suite.Place:
        return OverlayPlace(tmp_path)


@pytest.mark.root
class TestDirectoryTree(source_suite.TreeTests):
    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Tree:
        root = bare(tmp_path / "root")
        apply(changes, DirectorySink(root))
        return DirectoryTree(root)


@pytest.mark.root
class TestOverlayTree(source_suite.TreeTests):
    """The changes lie above an empty layer."""

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Tree:
        empty, layer = OverlayLayer(bare(tmp_path / "empty")), OverlayLayer(bare(tmp_path / "layer"))
        apply(changes, OverlaySink(layer, parents=LayerStack([empty])))
        return OverlayTree(LayerStack([empty, layer]))


@pytest.mark.root
class TestOverlayChanges(source_suite.SourceTests):
    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Iterator[Change]:
        layer = OverlayLayer(tmp_path / "layer")
        layer.path.mkdir()
        apply(changes, OverlaySink(layer))
        found = iter(OverlayChanges(layer))
        next(found)
        return found

    def expected(self) -> list[str]:
        """Whiteouts come before the files of their directory; the rest is in the order of a walk."""
        found: list[Change] = []
        for change in LAYER:
            if isinstance(change, Opaque):
                continue
            found.append(change)
            if isinstance(change, Put) and change.entry.path == "h":
                found.append(Opaque(change.entry.path))
        gone = next(change for change in found if not isinstance(change, Put) and change.path == "a/gone")
        found.remove(gone)
        found.insert(1, gone)
        return list(dump(found, inline=64, extents=False))


class TarPlace:
    """One tar archive and its content read back."""

    def __init__(self) -> None:
        self.losses = Losses()
        self._out = io.BytesIO()

    def sink(self) -> TarSink:
        return TarSink(self._out.write, root=True, subsecond=True, losses=self.losses)

    def tree(self) -> Tree:
        pieces = iter([self._out.getbuffer()])
        return limits_suite.without_contents(tar_changes(lambda: next(pieces, memoryview(b""))))


class TestTarSink(limits_suite.LimitTests):
    sizes = (0xFFFF, 1 << 20)

    def make(self, tmp_path: Path) -> sink_suite.Place:
        del tmp_path
        return TarPlace()


class TestTar(source_suite.SourceTests):
    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Source:
        out = io.BytesIO()

        def write(piece: Buffer) -> None:
            out.write(piece)

        apply(changes, TarSink(write))
        data = memoryview(out.getvalue())
        pieces = iter([data[at : at + 65536] for at in range(0, len(data), 65536)])
        return tar_changes(lambda: next(pieces, memoryview(b"")))


@pytest.mark.skipif(sys.platform != "linux", reason="the reader process is forked only on Linux")
class TestTarReadByWorker(source_suite.SourceTests):
    """A tar archive read by the reader process."""

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Iterator[Change]:
        blob = tmp_path / "blob"
        with blob.open("wb") as out:
            apply(changes, TarSink(out.write))
        with blob.open("rb", buffering=0) as file, ReaderProcess([Blob(cast("BinaryIO", file))]) as process:
            yield from process.next_layer().changes()


@pytest.mark.root
class TestWalkOfDirectory(source_suite.SourceTests):
    def changes(self, tree: DirectoryTree) -> Source:
        return walk(tree)

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Iterator[Change]:
        root = bare(tmp_path / "root")
        apply(changes, DirectorySink(root))
        found = iter(self.changes(DirectoryTree(root)))
        assert next(found).entry.path == ROOT  # type: ignore[union-attr]
        return found

    def expected(self) -> list[str]:
        """A plain directory has no markers."""
        found = [change for change in LAYER if isinstance(change, Put) or hasattr(change, "target")]
        order = {put.entry.path: put for put in found if isinstance(put, Put) and put.entry.kind is Kind.DIRECTORY}
        assert list(order) == ["a", "h"]
        return list(dump(found, inline=64, extents=False))


@pytest.mark.root
class TestChangesOfDirectory(TestWalkOfDirectory):
    def changes(self, tree: DirectoryTree) -> Source:
        return tree.changes()
