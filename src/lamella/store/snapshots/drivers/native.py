# SPDX-License-Identifier: Apache-2.0
"""Snapshots as complete trees, each a copy of its parent (containerd's ``native``).

The tree is in ``fs``; views need no copy and show their parent's. Works on every file system. One that cannot share
blocks between files stores each file once per snapshot.
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
from lamella.store.snapshots.copy_tree import add_root_usage, copy_tree, measure
from lamella.store.snapshots.directories import locked
from lamella.store.snapshots.driver import OpenTree, Purpose, SequentialDriver, describe_missing, make_root

TREE: Final = "fs"


class NativeDriver(SequentialDriver):
    """Keeps all files of each snapshot in a directory."""

    name = "native"

    def create(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path], purpose: Purpose) -> None:  # noqa: ARG002
        if not len(parents):
            make_root(directory / TREE)
        elif kind is SnapshotKind.ACTIVE:
            parent = parents.nearest_first()[0]
            with ExitStack() as held:
                if os.geteuid():  # see `copy_tree`
                    try:
                        held.enter_context(locked(parent))
                    except OSError as error:
                        raise from_os(error, "open the parent snapshot") from error
                copy_tree(parent / TREE, directory / TREE)

    def mounts(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        return (BindMount(_tree(directory, kind, parents), readonly=kind is SnapshotKind.VIEW),)

    def commit(self, directory: Path) -> None: ...

    def usage(self, directory: Path, kind: SnapshotKind, below_root: Usage | None = None) -> Usage:  # noqa: ARG002
        # Blocks shared with the parent count: no file system reports them.
        if below_root is not None:
            return add_root_usage(directory / TREE, below_root)
        return measure(directory / TREE if (directory / TREE).exists() else directory).usage

    def usage_below_root(self, directory: Path) -> Usage | None:
        return measure(directory / TREE).below_root

    def sink(
        self, directory: Path, parents: LayerStack[Path] | None, policy: Policy | None, losses: Losses | None
    ) -> Sink[Losses]:
        assert parents is not None  # noqa: S101  # not `can_rebase`
        return DirectorySink(directory / TREE, policy=policy, losses=losses)

    def tree(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> OpenTree:
        return DirectoryTree(_tree(directory, kind, parents))

    def find_missing(self, directory: Path, kind: SnapshotKind, *, has_parents: bool) -> str:
        return "" if kind is SnapshotKind.VIEW and has_parents else describe_missing(directory / TREE)


def _tree(directory: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> Path:
    """Return the directory of the files."""
    if kind is SnapshotKind.VIEW and len(parents):
        return parents.nearest_first()[0] / TREE
    return directory / TREE
