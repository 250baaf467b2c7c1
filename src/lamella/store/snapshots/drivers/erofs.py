# SPDX-License-Identifier: Apache-2.0
"""Snapshots whose committed layers are EROFS images, laid over each other by the kernel.

A layer goes from its tar into its image as it comes (`layers.erofs.overlay_sink`), ``applied/layer.erofs`` of a place
until it is committed. For whatever else writes to an active snapshot it has an upper directory as `overlay` has it, of
which committing makes the image (`lamella.layers.erofs.from_directory`). Either way whiteouts and opaque directories
are in the overlay's form. Images are mounted at ``mnt`` of their places when something lies on them that is to be
mounted, and let go when the snapshot is removed. Mounting takes the rights to do so, all else does not. Where it is
asked for, the kernel checks the images as they are read (`verity`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from lamella.changes.contracts import Sink
from lamella.changes.losses import Losses
from lamella.errors import Conflict, from_os
from lamella.layers.erofs.from_directory import write_image
from lamella.layers.erofs.overlay_sink import ErofsUpperSink, has_root_unstated, with_root, without_whiteouts
from lamella.layers.erofs.tree import ErofsLayer, ErofsStack
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath
from lamella.store.contract import ErofsMount, Mount, SnapshotKind, Usage
from lamella.store.mounting import mount_all, unmount
from lamella.store.snapshots.dirs import locked
from lamella.store.snapshots.driver import OpenTree, Use, missing, new_root
from lamella.store.snapshots.drivers.overlay import UPPER, WORK, OverlayDriver
from lamella.store.snapshots.drivers.verity import (
    check_seal,
    checked,
    examine,
    hash_files,
    parse_verity,
    release,
    seal,
    unseal,
)

IMAGE: Final = "layer.erofs"
SHOWN: Final = "mnt"
APPLIED: Final = "applied"
"""The directory in a place of an active snapshot that has the image of the layer that was applied to it."""


class ErofsDriver(OverlayDriver):
    """Each committed snapshot is an image."""

    name = "erofs"

    def __init__(self, verity: str = "") -> None:
        self._verity = parse_verity(verity)

    def make(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path], use: Use) -> None:
        """See `SnapshotDriver.make`. Raises Denied, Unsupported where the parents cannot be mounted, and are to be."""
        if use is not Use.APPLY:
            self.mounts(place, kind, parents)  # mounts them now, before anybody is told that there is a snapshot
            super().make(place, kind, parents, use)
        else:
            new_root(place / UPPER)
            (place / WORK).mkdir(mode=0o700)
        (place / SHOWN).mkdir(mode=0o700)

    def mounts(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        """See `SnapshotDriver.mounts`. Raises Conflict for an active snapshot that a layer was applied to."""
        if kind is SnapshotKind.ACTIVE and _applied(place).exists():
            raise Conflict(
                "a layer was applied to this snapshot, and nothing can be written to an image",
                hint="commit it, and prepare another on it",
            )
        return super().mounts(place, kind, parents)

    def rebase(self, place: Path, parents: LayerStack[Path]) -> None:
        """See `SnapshotDriver.rebase`. A root that nobody has stated is the parent's."""
        applied = _applied(place)
        if not applied.exists():
            super().rebase(place, parents)
        elif has_root_unstated(ErofsLayer(applied)):
            with_root(ErofsLayer(applied), _stack(LayerStack([parents.nearest_first()[0]])))

    def uncover(self, place: Path, paths: Sequence[LayerPath]) -> None:
        """See `SnapshotDriver.uncover`."""
        applied = _applied(place)
        if applied.exists():
            without_whiteouts(ErofsLayer(applied), paths)
        else:
            super().uncover(place, paths)

    def shown(self, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        """See `OverlayDriver.shown`. The image of a single one is mounted as it is."""
        if len(parents) == 1:
            image = parents.nearest_first()[0] / IMAGE
            check_seal(image, self._verity)
            return (ErofsMount(self._checked(image)),)
        return super().shown(parents)

    def seal(self, place: Path) -> None:
        """See `SnapshotDriver.seal`. Raises Conflict, Unsupported, Exhausted."""
        image, unfinished = place / IMAGE, place / f"{IMAGE}.new"
        try:
            unfinished.unlink(missing_ok=True)
            unseal(place)
            try:
                self._write(place, unfinished)
                os.rename(unfinished, image)
            finally:
                unfinished.unlink(missing_ok=True)  # also where both are one file already, and nothing was renamed
        except OSError as error:
            raise from_os(error, f"make the image {os.fspath(image)!r}") from error

    def _write(self, place: Path, unfinished: Path) -> None:
        """Have the image of an active snapshot under another name, on the disk and sealed."""
        if _applied(place).exists():
            if os.listdir(place / UPPER):
                raise Conflict("a layer was applied to this snapshot, and something else written to it")
            os.link(_applied(place), unfinished)
        else:
            write_image(place / UPPER, unfinished)
        descriptor = os.open(unfinished, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, 0o400)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if self._verity is not None:
            seal(unfinished, self._verity)

    def settle(self, place: Path) -> Sequence[Path]:
        """See `SnapshotDriver.settle`."""
        return [path for path in (place / UPPER, place / WORK, place / APPLIED) if path.exists()]

    def release(self, place: Path) -> None:
        """See `SnapshotDriver.release`."""
        if _is_shown(place):
            unmount(place / SHOWN, lazy=True)
        release(place / IMAGE)

    def usage(self, place: Path, kind: SnapshotKind, beneath: Usage | None = None) -> Usage:  # noqa: ARG002
        """See `SnapshotDriver.usage`: of a committed one that of its image, and of what seals it."""
        used = Usage(0, 0) if kind is SnapshotKind.COMMITTED else super().usage(place, kind)
        try:
            if kind is SnapshotKind.COMMITTED:
                files = [place / IMAGE, *hash_files(place)]
            else:
                files = [path for path in (_applied(place),) if path.exists()]
            return Usage(used.size + sum(os.stat(path).st_blocks for path in files) * 512, used.inodes + len(files))
        except OSError as error:
            raise from_os(error, f"measure the image in {os.fspath(place)!r}") from error

    def beneath(self, place: Path) -> Usage | None:  # noqa: ARG002
        """See `SnapshotDriver.beneath`: there is no image yet."""
        return None

    def sink(
        self, place: Path, parents: LayerStack[Path] | None, policy: Policy | None, losses: Losses | None
    ) -> Sink[Losses]:
        """See `SnapshotDriver.sink`. Nothing is mounted for it."""
        applied = _applied(place)
        if applied.exists() or os.listdir(place / UPPER):
            raise Conflict(f"the snapshot in {os.fspath(place)!r} is not empty: it takes a single layer")
        applied.parent.mkdir(mode=0o700, exist_ok=True)
        stack = None if parents is None else _stack(parents)
        return ErofsUpperSink(ErofsLayer(applied), parents=stack, policy=policy, losses=losses)

    def tree(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> OpenTree:
        """See `SnapshotDriver.tree`. What is in images is read from them, which takes no rights and mounts nothing."""
        images = _stack(parents)
        if kind is SnapshotKind.COMMITTED:
            images = images.with_top(ErofsLayer(place / IMAGE))
        elif kind is SnapshotKind.ACTIVE and _applied(place).exists():
            images = images.with_top(ErofsLayer(_applied(place)))
        elif kind is SnapshotKind.ACTIVE or not len(images):
            return super().tree(place, kind, parents)
        return ErofsStack(images)

    def lacking(self, place: Path, kind: SnapshotKind, *, parents: bool) -> str:
        """See `SnapshotDriver.lacking`."""
        if kind is SnapshotKind.COMMITTED:
            return missing(place / IMAGE)
        return super().lacking(place, kind, parents=parents)

    def examine(self, place: Path, step: Callable[[int], object]) -> None:
        """See `SnapshotDriver.examine`."""
        examine(place / IMAGE, step)

    def lower(self, place: Path) -> Path:
        """See `OverlayDriver.lower`. Mounts the image where that has not been done."""
        shown = place / SHOWN
        if not _is_shown(place):
            try:
                with locked(place):
                    if not _is_shown(place):
                        check_seal(place / IMAGE, self._verity)
                        mount_all((ErofsMount(checked(place / IMAGE)),), shown)
            except OSError as error:
                raise from_os(error, f"mount the layer {os.fspath(place)!r}") from error
        return shown

    def _checked(self, image: Path) -> Path:
        """See `checked`; also where several ask at once."""
        try:
            with locked(image.parent):
                return checked(image)
        except OSError as error:
            raise from_os(error, f"open the image {os.fspath(image)!r}") from error


def _is_shown(place: Path) -> bool:
    """Whether the image is mounted, as this process sees it: another file system begins there."""
    try:
        return os.lstat(place / SHOWN).st_dev != os.lstat(place).st_dev
    except FileNotFoundError:
        return False


def _applied(place: Path) -> Path:
    """The image of the layer that was applied to an active snapshot, if one was."""
    return place / APPLIED / IMAGE


def _stack(places: LayerStack[Path]) -> LayerStack[ErofsLayer]:
    return LayerStack(ErofsLayer(place / IMAGE) for place in places.base_first())
