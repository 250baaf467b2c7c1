# SPDX-License-Identifier: Apache-2.0
"""Snapshots as overlayfs directories, with the mounts of containerd's ``overlayfs``.

The upper directory is ``fs``; an active snapshot also has the work directory ``work``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

from lamella.changes.contracts import Sink
from lamella.changes.losses import Losses
from lamella.errors import from_os
from lamella.layers.overlay.layer import OverlayLayer, drop_whiteouts
from lamella.layers.overlay.sink import OverlaySink
from lamella.layers.overlay.tree import OverlayTree
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath
from lamella.store.contract import BindMount, Mount, OverlayMount, SnapshotKind, Usage
from lamella.store.snapshots.copy_tree import add_root_usage, copy_root_metadata, measure
from lamella.store.snapshots.driver import OpenTree, Purpose, describe_missing, is_unstated, make_root

UPPER: Final = "fs"
WORK: Final = "work"

_PARAMETERS: Final = Path("/sys/module/overlay/parameters")


class OverlayDriver:
    """Keeps the changes of each snapshot in an upper directory; the kernel merges them (overlayfs)."""

    name = "overlayfs"
    can_rebase = True

    def create(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path], purpose: Purpose) -> None:  # noqa: ARG002
        # The root gets the metadata of the parent's: a mount shows that of the nearest layer.
        upper = directory / UPPER
        make_root(upper)
        if len(parents) and kind is SnapshotKind.ACTIVE:
            try:
                copy_root_metadata(self.lower(parents.nearest_first()[0]), upper)
            except OSError as error:
                raise from_os(error, "read the root of the parent snapshot") from error
        if kind is SnapshotKind.ACTIVE:
            (directory / WORK).mkdir(mode=0o700)

    def mounts(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        if kind is SnapshotKind.ACTIVE:
            if not len(parents):
                return (BindMount(directory / UPPER),)
            return (OverlayMount(self._lowers(parents), directory / UPPER, directory / WORK, self._options),)
        if not len(parents):
            return (BindMount(directory / UPPER, readonly=True),)
        return self.read_only_mounts(parents)

    def read_only_mounts(self, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        """Return the read-only mounts of committed snapshots."""
        lowers = self._lowers(parents)
        if len(lowers) == 1:
            return (BindMount(lowers[0], readonly=True),)
        return (OverlayMount(lowers, options=self._options),)

    def rebase(self, directory: Path, parents: LayerStack[Path]) -> None:
        if is_unstated(directory / UPPER):  # the parent's root shows
            copy_root_metadata(self.lower(parents.nearest_first()[0]), directory / UPPER)

    def remove_whiteouts(self, directory: Path, paths: Sequence[LayerPath]) -> None:
        drop_whiteouts(OverlayLayer(directory / UPPER, self._user_xattrs), paths)

    def commit(self, directory: Path) -> None: ...

    def active_directories(self, directory: Path) -> Sequence[Path]:
        return [path for path in (directory / WORK,) if path.exists()]

    def release(self, directory: Path) -> None: ...

    def usage(self, directory: Path, kind: SnapshotKind, below_root: Usage | None = None) -> Usage:  # noqa: ARG002
        return measure(directory / UPPER).usage if below_root is None else add_root_usage(directory / UPPER, below_root)

    def usage_below_root(self, directory: Path) -> Usage | None:
        return measure(directory / UPPER).below_root

    def sink(
        self, directory: Path, parents: LayerStack[Path] | None, policy: Policy | None, losses: Losses | None
    ) -> Sink[Losses]:
        stack = None if parents is None else self._stack(parents)
        return OverlaySink(
            OverlayLayer(directory / UPPER, self._user_xattrs), parents=stack, policy=policy, losses=losses
        )

    def tree(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> OpenTree:
        stack = self._stack(parents)
        if kind is SnapshotKind.COMMITTED:
            stack = stack.with_top(OverlayLayer(self.lower(directory), self._user_xattrs))
        elif kind is SnapshotKind.ACTIVE or not len(parents):
            stack = stack.with_top(OverlayLayer(directory / UPPER, self._user_xattrs))
        return OverlayTree(stack)

    def find_missing(self, directory: Path, kind: SnapshotKind, *, has_parents: bool) -> str:  # noqa: ARG002
        return describe_missing(directory / UPPER)

    def verify(self, directory: Path, step: Callable[[int], object]) -> None: ...

    def lower(self, directory: Path) -> Path:
        """Return the directory with the files of a committed snapshot."""
        return directory / UPPER

    def _lowers(self, parents: LayerStack[Path]) -> tuple[Path, ...]:
        return tuple(self.lower(parent) for parent in parents.nearest_first())

    def _stack(self, parents: LayerStack[Path]) -> LayerStack[OverlayLayer]:
        return LayerStack(OverlayLayer(self.lower(parent), self._user_xattrs) for parent in parents.base_first())

    @cached_property
    def _user_xattrs(self) -> bool:
        """Whether this process can set ``user.overlay.*`` attributes only, not ``trusted.overlay.*``."""
        from lamella.host.mounting import has_trusted_xattrs

        return not has_trusted_xattrs()

    @cached_property
    def _options(self) -> tuple[str, ...]:
        """The mount options. Features that refer from an upper directory to other files are off."""
        options: list[str] = []
        if (_PARAMETERS / "index").exists():
            options.append("index=off")
        if self._user_xattrs:
            options.append("userxattr")  # which turns the two below off
        else:
            options += [f"{name}=off" for name in ("redirect_dir", "metacopy") if _is_on(name)]
        return tuple(options)


def _is_on(parameter: str) -> bool:
    try:
        return (_PARAMETERS / parameter).read_text().strip() == "Y"
    except OSError:
        return False
