# SPDX-License-Identifier: Apache-2.0
"""Snapshots of Windows layers in block images, one each, that are merged where several lie on each other.

containerd's name is ``blockcim``. A place has ``layer.vhd``, which holds the layer's image. What is shown over two or
more layers needs an image of how they lie on each other, ``merged.vhd`` in the place of the nearest, made when it is
first needed. All of it takes Windows; on another host there can be no such snapshots.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Final

from lamella.changes.contracts import Sink
from lamella.changes.losses import Losses
from lamella.errors import Conflict, Unsupported, from_os
from lamella.host.windows.cimfs import Cimfs
from lamella.layers.cim.block.layer import BlockCimLayer, BlockOptions, system_calls
from lamella.layers.cim.block.sink import BlockCimSink
from lamella.layers.cim.block.writer import merge
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.store.contract import BlockCimMount, Mount, SnapshotKind, Usage
from lamella.store.snapshots.copy_tree import measure
from lamella.store.snapshots.dirs import locked
from lamella.store.snapshots.driver import OpenTree, SequentialDriver, Use, missing
from lamella.store.snapshots.drivers.cimfs import PARENT, EmptyTree, apply_nothing, note, noted, without_policy

BLOCK: Final = "layer.vhd"
IMAGE: Final = "layer.cim"
MERGED_BLOCK: Final = "merged.vhd"
MERGED_IMAGE: Final = "merged.cim"
UNPACKING: Final = "unpacking"
"""The file in a place that says that a layer is to be applied to it, and that nobody runs anything on it."""


class BlockCimDriver(SequentialDriver):
    """Each snapshot has an image of what it changes, and nothing of its parents'."""

    name = "blockcim"
    windows = True

    def __init__(self, home: Path, options: BlockOptions | None = None, *, calls: Cimfs | None = None) -> None:
        """``home`` is the directory of the places; ``calls`` are Windows', where none are given."""
        self._home = home
        self._options = options or BlockOptions()
        if calls is not None:
            self._calls = calls

    @cached_property
    def _calls(self) -> Cimfs:
        return system_calls()

    def make(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path], use: Use) -> None:
        """See `SnapshotDriver.make`. Raises Unsupported on another host than Windows."""
        self._calls.check_writing_blocks(verified=self._options.integrity)
        if len(parents):
            note(place, PARENT, parents.nearest_first()[0].name)
        if kind is SnapshotKind.ACTIVE and use is not Use.RUN:
            note(place, UNPACKING, "yes")
        elif len(parents) > 1:
            self._merge(parents)

    def mounts(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        """See `SnapshotDriver.mounts`."""
        above = parents.nearest_first()
        images = tuple(parent / BLOCK / IMAGE for parent in above)
        if kind is SnapshotKind.ACTIVE and noted(place, UNPACKING) is not None:
            options = self._options
            return (BlockCimMount(place / BLOCK / IMAGE, images, integrity=options.integrity, footer=options.footer),)
        merged = above[0] / MERGED_BLOCK / MERGED_IMAGE if len(above) > 1 else None
        return (BlockCimMount(place, images, merged=merged),)

    def seal(self, place: Path) -> None:
        """See `SnapshotDriver.seal`. A snapshot to which no layer was applied gets the image of one that changes nothing."""
        if not (place / BLOCK).exists():
            parent = noted(place, PARENT)
            stack = None if parent is None else LayerStack([_layer(self._home / parent)])
            apply_nothing(
                BlockCimSink(
                    _layer(place),
                    parents=stack,
                    options=self._options,
                    windows=stack is not None,
                    calls=self._calls,
                )
            )

    def release(self, place: Path) -> None:
        """See `SnapshotDriver.release`: nothing is mounted here."""

    def usage(self, place: Path, kind: SnapshotKind, beneath: Usage | None = None) -> Usage:  # noqa: ARG002  # all kinds have all in their places
        """See `SnapshotDriver.usage`."""
        return measure(place).usage

    def beneath(self, place: Path) -> Usage | None:  # noqa: ARG002
        """See `SnapshotDriver.beneath`: an image is a few files."""
        return None

    def sink(
        self, place: Path, parents: LayerStack[Path] | None, policy: Policy | None, losses: Losses | None
    ) -> Sink[Losses]:
        """See `SnapshotDriver.sink`."""
        assert parents is not None  # noqa: S101  # not `side_by_side`
        without_policy(policy)
        if (place / BLOCK).exists():
            raise Conflict(f"the snapshot in {os.fspath(place)!r} has its layer already")
        stack = LayerStack(map(_layer, parents.base_first())) if len(parents) else None
        return BlockCimSink(_layer(place), parents=stack, options=self._options, losses=losses, calls=self._calls)

    def tree(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> OpenTree:
        """See `SnapshotDriver.tree`. Raises Unsupported, but for a snapshot that shows nothing."""
        if not len(parents) and (kind is SnapshotKind.VIEW or not (place / BLOCK).exists()):
            return EmptyTree()
        raise Unsupported("only Windows can look into block images", hint='the snapshotter "cimfs" keeps others')

    def lacking(self, place: Path, kind: SnapshotKind, *, parents: bool) -> str:  # noqa: ARG002  # each has its own
        """See `SnapshotDriver.lacking`."""
        return missing(place / BLOCK) if kind is SnapshotKind.COMMITTED else ""

    def _merge(self, parents: LayerStack[Path]) -> None:
        nearest = parents.nearest_first()[0]
        target = BlockCimLayer(nearest / MERGED_BLOCK, MERGED_IMAGE)
        try:
            with locked(nearest):
                if not target.block.exists():
                    merge(LayerStack(map(_layer, parents.base_first())), target, self._options, calls=self._calls)
        except OSError as problem:
            raise from_os(problem, f"open the parent snapshot {os.fspath(nearest)!r}") from problem


def _layer(place: Path) -> BlockCimLayer:
    return BlockCimLayer(place / BLOCK, IMAGE)
