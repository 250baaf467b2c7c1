# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a namespace: keys, labels and leases in the database, files in a driver's directories.

A row is inserted after its directory exists and deleted before its directory is removed, so that no row ever names a
missing directory. Long work (copying a parent, writing an image, measuring) happens outside of database transactions.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias

from msgspec.structs import replace

from lamella.changes.contracts import Sink
from lamella.changes.losses import Losses
from lamella.errors import AlreadyExists, Conflict, Denied, NotFound, Unsupported, from_os
from lamella.host.durability import sync_file_system
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath
from lamella.store.contract import NO_LABELS, Labels, Mount, SnapshotKind, SnapshotRecord, Usage
from lamella.store.disk_layout import TRASH, snapshotter_path
from lamella.store.gc.labels import snapshot_type
from lamella.store.metadata.filters import parse_filters
from lamella.store.metadata.labels import check_key, encode_labels, merge_labels, normalize_labels
from lamella.store.metadata.leases import add_to_lease
from lamella.store.metadata.namespaces import ensure_namespace
from lamella.store.snapshots.directories import SnapshotDirectories, locked
from lamella.store.snapshots.driver import OpenTree, Purpose, SnapshotDriver, SnapshotTarget
from lamella.store.snapshots.kinds import SNAPSHOTTERS, canonical, snapshot_driver
from lamella.store.snapshots.table import SnapshotRow, SnapshotTable, field_of

if TYPE_CHECKING:
    from lamella.store.context import StoreContext

SNAPSHOT_REF: Final = "containerd.io/snapshot.ref"
"""Label of an active snapshot: the name that the client will commit it as. If that name exists, `prepare` raises
AlreadyExists, and the client skips the layer."""

UNPACKING: Final = "extract"
"""Part of the key of a snapshot that a client prepares to unpack a layer into; a convention of containerd."""

Created: TypeAlias = tuple[int, SnapshotKind, LayerStack[Path]]
"""Number and kind of a new snapshot, and the directories of its parents."""


def open_snapshotter(name: str, context: StoreContext, *, verity: str = "") -> LocalSnapshots:
    """Return the snapshotter ``name`` (`SNAPSHOTTERS` or an alias) of a namespace; creates no files.

    ``verity`` (``fs-verity`` or ``dm-verity``) makes the kernel check committed layers as they are read. Raises
    InvalidInput (unknown snapshotter), Unsupported (not on this system, unknown ``verity``).
    """
    name = canonical(name)
    return LocalSnapshots(context, snapshot_driver(name, snapshotter_path(context.root, name), verity))


class LocalSnapshots:
    """The snapshots of one driver in one namespace (`UnpackingSnapshotter`)."""

    def __init__(self, context: StoreContext, driver: SnapshotDriver) -> None:
        self._database = context.database
        self._namespace = context.namespace
        self._lease = context.lease
        self._clock = context.clock
        self._readonly = context.readonly
        self._driver = driver
        self.name = driver.name
        """containerd's name of the snapshotter."""
        self._type = snapshot_type(driver.name)
        self._table = SnapshotTable(context.namespace, driver.name)
        root = snapshotter_path(context.root, driver.name)
        self._directories = SnapshotDirectories(root, context.root / TRASH, driver.release)

    def stat(self, key: str) -> SnapshotRecord:
        with self._database.read() as connection:
            return self._table.get(connection, key).record

    def list(self, filters: Sequence[str] = ()) -> list[SnapshotRecord]:
        """Return the records that pass any of ``filters``, by name. Raises InvalidInput.

        Filters know ``name``, ``parent``, ``kind`` and ``labels.KEY``.
        """
        wanted = parse_filters(filters)
        with self._database.read() as connection:
            records = self._table.records(connection)
        return [record for record in records if wanted.matches(partial(field_of, record))]

    def usage(self, key: str) -> Usage:
        """Return the usage of a snapshot: measured now, or at the commit of a committed one. Raises NotFound."""
        with self._database.read() as connection:
            row = self._table.get(connection, key)
        if row.usage is not None:
            return row.usage
        return self._driver.usage(self._directories.path(row.number), row.record.kind)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """Return the mounts of a view or an active snapshot.

        Raises NotFound, Conflict (committed), Denied and Unsupported if layers must be mounted first and cannot be.
        """
        with self._database.read() as connection:
            row = self._table.get(connection, key)
            parents = self._chain(connection, row.parent)
        if row.record.kind is SnapshotKind.COMMITTED:
            raise Conflict(f"snapshot {key!r} is committed and has no mounts", hint="make a view of it, and mount that")
        return self._driver.mounts(self._directories.path(row.number), row.record.kind, parents)

    def update(self, key: str, labels: Labels, fields: Sequence[str] = ()) -> SnapshotRecord:
        self._check_writable()
        with self._database.write() as connection:
            row = self._table.get(connection, key)
            changed = merge_labels(row.record.labels, labels, fields)
            connection.execute(
                "UPDATE snapshot SET labels = ?, updated = ? WHERE number = ?",
                (encode_labels(changed), self._clock(), row.number),
            )
            return self._table.get(connection, key).record

    def prepare(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> tuple[Mount, ...]:
        """Make an active snapshot; return its mounts.

        Raises AlreadyExists (also if the snapshot that the label `SNAPSHOT_REF` names is committed), NotFound
        (parent), InvalidInput (parent not committed).
        """
        return self._mounts_of(self._create(SnapshotKind.ACTIVE, key, parent, labels))

    def prepare_layer(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> None:
        """Make an active snapshot for `sink` alone, without mounting anything. Raises as `prepare`."""
        self._create(SnapshotKind.ACTIVE, key, parent, labels, Purpose.APPLY)

    def view(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> tuple[Mount, ...]:
        return self._mounts_of(self._create(SnapshotKind.VIEW, key, parent, labels))

    def commit(
        self, name: str, key: str, labels: Labels = NO_LABELS, parent: str = "", *, below_root: Usage | None = None
    ) -> None:
        """Turn the active snapshot ``key`` into the committed one ``name``, after all its files are durable.

        ``parent`` rebases a snapshot that has no parent. ``below_root`` is the result of
        `SnapshotTarget.usage_below_root` after the last change, which saves measuring again.
        Raises NotFound, AlreadyExists, Conflict, Unsupported (the driver cannot rebase), Exhausted.
        """
        check_key(name, "the name of a snapshot")
        normalize_labels(labels)
        self._check_writable()
        driver = self._driver
        with self._database.read() as connection:
            row = self._table.get_active(connection, key)
        directory = self._directories.path(row.number)
        with _translate_errors(f"commit snapshot {key!r}"), self._lock(directory, key):
            with self._database.read() as connection:
                row = self._table.get_active(connection, key, row.number)
                final_parent = self._final_parent(connection, row, parent)
                parents = self._chain(connection, final_parent)
                taken = self._table.find(connection, name) is not None
            if taken:
                self._raise_exists(name)
            if final_parent != row.parent:
                driver.rebase(directory, parents)
            driver.commit(directory)
            usage = driver.usage(directory, SnapshotKind.COMMITTED, below_root)
            sync_file_system(directory)
            with self._database.write() as connection:
                row = self._table.get_active(connection, key, row.number)
                if final_parent != self._final_parent(connection, row, parent):
                    raise _parent_replaced(parent)
                taken = self._table.find(connection, name) is not None
                if not taken:
                    now = self._clock()
                    record = SnapshotRecord(name, parent, SnapshotKind.COMMITTED, now, now, labels)
                    self._table.commit(connection, replace(row, parent=final_parent, record=record, usage=usage))
                    self._remove_from_lease(connection, key)
                    add_to_lease(connection, self._namespace, self._lease, self._type, name)
            if taken:
                self._raise_exists(name)
            for unneeded in driver.active_directories(directory):
                self._directories.remove(unneeded)

    def remove(self, key: str) -> None:
        self._check_writable()
        with self._database.write(frees=True) as connection:
            row = self._table.get(connection, key)
            (children,) = connection.execute("SELECT count(*) FROM snapshot WHERE parent = ?", (row.number,)).fetchone()
            if children:
                raise Conflict(
                    f"cannot remove snapshot {key!r}: it has {children} {'children' if children > 1 else 'child'}",
                    hint="remove its children first",
                )
            connection.execute("DELETE FROM snapshot WHERE number = ?", (row.number,))
            self._remove_from_lease(connection, key)
        self._directories.remove(self._directories.path(row.number))

    def cleanup(self) -> None:
        """Remove the files of removed snapshots and of interrupted work, in all namespaces.

        Raises Denied, Conflict and other errors of files that cannot be removed.
        """
        self._check_writable()
        with _translate_errors("clean up after snapshots"):
            with self._database.write(frees=True) as connection:
                numbers: dict[int, str] = dict(
                    connection.execute("SELECT number, kind FROM snapshot WHERE snapshotter = ?", (self.name,))
                )
                self._directories.evict(numbers)
            for number, kind in numbers.items():
                if kind == SnapshotKind.COMMITTED.value:
                    for unneeded in self._driver.active_directories(self._directories.path(number)):
                        self._directories.remove(unneeded)
            self._directories.empty_trash()

    @property
    def can_rebase(self) -> bool:
        return self._driver.can_rebase

    @property
    def windows(self) -> bool:
        """Whether the snapshotter keeps layers of Windows images."""
        return SNAPSHOTTERS[self.name].windows

    def sink(
        self, key: str, *, policy: Policy | None = None, losses: Losses | None = None, parents_known: bool = True
    ) -> Sink[Losses]:
        return self.target(key, parents_known=parents_known).sink(policy, losses)

    def target(self, key: str, *, parents_known: bool = True) -> SnapshotTarget:
        """Return the target of `sink`, which a worker without the database can open. Raises as `sink`."""
        with self._database.read() as connection:
            row = self._table.get_active(connection, key)
            parents = self._chain(connection, row.parent)
        if not parents_known and not self._driver.can_rebase:
            raise Unsupported(f"the snapshotter {self.name!r} cannot unpack a layer before its parents")
        return SnapshotTarget(self._driver, self._directories.path(row.number), parents if parents_known else None)

    def remove_whiteouts(self, key: str, paths: Sequence[LayerPath]) -> None:
        """Remove whiteouts from the active snapshot ``key``, which was unpacked with unknown parents.

        Raises NotFound, Conflict, Denied.
        """
        with self._database.read() as connection:
            row = self._table.get_active(connection, key)
        self._driver.remove_whiteouts(self._directories.path(row.number), paths)

    def tree(self, key: str) -> OpenTree:
        with self._database.read() as connection:
            row = self._table.get(connection, key)
            parents = self._chain(connection, row.parent)
        return self._driver.tree(self._directories.path(row.number), row.record.kind, parents)

    def directory(self, key: str) -> Path:
        """Return the directory of a snapshot, whose content is the driver's. Raises NotFound."""
        with self._database.read() as connection:
            return self._directories.path(self._table.get(connection, key).number)

    def _mounts_of(self, created: Created) -> tuple[Mount, ...]:
        number, kind, parents = created
        return self._driver.mounts(self._directories.path(number), kind, parents)

    def _create(
        self, kind: SnapshotKind, key: str, parent: str, labels: Labels, purpose: Purpose | None = None
    ) -> Created:
        check_key(key, "the key of a snapshot")
        labels = normalize_labels(labels)
        self._check_writable()
        purpose = purpose or (Purpose.UNPACK if UNPACKING in key else Purpose.RUN)
        wanted = labels.get(SNAPSHOT_REF) if kind is SnapshotKind.ACTIVE else None
        with self._database.read() as connection:
            taken = self._table.find_conflict(connection, key, wanted)
            parent_number = None if taken else self._table.parent_number(connection, parent)
            parents = self._chain(connection, parent_number)
        if taken:
            self._raise_exists(taken)
        number: int | None = None
        with _translate_errors(f"make snapshot {key!r}"), self._directories.create() as directory:
            self._driver.create(directory, kind, parents, purpose)
            with self._database.write() as connection:
                taken = self._table.find_conflict(connection, key, wanted)
                if not taken:
                    if parent_number != self._table.parent_number(connection, parent):
                        raise _parent_replaced(parent)
                    ensure_namespace(connection, self._namespace)
                    add_to_lease(connection, self._namespace, self._lease, self._type, key)
                    number = self._table.insert(connection, kind, key, parent_number, labels, self._clock())
                    self._directories.install(directory, number)
        if number is None:
            self._raise_exists(taken)
        return number, kind, parents

    def _raise_exists(self, name: str) -> NoReturn:
        """Add the existing snapshot to the lease, as containerd does, and raise AlreadyExists."""
        if self._lease is not None:
            with self._database.write() as connection:
                if self._table.find(connection, name) is not None:
                    add_to_lease(connection, self._namespace, self._lease, self._type, name)
        raise AlreadyExists(f"snapshot {name!r} exists already")

    def _remove_from_lease(self, connection: sqlite3.Connection, key: str) -> None:
        connection.execute(
            "DELETE FROM held WHERE namespace = ? AND lease = ? AND type = ? AND id = ?",
            (self._namespace, self._lease, self._type, key),
        )

    def _final_parent(self, connection: sqlite3.Connection, row: SnapshotRow, parent: str) -> int | None:
        """Return the number of the parent after a commit with ``parent``. Raises Conflict, Unsupported, NotFound."""
        if not parent or parent == row.record.parent:
            return row.parent
        if row.parent is not None:
            raise Conflict(f"snapshot {row.record.name!r} has the parent {row.record.parent!r} already")
        if not self._driver.can_rebase:
            raise Unsupported(
                f"the snapshotter {self.name!r} cannot give a snapshot another parent",
                hint="prepare it with its final parent",
            )
        return self._table.parent_number(connection, parent)

    def _chain(self, connection: sqlite3.Connection, nearest: int | None) -> LayerStack[Path]:
        if nearest is None:
            return LayerStack(())
        return LayerStack.from_nearest(map(self._directories.path, self._table.chain(connection, nearest)))

    def _check_writable(self) -> None:
        if self._readonly:
            raise Denied("the store is open for reading only")

    @contextmanager
    def _lock(self, directory: Path, key: str) -> Iterator[None]:
        """Exclude other commits of the same snapshot; raise NotFound if its directory is gone."""
        try:
            with locked(directory):
                yield
        except FileNotFoundError as error:
            if os.path.lexists(directory):
                raise
            raise NotFound(f"snapshot {key!r} does not exist") from error


def _parent_replaced(parent: str) -> NotFound:
    return NotFound(f"parent snapshot {parent!r} was removed, and another snapshot has its name now")


@contextmanager
def _translate_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os(error, doing) from error
