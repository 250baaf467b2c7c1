# SPDX-License-Identifier: Apache-2.0
"""Snapshots as whole trees, each copied from its parent; containerd's name for it is ``native``.

A place has ``fs``, but for views of a parent, which need no copy. Works everywhere, and takes as much space as
there are snapshots where the file system cannot share blocks.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from lamella.changes.contracts import Sink
from lamella.changes.losses import Losses
from lamella.errors import from_os
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.directory.tree import DirectoryTree
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.store.contract import BindMount, Mount, SnapshotKind, Usage
from lamella.store.snapshots.copy_tree import copy_tree, measure, with_root
from lamella.store.snapshots.dirs import locked
from lamella.store.snapshots.driver import OpenTree, SequentialDriver, Use, missing, new_root

TREE: Final = "fs"


class NativeDriver(SequentialDriver):
    """Each snapshot holds all of its files."""

    name = "native"
    windows = False

    def make(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path], use: Use) -> None:  # noqa: ARG002
        """See `SnapshotDriver.make`."""
        if not len(parents):
            new_root(place / TREE)
        elif kind is SnapshotKind.ACTIVE:
            parent = parents.nearest_first()[0]
            with ExitStack() as held:
                if os.geteuid():  # see `copy_tree`
                    try:
                        held.enter_context(locked(parent))
                    except OSError as error:
                        raise from_os(error, "open the parent snapshot") from error
                copy_tree(parent / TREE, place / TREE)

    def mounts(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        """See `SnapshotDriver.mounts`."""
        return (BindMount(_tree(place, kind, parents), readonly=kind is SnapshotKind.VIEW),)

    def seal(self, place: Path) -> None:
        """See `SnapshotDriver.seal`: it is as it was written."""

    def release(self, place: Path) -> None:
        """See `SnapshotDriver.release`: nothing is mounted here."""

    def usage(self, place: Path, kind: SnapshotKind, beneath: Usage | None = None) -> Usage:  # noqa: ARG002  # only views differ, and those by having nothing
        """See `SnapshotDriver.usage`. What is shared with the parent counts, since no file system tells."""
        if beneath is not None:
            return with_root(place / TREE, beneath)
        return measure(place / TREE if (place / TREE).exists() else place).usage

    def beneath(self, place: Path) -> Usage | None:
        """See `SnapshotDriver.beneath`."""
        return measure(place / TREE).beneath

    def sink(
        self, place: Path, parents: LayerStack[Path] | None, policy: Policy | None, losses: Losses | None
    ) -> Sink[Losses]:
        """See `SnapshotDriver.sink`."""
        assert parents is not None  # noqa: S101  # not `side_by_side`
        return DirectorySink(place / TREE, policy=policy, losses=losses)

    def tree(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> OpenTree:
        """See `SnapshotDriver.tree`."""
        return DirectoryTree(_tree(place, kind, parents))

    def lacking(self, place: Path, kind: SnapshotKind, *, parents: bool) -> str:
        """See `SnapshotDriver.lacking`."""
        return "" if kind is SnapshotKind.VIEW and parents else missing(place / TREE)


def _tree(place: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> Path:
    """Where the files are."""
    if kind is SnapshotKind.VIEW and len(parents):
        return parents.nearest_first()[0] / TREE
    return place / TREE
