# SPDX-License-Identifier: Apache-2.0
"""Snapshots of which no more is known than how they are mounted: layers go into them and are seen by these mounts."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from lamella.changes.contracts import Sink
from lamella.changes.losses import Losses
from lamella.errors import Conflict, Unsupported
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.directory.tree import DirectoryTree
from lamella.layers.overlay.layer import OverlayLayer
from lamella.layers.overlay.sink import OverlaySink
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.store.contract import (
    NO_LABELS,
    BindMount,
    Labels,
    Mount,
    OverlayMount,
    SnapshotKind,
    SnapshotRecord,
    Snapshotter,
    Usage,
)
from lamella.store.mounting import mounted
from lamella.store.snapshots.driver import OpenTree


class MountedSnapshots:
    """``snapshots``, into which layers are unpacked as a differ does it.

    With ``whole`` each snapshot has all that its parents have, so that layers go one after the other.
    """

    def __init__(self, snapshots: Snapshotter, *, whole: bool = False) -> None:
        self.name = snapshots.name
        self.can_rebase = not whole
        self._snapshots = snapshots

    def sink(
        self, key: str, *, policy: Policy | None = None, losses: Losses | None = None, parents_known: bool = True
    ) -> Sink[Losses]:
        if not (parents_known or self.can_rebase):
            raise Unsupported("a layer is unpacked over those below alone")
        match self._snapshots.mounts(key):
            case (BindMount(source, False),) if not self.can_rebase:
                return DirectorySink(source, policy=policy, losses=losses)
            case (BindMount(source, False),):
                none: LayerStack[OverlayLayer] = LayerStack(())
                parents = none if parents_known else None
                return OverlaySink(OverlayLayer(source), parents=parents, policy=policy, losses=losses)
            case (OverlayMount(lower, upper, _, _),) if upper is not None:
                below = LayerStack.from_nearest([OverlayLayer(path) for path in lower])
                return OverlaySink(OverlayLayer(upper), parents=below, policy=policy, losses=losses)
            case mounts:
                raise Conflict(f"nothing can be written to {mounts}")

    @contextmanager
    def _tree(self, key: str) -> Iterator[DirectoryTree]:
        view = ""
        if self.stat(key).kind is SnapshotKind.COMMITTED:
            view = f"view {secrets.token_hex(8)}"
            mounts = self.view(view, key)
        else:
            mounts = self.mounts(key)
        try:
            with mounted(mounts) as root, DirectoryTree(root, owners="actual") as tree:
                yield tree
        finally:
            if view:
                self.remove(view)

    def tree(self, key: str) -> OpenTree:
        return cast("OpenTree", self._tree(key))

    def stat(self, key: str) -> SnapshotRecord:
        return self._snapshots.stat(key)

    def list(self, filters: Sequence[str] = ()) -> list[SnapshotRecord]:
        return self._snapshots.list(filters)

    def update(self, key: str, labels: Labels, fields: Sequence[str] = ()) -> SnapshotRecord:
        return self._snapshots.update(key, labels, fields)

    def usage(self, key: str) -> Usage:
        return self._snapshots.usage(key)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        return self._snapshots.mounts(key)

    def prepare(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> tuple[Mount, ...]:
        return self._snapshots.prepare(key, parent, labels)

    def view(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> tuple[Mount, ...]:
        return self._snapshots.view(key, parent, labels)

    def commit(self, name: str, key: str, labels: Labels = NO_LABELS, parent: str = "") -> None:
        self._snapshots.commit(name, key, labels, parent)

    def remove(self, key: str) -> None:
        self._snapshots.remove(key)

    def cleanup(self) -> None:
        self._snapshots.cleanup()
