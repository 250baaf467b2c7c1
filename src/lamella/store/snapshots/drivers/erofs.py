# SPDX-License-Identifier: Apache-2.0
"""Snapshots whose committed layers are EROFS images, merged by the kernel's overlay (containerd's ``erofs``).

The sink writes a layer from its tar straight into its image (`layers.erofs.overlay_sink`), ``applied/layer.erofs``
until the commit. Other writers use an upper directory as with the overlay driver, and the commit makes the image from
it (`layers.erofs.from_directory`). Both store whiteouts and opaque directories in overlayfs' form. An image is mounted
at ``mnt`` of its directory when a snapshot above it needs mounts, and unmounted when its snapshot is removed. Only
mounting needs privileges. With verity, the kernel checks images as they are read (`verity`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from lamella.changes.contracts import Sink
from lamella.changes.losses import Losses
from lamella.errors import Conflict, from_os
from lamella.host.durability import durable_outputs
from lamella.layers.erofs.from_directory import write_image
from lamella.layers.erofs.overlay_sink import ErofsUpperSink, copy_root_metadata, drop_whiteouts, is_root_unstated
from lamella.layers.erofs.tree import ErofsLayer, ErofsStack
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath
from lamella.store.contract import ErofsMount, Mount, SnapshotKind, Usage
from lamella.store.mounting import mount_all, unmount
from lamella.store.snapshots.directories import locked
from lamella.store.snapshots.driver import OpenTree, Purpose, describe_missing, make_root
from lamella.store.snapshots.drivers.overlay import UPPER, WORK, OverlayDriver
from lamella.store.snapshots.drivers.verity import (
    check_seal,
    hash_files,
    open_verified,
    parse_verity,
    release,
    seal,
    unseal,
    verify_seal,
)

IMAGE: Final = "layer.erofs"
MOUNT_POINT: Final = "mnt"
APPLIED: Final = "applied"
"""The directory of an active snapshot that holds the image of its layer."""


class ErofsDriver(OverlayDriver):
    """Keeps each committed layer in an EROFS image."""

    name = "erofs"

    def __init__(self, verity: str = "") -> None:
        self._verity = parse_verity(verity)

    def create(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path], purpose: Purpose) -> None:
        if purpose is not Purpose.APPLY:
            self.mounts(directory, kind, parents)  # mounts the parents: may fail, and so comes before the row
            super().create(directory, kind, parents, purpose)
        else:
            make_root(directory / UPPER)
            (directory / WORK).mkdir(mode=0o700)
        (directory / MOUNT_POINT).mkdir(mode=0o700)

    def mounts(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        if kind is SnapshotKind.ACTIVE and _applied(directory).exists():
            raise Conflict(
                "this snapshot holds the image of a layer, which is not writable",
                hint="commit it, and prepare another snapshot on it",
            )
        return super().mounts(directory, kind, parents)

    def rebase(self, directory: Path, parents: LayerStack[Path]) -> None:
        applied = _applied(directory)
        if not applied.exists():
            super().rebase(directory, parents)
        elif is_root_unstated(ErofsLayer(applied)):
            copy_root_metadata(ErofsLayer(applied), _stack(LayerStack([parents.nearest_first()[0]])))

    def remove_whiteouts(self, directory: Path, paths: Sequence[LayerPath]) -> None:
        applied = _applied(directory)
        if applied.exists():
            drop_whiteouts(ErofsLayer(applied), paths)
        else:
            super().remove_whiteouts(directory, paths)

    def read_only_mounts(self, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        if len(parents) == 1:
            image = parents.nearest_first()[0] / IMAGE
            check_seal(image, self._verity)
            return (ErofsMount(self._open_verified(image)),)
        return super().read_only_mounts(parents)

    def commit(self, directory: Path) -> None:
        image, unfinished = directory / IMAGE, directory / f"{IMAGE}.new"
        try:
            unfinished.unlink(missing_ok=True)
            unseal(directory)
            try:
                self._write_image(directory, unfinished)
                os.rename(unfinished, image)
            finally:
                unfinished.unlink(missing_ok=True)  # rename(2) does nothing if both names are links to one file
        except OSError as error:
            raise from_os(error, f"make the image {os.fspath(image)!r}") from error

    def _write_image(self, directory: Path, unfinished: Path) -> None:
        """Write the image of an active snapshot to ``unfinished``, durable and sealed."""
        if _applied(directory).exists():
            if os.listdir(directory / UPPER):
                raise Conflict("this snapshot holds the image of a layer and other files")
            os.link(_applied(directory), unfinished)
        else:
            with durable_outputs(False):  # synced below
                write_image(directory / UPPER, unfinished)
        descriptor = os.open(unfinished, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, 0o400)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if self._verity is not None:
            seal(unfinished, self._verity)

    def active_directories(self, directory: Path) -> Sequence[Path]:
        return [path for path in (directory / UPPER, directory / WORK, directory / APPLIED) if path.exists()]

    def release(self, directory: Path) -> None:
        if _is_mounted(directory):
            unmount(directory / MOUNT_POINT, lazy=True)
        release(directory / IMAGE)

    def usage(self, directory: Path, kind: SnapshotKind, below_root: Usage | None = None) -> Usage:  # noqa: ARG002
        used = Usage(0, 0) if kind is SnapshotKind.COMMITTED else super().usage(directory, kind)
        try:
            if kind is SnapshotKind.COMMITTED:
                files = [directory / IMAGE, *hash_files(directory)]
            else:
                files = [path for path in (_applied(directory),) if path.exists()]
            return Usage(used.size + sum(os.stat(path).st_blocks for path in files) * 512, used.inodes + len(files))
        except OSError as error:
            raise from_os(error, f"measure the image in {os.fspath(directory)!r}") from error

    def usage_below_root(self, directory: Path) -> Usage | None:  # noqa: ARG002
        return None

    def sink(
        self, directory: Path, parents: LayerStack[Path] | None, policy: Policy | None, losses: Losses | None
    ) -> Sink[Losses]:
        applied = _applied(directory)
        if applied.exists() or os.listdir(directory / UPPER):
            raise Conflict(f"the snapshot in {os.fspath(directory)!r} is not empty, and takes one layer only")
        applied.parent.mkdir(mode=0o700, exist_ok=True)
        stack = None if parents is None else _stack(parents)
        return ErofsUpperSink(ErofsLayer(applied), parents=stack, policy=policy, losses=losses)

    def tree(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> OpenTree:
        # Images are read directly: that needs no privileges and no mounts.
        images = _stack(parents)
        if kind is SnapshotKind.COMMITTED:
            images = images.with_top(ErofsLayer(directory / IMAGE))
        elif kind is SnapshotKind.ACTIVE and _applied(directory).exists():
            images = images.with_top(ErofsLayer(_applied(directory)))
        elif kind is SnapshotKind.ACTIVE or not len(images):
            return super().tree(directory, kind, parents)
        return ErofsStack(images)

    def find_missing(self, directory: Path, kind: SnapshotKind, *, has_parents: bool) -> str:
        if kind is SnapshotKind.COMMITTED:
            return describe_missing(directory / IMAGE)
        return super().find_missing(directory, kind, has_parents=has_parents)

    def verify(self, directory: Path, step: Callable[[int], object]) -> None:
        verify_seal(directory / IMAGE, step)

    def lower(self, directory: Path) -> Path:
        mount_point = directory / MOUNT_POINT
        if not _is_mounted(directory):
            try:
                with locked(directory):
                    if not _is_mounted(directory):
                        check_seal(directory / IMAGE, self._verity)
                        mount_all((ErofsMount(open_verified(directory / IMAGE)),), mount_point)
            except OSError as error:
                raise from_os(error, f"mount the layer {os.fspath(directory)!r}") from error
        return mount_point

    def _open_verified(self, image: Path) -> Path:
        """`open_verified` under the lock of the directory."""
        try:
            with locked(image.parent):
                return open_verified(image)
        except OSError as error:
            raise from_os(error, f"open the image {os.fspath(image)!r}") from error


def _is_mounted(directory: Path) -> bool:
    """Return whether the image is mounted in this process's mount namespace: its device number differs."""
    try:
        return os.lstat(directory / MOUNT_POINT).st_dev != os.lstat(directory).st_dev
    except FileNotFoundError:
        return False


def _applied(directory: Path) -> Path:
    """Return the path of the image that `sink` writes."""
    return directory / APPLIED / IMAGE


def _stack(places: LayerStack[Path]) -> LayerStack[ErofsLayer]:
    return LayerStack(ErofsLayer(directory / IMAGE) for directory in places.base_first())
