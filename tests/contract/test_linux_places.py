# SPDX-License-Identifier: Apache-2.0
"""Directories, overlays and tars keep the contracts."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from msgspec.structs import replace

from lamella.changes.apply import apply
from lamella.changes.contracts import Source, Tree
from lamella.changes.dump import dump
from lamella.changes.losses import Losses
from lamella.changes.model import EMPTY, Buffer, Change, Kind, Opaque, Put
from lamella.changes.tree import fold, walk
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
from lamella.testing import contract
from lamella.testing.source_suite import SOME


def bare(directory: Path) -> Path:
    """A new directory with the metadata that a root has which no layer states."""
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
class TestDirectorySink(contract.SinkTests, contract.DeviceSinkTests):
    def make(self, tmp_path: Path) -> contract.Place:
        return DirectoryPlace(bare(tmp_path / "root"))


class OverlayPlace:
    """Layers side by side; a sink that is aborted leaves its directory, which no stack has in it."""

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
        return Recording(layer, parents=stack, losses=self.losses)

    def tree(self) -> Tree:
        stack = self._committed()
        return OverlayTree(stack) if len(stack) else DirectoryTree(bare(self._where / "empty"))


class Recording(OverlaySink):
    """Leaves a note when it is aborted."""

    def __init__(self, layer: OverlayLayer, *, parents: LayerStack[OverlayLayer], losses: Losses) -> None:
        super().__init__(layer, parents=parents, losses=losses)
        self._note_at = layer.path.parent / f"{layer.path.name}.aborted"

    def abort(self) -> None:
        super().abort()
        self._note_at.touch()


@pytest.mark.root
class TestOverlaySink(contract.SinkTests, contract.DeviceSinkTests, contract.AtomicSinkTests):
    def make(self, tmp_path: Path) -> contract.Place:
        return OverlayPlace(tmp_path)


@pytest.mark.root
class TestDirectoryTree(contract.TreeTests):
    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Tree:
        root = bare(tmp_path / "root")
        apply(changes, DirectorySink(root))
        return DirectoryTree(root)


@pytest.mark.root
class TestOverlayTree(contract.TreeTests):
    """The changes lie on two layers, one that has nothing and one that shows only what is not hidden."""

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Tree:
        empty, layer = OverlayLayer(bare(tmp_path / "empty")), OverlayLayer(bare(tmp_path / "layer"))
        apply(changes, OverlaySink(layer, parents=LayerStack([empty])))
        return OverlayTree(LayerStack([empty, layer]))


@pytest.mark.root
class TestOverlayChanges(contract.SourceTests):
    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Iterator[Change]:
        layer = OverlayLayer(tmp_path / "layer")
        layer.path.mkdir()
        apply(changes, OverlaySink(layer))
        found = iter(OverlayChanges(layer))
        next(found)
        return found

    def expected(self) -> list[str]:
        """In the order of a walk, markers of names before the files beside them."""
        found: list[Change] = []
        for change in SOME:
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
    """One tar, read again."""

    def __init__(self) -> None:
        self.losses = Losses()
        self._out = io.BytesIO()

    def sink(self) -> TarSink:
        return TarSink(self._out.write, root=True, subsecond=True, losses=self.losses)

    def tree(self) -> Tree:
        pieces = iter([self._out.getbuffer()])
        changes = tar_changes(lambda: next(pieces, memoryview(b"")))
        return fold(replace(change, content=EMPTY) if isinstance(change, Put) else change for change in changes)


class TestTarSink(contract.LimitTests):
    sizes = (0xFFFF, 1 << 20)

    def make(self, tmp_path: Path) -> contract.Place:
        del tmp_path
        return TarPlace()


class TestTar(contract.SourceTests):
    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Source:
        out = io.BytesIO()

        def write(piece: Buffer) -> None:
            out.write(piece)

        apply(changes, TarSink(write))
        data = memoryview(out.getvalue())
        pieces = iter([data[at : at + 65536] for at in range(0, len(data), 65536)])
        return tar_changes(lambda: next(pieces, memoryview(b"")))


@pytest.mark.skipif(sys.platform != "linux", reason="another process is forked on Linux alone")
class TestTarReadByWorker(contract.SourceTests):
    """Another process that reads a tar gives what reading it here gives."""

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Iterator[Change]:
        blob = tmp_path / "blob"
        with blob.open("wb") as out:
            apply(changes, TarSink(out.write))
        with blob.open("rb", buffering=0) as file, ReaderProcess([Blob(cast("BinaryIO", file))]) as process:
            yield from process.next_layer().changes()


@pytest.mark.root
class TestWalkOfDirectory(contract.SourceTests):
    def changes(self, tree: DirectoryTree) -> Source:
        return walk(tree)

    def make(self, tmp_path: Path, changes: Iterable[Change]) -> Iterator[Change]:
        root = bare(tmp_path / "root")
        apply(changes, DirectorySink(root))
        found = iter(self.changes(DirectoryTree(root)))
        assert next(found).entry.path == ROOT  # type: ignore[union-attr]
        return found

    def expected(self) -> list[str]:
        """Without markers, since a directory has none, and names in their order."""
        found = [change for change in SOME if isinstance(change, Put) or hasattr(change, "target")]
        order = {put.entry.path: put for put in found if isinstance(put, Put) and put.entry.kind is Kind.DIRECTORY}
        assert list(order) == ["a", "h"]
        return list(dump(found, inline=64, extents=False))


@pytest.mark.root
class TestChangesOfDirectory(TestWalkOfDirectory):
    def changes(self, tree: DirectoryTree) -> Source:
        return tree.changes()
