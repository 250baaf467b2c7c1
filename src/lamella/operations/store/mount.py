# SPDX-License-Identifier: Apache-2.0
"""Mounts of images of a store.

A mount shows a snapshot above those of the image, under a lease that is named after the directory. So `unmount_image`
finds it, after a reboot too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from lamella.changes.job import Job
from lamella.errors import AlreadyExists, Conflict, InvalidInput, LamellaError, NotFound
from lamella.store.contract import SnapshotKind, SnapshotRecord, Snapshotter
from lamella.store.locks import exclusive_lock
from lamella.store.metadata.leases import leased_snapshotters, remove_leased_snapshot
from lamella.store.mounting import is_mounted, mount_all, unmount
from lamella.store.snapshots.kinds import canonical

if TYPE_CHECKING:
    from lamella.oci.platform import Platform
    from lamella.store.store import LocalNamespace, Store

PREFIX: Final = "mount:"
"""Prefix of the directory in the id of the lease and in the key of the snapshot."""


class MountedImage(Struct, frozen=True):
    """An image that is mounted at a directory."""

    directory: Path
    image: str
    snapshotter: str
    key: str
    """The key of the snapshot."""
    writable: bool
    resumed: bool
    """Whether an earlier snapshot was mounted again, with its changes."""


def mount_image(
    namespace: LocalNamespace,
    image: str,
    directory: Path,
    *,
    writable: bool = False,
    snapshotter: str | None = None,
    platform: str | Platform | None = None,
    job: Job | None = None,
) -> MountedImage:
    """Mount the image ``image`` at ``directory``; unpack it first if necessary.

    The changes of a ``writable`` mount are kept until `unmount_image`: mounting again after a reboot brings them back.
    Raises NotFound, InvalidInput, Conflict (a mount point already, or changes of another image would be lost), Denied,
    Unsupported, and as `unpack_image`.
    """
    from lamella.operations.store.images import unpack_by_name

    job = job or Job()
    where = Path(os.path.realpath(directory))
    kind = canonical(snapshotter or "overlayfs")
    _check_directory(directory, where)
    with exclusive_lock(namespace.store.root, f"mount {where}", job.cancel):
        if is_mounted(where):
            raise Conflict(f"{os.fspath(where)!r} is a mount point already", hint=f"lamella umount {directory}")
        key = f"{PREFIX}{where}"
        try:
            namespace.leases.create(key)
        except AlreadyExists:
            pass  # left by a mount that ended with a reboot or its mount namespace
        leased = namespace.under(key)
        old = _find_earlier(leased, key)
        resumed = False
        try:
            found = unpack_by_name(leased, image, kind, platform=platform, job=job)
            snapshots = leased.snapshots(kind)
            if old is not None:
                resumed = _reuse(old, snapshots, found.top, writable, where)
            if not resumed:
                (snapshots.prepare if writable else snapshots.view)(key, found.top)
            mount_all(snapshots.mounts(key), where)
        except BaseException as error:
            if old is None or old[1].kind is not SnapshotKind.ACTIVE:  # keep earlier changes
                try:
                    remove_leased_snapshot(leased, key)
                except LamellaError as failure:
                    error.add_note(f"the lease {key!r} remains: {failure}")
            raise
    return MountedImage(where, found.name, kind, key, writable, resumed)


def unmount_image(store: Store, directory: Path, *, lazy: bool = False) -> None:
    """Unmount what `mount_image` has mounted at ``directory``, and drop its changes.

    ``lazy`` detaches a mount that is in use. A mount that has ended already is cleaned up. Raises NotFound (not mounted
    by this store), Conflict (in use), Denied.
    """
    where = Path(os.path.realpath(directory))
    key = f"{PREFIX}{where}"
    names = [name for name, lease in store.leases(key) if lease.id == key]
    if not names:
        if is_mounted(where):
            raise NotFound(
                f"the store {os.fspath(store.root)!r} has not mounted {os.fspath(where)!r}",
                hint="name another store with --root, or use umount(8)",
            )
        raise NotFound(f"nothing is mounted at {os.fspath(where)!r}")
    if is_mounted(where):
        unmount(where, lazy=lazy)
    for name in names:
        remove_leased_snapshot(store.namespace(name, key), key)


def _check_directory(directory: Path, where: Path) -> None:
    if not where.exists():
        raise NotFound(f"the directory {os.fspath(directory)!r} does not exist", hint=f"mkdir -p {directory}")
    if not where.is_dir():
        raise InvalidInput(f"{os.fspath(directory)!r} is not a directory")


def _find_earlier(namespace: LocalNamespace, key: str) -> tuple[Snapshotter, SnapshotRecord] | None:
    """Return the snapshot of an earlier mount; None if there is none."""
    for snapshots in leased_snapshotters(namespace, key):
        try:
            return snapshots, snapshots.stat(key)
        except NotFound:
            pass
    return None


def _reuse(
    old: tuple[Snapshotter, SnapshotRecord], snapshots: Snapshotter, parent: str, writable: bool, where: Path
) -> bool:
    """Return whether the earlier snapshot fits; remove a view that does not. Raises Conflict (it has changes)."""
    before, record = old
    same = before.name == snapshots.name and record.parent == parent
    if same and writable == (record.kind is SnapshotKind.ACTIVE):
        return True
    if record.kind is SnapshotKind.ACTIVE:
        how = "without --rw" if same else "with another image or snapshotter"
        raise Conflict(
            f"{os.fspath(where)!r} has changes of an earlier mount with --rw, and cannot be mounted {how}",
            hint=f"'lamella umount {where}' drops the changes",
        )
    before.remove(record.name)
    return False
