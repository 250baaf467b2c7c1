# SPDX-License-Identifier: Apache-2.0
"""The kinds of snapshotter, by name. Each is loaded when it is used, and not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from lamella.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.store.snapshots.driver import SnapshotDriver


def snapshot_driver(name: str, home: Path, verity: str = "") -> SnapshotDriver:
    """How the kind ``name`` keeps its snapshots, whose places are in ``home``.

    ``verity`` makes the kernel check committed layers as they are read. Raises InvalidInput (unknown kind),
    Unsupported (not on this system, unknown ``verity``).
    """
    return SNAPSHOTTERS[canonical(name)](verity, home)


def canonical(name: str) -> str:
    """Containerd's name for a kind, which an alias stands for too. Raises InvalidInput."""
    name = ALIASES.get(name, name)
    if name not in SNAPSHOTTERS:
        raise InvalidInput(f"there is no snapshotter {name!r}", hint=f"there are {', '.join(SNAPSHOTTERS)}")
    return name


def _overlay(verity: str, home: Path) -> SnapshotDriver:  # noqa: ARG001
    from lamella.store.snapshots.drivers.overlay import OverlayDriver

    _without(verity, OverlayDriver.name)
    return OverlayDriver()


def _directory(verity: str, home: Path) -> SnapshotDriver:  # noqa: ARG001
    from lamella.store.snapshots.drivers.native import NativeDriver

    _without(verity, NativeDriver.name)
    return NativeDriver()


def _erofs(verity: str, home: Path) -> SnapshotDriver:  # noqa: ARG001
    from lamella.store.snapshots.drivers.erofs import ErofsDriver

    return ErofsDriver(verity)


def _cimfs(verity: str, home: Path) -> SnapshotDriver:
    from lamella.store.snapshots.drivers.cimfs import CimDriver

    _without(verity, CimDriver.name)
    return CimDriver(home)


def _blockcim(verity: str, home: Path) -> SnapshotDriver:
    from lamella.store.snapshots.drivers.blockcim import BlockCimDriver

    _without(verity, BlockCimDriver.name)
    return BlockCimDriver(home)


def _without(verity: str, name: str) -> None:
    if verity:
        from lamella.errors import Unsupported

        raise Unsupported(f"the snapshotter {name!r} keeps no images that could have {verity}")


SNAPSHOTTERS: Final[dict[str, Callable[[str, Path], SnapshotDriver]]] = {
    "overlayfs": _overlay,
    "native": _directory,
    "erofs": _erofs,
    "cimfs": _cimfs,
    "blockcim": _blockcim,
}
"""Containerd's name of a kind -> what makes its form, given the verity that is asked for and its directory."""

OF_WINDOWS: Final = frozenset({"cimfs", "blockcim"})
"""Those that keep layers of Windows images."""

SEALING: Final = "erofs"
"""The kind whose layers are images that can be sealed."""

ALIASES: Final = {"overlay": "overlayfs", "directory": "native", "cim": "cimfs"}
"""Lamella's names of kinds of layer -> containerd's of snapshotters that keep them."""
