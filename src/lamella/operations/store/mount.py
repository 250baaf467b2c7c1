# SPDX-License-Identifier: Apache-2.0
"""Images of a store shown at a directory, as long as somebody wants to look.

What is mounted is a snapshot of its own over those of the image, under a lease that has the name of the directory. So
it is known again by whoever comes to unmount it, also after the machine was started anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from lamella.changes.job import Job
from lamella.errors import AlreadyExists, Conflict, InvalidInput, LamellaError, NotFound
from lamella.store.contract import SnapshotKind, SnapshotRecord
from lamella.store.gc.labels import SNAPSHOTS
from lamella.store.locks import exclusive_lock
from lamella.store.mounting import is_mounted, mount_all, unmount
from lamella.store.snapshots.kinds import canonical

if TYPE_CHECKING:
    from lamella.oci.platform import Platform
    from lamella.store.snapshots.snapshotter import LocalSnapshots
    from lamella.store.store import LocalNamespace, Store

PREFIX: Final = "mount:"
"""Before the directory, in the name of the lease and in the key of the snapshot."""


class MountedImage(Struct, frozen=True):
    """An image that is shown at a directory."""

    directory: Path
    image: str
    snapshotter: str
    key: str
    """Of the snapshot."""
    writable: bool
    resumed: bool
    """Whether the snapshot was there already, with what was changed in it before."""


def mount_image(
    space: LocalNamespace,
    image: str,
    directory: Path,
    *,
    writable: bool = False,
    snapshotter: str | None = None,
    platform: str | Platform | None = None,
    job: Job | None = None,
) -> MountedImage:
    """Mount the image that ``image`` names in ``space`` at ``directory``, unpacked first where it is not.

    With ``writable``, what is changed there is kept until `unmount_image`; if the mount has gone otherwise, as it does
    when the machine is started anew, mounting it again brings the changes back. Raises NotFound, InvalidInput, Conflict
    (something is mounted there; changes of another image would be lost), Denied, Unsupported, and as unpacking does.
    """
    from lamella.operations.store.unpacked import unpacked_image

    where = Path(os.path.realpath(directory))
    kind = canonical(snapshotter or "overlayfs")
    _check_directory(directory, where)
    with exclusive_lock(space.store.root, f"mount {where}", None if job is None else job.cancel):
        if is_mounted(where):
            raise Conflict(f"something is mounted at {os.fspath(where)!r}", hint=f"lamella umount {directory}")
        key = f"{PREFIX}{where}"
        try:
            space.leases.create(key)
        except AlreadyExists:
            pass  # of a mount that went with the machine or its namespace
        leased = space.store.namespace(space.name, key)
        old = _left(leased, key)
        resumed = False
        try:
            found = unpacked_image(leased, image, kind, platform=platform, job=job)
            snapshots = leased.snapshots(kind)
            if old is not None:
                resumed = _settled(old, snapshots, found.top, writable, where)
            if not resumed:
                (snapshots.prepare if writable else snapshots.view)(key, found.top)
            mount_all(snapshots.mounts(key), where)
        except BaseException as error:
            if old is None or old[1].kind is not SnapshotKind.ACTIVE:  # what was changed before is not lost
                try:
                    _drop(leased, key)
                except LamellaError as failure:
                    error.add_note(f"the lease {key!r} is left: {failure}")
            raise
    return MountedImage(where, found.name, kind, key, writable, resumed)


def unmount_image(store: Store, directory: Path, *, lazy: bool = False) -> None:
    """Unmount what `mount_image` has mounted at ``directory``, and drop what was changed there.

    ``lazy`` does so even while it is in use. Also where only the mount is gone. Raises NotFound where the store has
    mounted nothing there, Conflict (in use), Denied.
    """
    where = Path(os.path.realpath(directory))
    key = f"{PREFIX}{where}"
    namespaces = [namespace for namespace, lease in store.leases(key) if lease.id == key]
    if not namespaces:
        if is_mounted(where):
            raise NotFound(
                f"what is mounted at {os.fspath(where)!r} is not of the store {os.fspath(store.root)!r}",
                hint="name its store with --root, or use umount(8)",
            )
        raise NotFound(f"nothing is mounted at {os.fspath(where)!r}")
    if is_mounted(where):
        unmount(where, lazy=lazy)
    for namespace in namespaces:
        _drop(store.namespace(namespace, key), key)


def _check_directory(directory: Path, where: Path) -> None:
    if not where.exists():
        raise NotFound(f"the directory {os.fspath(directory)!r} is not there", hint=f"mkdir -p {directory}")
    if not where.is_dir():
        raise InvalidInput(f"{os.fspath(directory)!r} is not a directory")


def _held(space: LocalNamespace, key: str) -> Iterator[LocalSnapshots]:
    """The snapshotters that have a snapshot under the lease ``key``."""
    for resource in space.leases.resources(key):
        if resource.type.startswith(SNAPSHOTS) and resource.id == key:
            yield space.snapshots(resource.type.removeprefix(SNAPSHOTS))


def _left(space: LocalNamespace, key: str) -> tuple[LocalSnapshots, SnapshotRecord] | None:
    """The snapshot that an earlier mount has left."""
    for snapshots in _held(space, key):
        try:
            return snapshots, snapshots.stat(key)
        except NotFound:
            pass
    return None


def _settled(
    old: tuple[LocalSnapshots, SnapshotRecord], snapshots: LocalSnapshots, parent: str, writable: bool, where: Path
) -> bool:
    """Whether what is left is what is wanted; a view that is not goes. Raises Conflict for one with changes."""
    before, record = old
    same = before.name == snapshots.name and record.parent == parent
    if same and writable == (record.kind is SnapshotKind.ACTIVE):
        return True
    if record.kind is SnapshotKind.ACTIVE:
        how = "without --rw" if same else "with another image or snapshotter"
        raise Conflict(
            f"{os.fspath(where)!r} was mounted with --rw before, and what was changed in it is still there; "
            f"it is not mounted {how} now",
            hint=f"'lamella umount {where}' drops the changes",
        )
    before.remove(record.name)
    return False


def _drop(space: LocalNamespace, key: str) -> None:
    for snapshots in _held(space, key):
        try:
            snapshots.remove(key)
        except NotFound:
            pass
    try:
        space.leases.delete(key)
    except NotFound:
        pass
