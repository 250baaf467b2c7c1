# SPDX-License-Identifier: Apache-2.0
"""Snapshots as upper directories of an overlay, with the mounts that containerd's ``overlayfs`` gives.

A place has ``fs``, the upper directory, and ``work`` while it is active.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

from lamella.changes.contracts import Sink
from lamella.changes.losses import Losses
from lamella.errors import from_os
from lamella.layers.overlay.layer import OverlayLayer, OverlaySink, drop_whiteouts
from lamella.layers.overlay.tree import OverlayTree
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath
from lamella.store.contract import BindMount, Mount, OverlayMount, SnapshotKind, Usage
from lamella.store.snapshots.copy_tree import copy_root_metadata, measure, with_root
from lamella.store.snapshots.driver import OpenTree, Use, is_unstated, missing, new_root

UPPER: Final = "fs"
WORK: Final = "work"

_PARAMETERS: Final = Path("/sys/module/overlay/parameters")


class OverlayDriver:
    """Each snapshot holds what it changes, and the kernel lays them over each other."""

    name = "overlayfs"
    side_by_side = True
    windows = False

    def make(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path], use: Use) -> None:  # noqa: ARG002
        """See `SnapshotDriver.make`. The root is that of the parent, since the nearest one is what a mount shows."""
        upper = place / UPPER
        new_root(upper)
        if len(parents) and kind is SnapshotKind.ACTIVE:
            try:
                copy_root_metadata(self.lower(parents.nearest_first()[0]), upper)
            except OSError as error:
                raise from_os(error, "read the root of the parent snapshot") from error
        if kind is SnapshotKind.ACTIVE:
            (place / WORK).mkdir(mode=0o700)

    def mounts(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        """See `SnapshotDriver.mounts`."""
        if kind is SnapshotKind.ACTIVE:
            if not len(parents):
                return (BindMount(place / UPPER),)
            return (OverlayMount(self._lowers(parents), place / UPPER, place / WORK, self._options),)
        if not len(parents):
            return (BindMount(place / UPPER, readonly=True),)
        return self.shown(parents)

    def shown(self, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        """What to mount to look at committed snapshots."""
        lowers = self._lowers(parents)
        if len(lowers) == 1:
            return (BindMount(lowers[0], readonly=True),)
        return (OverlayMount(lowers, options=self._options),)

    def rebase(self, place: Path, parents: LayerStack[Path]) -> None:
        """See `SnapshotDriver.rebase`. A root that nobody has stated is the parent's."""
        if is_unstated(place / UPPER):
            copy_root_metadata(self.lower(parents.nearest_first()[0]), place / UPPER)

    def uncover(self, place: Path, paths: Sequence[LayerPath]) -> None:
        """See `SnapshotDriver.uncover`. Raises Denied where a directory keeps its owner out."""
        drop_whiteouts(OverlayLayer(place / UPPER, self._user_xattrs), paths)

    def seal(self, place: Path) -> None:
        """See `SnapshotDriver.seal`: it is as it was written."""

    def settle(self, place: Path) -> Sequence[Path]:
        """See `SnapshotDriver.settle`."""
        return [path for path in (place / WORK,) if path.exists()]

    def release(self, place: Path) -> None:
        """See `SnapshotDriver.release`: nothing is mounted here."""

    def usage(self, place: Path, kind: SnapshotKind, beneath: Usage | None = None) -> Usage:  # noqa: ARG002  # every kind has its upper directory
        """See `SnapshotDriver.usage`."""
        return measure(place / UPPER).usage if beneath is None else with_root(place / UPPER, beneath)

    def beneath(self, place: Path) -> Usage | None:
        """See `SnapshotDriver.beneath`."""
        return measure(place / UPPER).beneath

    def sink(
        self, place: Path, parents: LayerStack[Path] | None, policy: Policy | None, losses: Losses | None
    ) -> Sink[Losses]:
        """See `SnapshotDriver.sink`."""
        stack = None if parents is None else self._stack(parents)
        return OverlaySink(OverlayLayer(place / UPPER, self._user_xattrs), parents=stack, policy=policy, losses=losses)

    def tree(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> OpenTree:
        """See `SnapshotDriver.tree`. Raises Unsupported where a mount has left marks that only the kernel can follow."""
        stack = self._stack(parents)
        if kind is SnapshotKind.COMMITTED:
            stack = stack.with_top(OverlayLayer(self.lower(place), self._user_xattrs))
        elif kind is SnapshotKind.ACTIVE or not len(parents):
            stack = stack.with_top(OverlayLayer(place / UPPER, self._user_xattrs))
        return OverlayTree(stack)

    def lacking(self, place: Path, kind: SnapshotKind, *, parents: bool) -> str:  # noqa: ARG002  # all are alike
        """See `SnapshotDriver.lacking`."""
        return missing(place / UPPER)

    def examine(self, place: Path, step: Callable[[int], object]) -> None:
        """See `SnapshotDriver.examine`: nothing is sealed here."""

    def lower(self, place: Path) -> Path:
        """Where the files of a committed snapshot are."""
        return place / UPPER

    def _lowers(self, parents: LayerStack[Path]) -> tuple[Path, ...]:
        return tuple(self.lower(parent) for parent in parents.nearest_first())

    def _stack(self, parents: LayerStack[Path]) -> LayerStack[OverlayLayer]:
        return LayerStack(OverlayLayer(self.lower(parent), self._user_xattrs) for parent in parents.base_first())

    @cached_property
    def _user_xattrs(self) -> bool:
        """Whether the kernel lets this process mark directories with ``user.overlay.*`` only."""
        from lamella.host.mounting import has_trusted_xattrs

        return not has_trusted_xattrs()

    @cached_property
    def _options(self) -> tuple[str, ...]:
        """What each mount is given: nothing that lets an upper directory stand for more than itself."""
        options: list[str] = []
        if (_PARAMETERS / "index").exists():
            options.append("index=off")
        if self._user_xattrs:
            options.append("userxattr")  # under which the two below are off
        else:
            options += [f"{name}=off" for name in ("redirect_dir", "metacopy") if _is_on(name)]
        return tuple(options)


def _is_on(parameter: str) -> bool:
    try:
        return (_PARAMETERS / parameter).read_text().strip() == "Y"
    except OSError:
        return False
