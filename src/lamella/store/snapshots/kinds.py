# SPDX-License-Identifier: Apache-2.0
"""The snapshotters by name. A driver's module is imported on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from lamella.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.store.snapshots.driver import SnapshotDriver


def snapshot_driver(name: str, root: Path, verity: str = "") -> SnapshotDriver:
    """Return the driver of the snapshotter ``name``, whose snapshots are in the directory ``root``.

    ``verity`` makes the kernel check committed layers as they are read. Raises InvalidInput (unknown snapshotter),
    Unsupported (not on this system, unknown ``verity``).
    """
    return SNAPSHOTTERS[canonical(name)](verity, root)


def canonical(name: str) -> str:
    """Return containerd's name of a snapshotter, given that name or an alias. Raises InvalidInput."""
    name = ALIASES.get(name, name)
    if name not in SNAPSHOTTERS:
        raise InvalidInput(f"there is no snapshotter {name!r}", hint=f"choose one of {', '.join(SNAPSHOTTERS)}")
    return name


def _overlay(verity: str, root: Path) -> SnapshotDriver:  # noqa: ARG001
    from lamella.store.snapshots.drivers.overlay import OverlayDriver

    _refuse_verity(verity, OverlayDriver.name)
    return OverlayDriver()


def _directory(verity: str, root: Path) -> SnapshotDriver:  # noqa: ARG001
    from lamella.store.snapshots.drivers.native import NativeDriver

    _refuse_verity(verity, NativeDriver.name)
    return NativeDriver()


def _erofs(verity: str, root: Path) -> SnapshotDriver:  # noqa: ARG001
    from lamella.store.snapshots.drivers.erofs import ErofsDriver

    return ErofsDriver(verity)


def _cimfs(verity: str, root: Path) -> SnapshotDriver:
    from lamella.store.snapshots.drivers.cimfs import CimDriver

    _refuse_verity(verity, CimDriver.name)
    return CimDriver(root)


def _blockcim(verity: str, root: Path) -> SnapshotDriver:
    from lamella.store.snapshots.drivers.blockcim import BlockCimDriver

    _refuse_verity(verity, BlockCimDriver.name)
    return BlockCimDriver(root)


def _refuse_verity(verity: str, name: str) -> None:
    if verity:
        from lamella.errors import Unsupported

        raise Unsupported(f"the snapshotter {name!r} does not support {verity}")


SNAPSHOTTERS: Final[dict[str, Callable[[str, Path], SnapshotDriver]]] = {
    "overlayfs": _overlay,
    "native": _directory,
    "erofs": _erofs,
    "cimfs": _cimfs,
    "blockcim": _blockcim,
}
"""containerd's name of a snapshotter -> function that makes its driver, given the verity and the directory."""

OF_WINDOWS: Final = frozenset({"cimfs", "blockcim"})
"""Snapshotters of Windows images."""

SEALING: Final = "erofs"
"""The snapshotter that supports verity."""

ALIASES: Final = {"overlay": "overlayfs", "directory": "native", "cim": "cimfs"}
"""Lamella's name of a layer kind -> containerd's name of its snapshotter."""
