# SPDX-License-Identifier: Apache-2.0
"""The snapshotters: one row for each, with everything in which they differ. Importing the table loads no driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from lamella.errors import Unsupported
from lamella.extensions import Table
from lamella.layers.kinds import LAYER_KINDS

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.store.snapshots.driver import SnapshotDriver


class SnapshotterKind(Struct, frozen=True):
    """Everything in which a snapshotter differs from the others; its name is containerd's."""

    driver: Callable[[Path, str], SnapshotDriver]
    """Takes the directory of the snapshots and the kind of verity, which is empty if none is wanted."""
    layer: str
    """The kind of layer that it keeps (`LAYER_KINDS`)."""
    verity: tuple[str, ...] = ()
    """The kinds of verity that it supports: the kernel checks committed layers as they are read."""

    @property
    def windows(self) -> bool:
        """Whether it keeps layers of Windows images."""
        return LAYER_KINDS[self.layer].windows


def snapshot_driver(name: str, root: Path, verity: str = "") -> SnapshotDriver:
    """Return the driver of the snapshotter ``name``, whose snapshots are in the directory ``root``.

    Raises InvalidInput (unknown snapshotter), Unsupported (not on this system, unsupported ``verity``).
    """
    name = canonical(name)
    row = SNAPSHOTTERS[name]
    if verity and verity not in row.verity:
        raise Unsupported(f"the snapshotter {name!r} does not support {verity}")
    return row.driver(root, verity)


def canonical(name: str) -> str:
    """Return containerd's name of a snapshotter, given that name or the kind of layer that a built-in one keeps.

    Raises InvalidInput.
    """
    rows = SNAPSHOTTERS.built_in
    if name not in rows:
        for known, row in rows.items():
            if row.layer == name:
                return known
        SNAPSHOTTERS[name]
    return name


def _overlay(root: Path, verity: str) -> SnapshotDriver:
    from lamella.store.snapshots.drivers.overlay import OverlayDriver

    del root, verity
    return OverlayDriver()


def _native(root: Path, verity: str) -> SnapshotDriver:
    from lamella.store.snapshots.drivers.native import NativeDriver

    del root, verity
    return NativeDriver()


def _erofs(root: Path, verity: str) -> SnapshotDriver:
    from lamella.store.snapshots.drivers.erofs import ErofsDriver

    del root
    return ErofsDriver(verity)


def _cimfs(root: Path, verity: str) -> SnapshotDriver:
    from lamella.store.snapshots.drivers.cimfs import CimDriver

    del verity
    return CimDriver(root)


def _blockcim(root: Path, verity: str) -> SnapshotDriver:
    from lamella.store.snapshots.drivers.blockcim import BlockCimDriver

    del verity
    return BlockCimDriver(root)


SNAPSHOTTERS: Final = Table(
    "snapshotter",
    "lamella.snapshotters",
    SnapshotterKind,
    {
        "overlayfs": SnapshotterKind(_overlay, "overlay"),
        "native": SnapshotterKind(_native, "directory"),
        "erofs": SnapshotterKind(_erofs, "erofs", verity=("fs-verity", "dm-verity")),
        "cimfs": SnapshotterKind(_cimfs, "cim"),
        "blockcim": SnapshotterKind(_blockcim, "blockcim"),
    },
)
"""All snapshotters, by containerd's names."""
