# SPDX-License-Identifier: Apache-2.0
"""Snapshots of Windows layers in block CIMs, one per layer (containerd's ``blockcim``).

The directory of a snapshot has ``layer.vhd``, which holds the layer's image. Two or more parents need a merged image,
``merged.vhd`` in the directory of the nearest parent, made on first use. Works on Windows only.
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
from lamella.layers.cim.block import BlockCimLayer, BlockCimSink, BlockOptions, merge, system_calls
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.store.contract import BlockCimMount, Mount, SnapshotKind, Usage
from lamella.store.snapshots.copy_tree import measure
from lamella.store.snapshots.directories import locked
from lamella.store.snapshots.driver import OpenTree, Purpose, SequentialDriver, describe_missing
from lamella.store.snapshots.drivers.cimfs import PARENT, EmptyTree, commit_empty, read_note, refuse_policy, write_note

BLOCK: Final = "layer.vhd"
IMAGE: Final = "layer.cim"
MERGED_BLOCK: Final = "merged.vhd"
MERGED_IMAGE: Final = "merged.cim"
UNPACKING: Final = "unpacking"
"""The file that marks a snapshot as one that will get a layer, and on which nothing runs."""


class BlockCimDriver(SequentialDriver):
    """Keeps each layer in a block image of its own."""

    name = "blockcim"

    def __init__(self, root: Path, options: BlockOptions | None = None, *, calls: Cimfs | None = None) -> None:
        """``root`` is the directory of all snapshots; ``calls`` replaces the system calls of Windows."""
        self._root = root
        self._options = options or BlockOptions()
        if calls is not None:
            self._calls = calls

    @cached_property
    def _calls(self) -> Cimfs:
        return system_calls()

    def create(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path], purpose: Purpose) -> None:
        self._calls.check_writing_blocks(verified=self._options.integrity)
        if len(parents):
            write_note(directory, PARENT, parents.nearest_first()[0].name)
        if kind is SnapshotKind.ACTIVE and purpose is not Purpose.RUN:
            write_note(directory, UNPACKING, "yes")
        elif len(parents) > 1:
            self._merge(parents)

    def mounts(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        above = parents.nearest_first()
        images = tuple(parent / BLOCK / IMAGE for parent in above)
        source, merged = directory, None
        if kind is SnapshotKind.ACTIVE and read_note(directory, UNPACKING) is not None:
            source = directory / BLOCK / IMAGE
        elif len(above) > 1:
            merged = above[0] / MERGED_BLOCK / MERGED_IMAGE
        integrity, footer = self._options.integrity, self._options.footer
        return (BlockCimMount(source, images, merged=merged, integrity=integrity, footer=footer),)

    def commit(self, directory: Path) -> None:
        # A snapshot without a layer gets the image of an empty one.
        if not (directory / BLOCK).exists():
            parent = read_note(directory, PARENT)
            stack = None if parent is None else LayerStack([_layer(self._root / parent)])
            commit_empty(
                BlockCimSink(
                    _layer(directory),
                    parents=stack,
                    options=self._options,
                    windows=stack is not None,
                    calls=self._calls,
                )
            )

    def usage(self, directory: Path, kind: SnapshotKind, below_root: Usage | None = None) -> Usage:  # noqa: ARG002
        return measure(directory).usage

    def sink(
        self, directory: Path, parents: LayerStack[Path] | None, policy: Policy | None, losses: Losses | None
    ) -> Sink[Losses]:
        assert parents is not None  # noqa: S101  # not `can_rebase`
        refuse_policy(policy)
        if (directory / BLOCK).exists():
            raise Conflict(f"the snapshot in {os.fspath(directory)!r} has its layer already")
        stack = LayerStack(map(_layer, parents.base_first())) if len(parents) else None
        return BlockCimSink(_layer(directory), parents=stack, options=self._options, losses=losses, calls=self._calls)

    def tree(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> OpenTree:
        if not len(parents) and (kind is SnapshotKind.VIEW or not (directory / BLOCK).exists()):
            return EmptyTree()
        raise Unsupported("only Windows can read block images", hint='use the snapshotter "cimfs"')

    def find_missing(self, directory: Path, kind: SnapshotKind, *, has_parents: bool) -> str:  # noqa: ARG002
        return describe_missing(directory / BLOCK) if kind is SnapshotKind.COMMITTED else ""

    def _merge(self, parents: LayerStack[Path]) -> None:
        nearest = parents.nearest_first()[0]
        target = BlockCimLayer(nearest / MERGED_BLOCK, MERGED_IMAGE)
        try:
            with locked(nearest):
                if not target.block.exists():
                    merge(LayerStack(map(_layer, parents.base_first())), target, self._options, calls=self._calls)
        except OSError as problem:
            raise from_os(problem, f"open the parent snapshot {os.fspath(nearest)!r}") from problem


def _layer(directory: Path) -> BlockCimLayer:
    return BlockCimLayer(directory / BLOCK, IMAGE)
