# SPDX-License-Identifier: Apache-2.0
"""Snapshots in a store's database: all that is the same for every kind of snapshotter.

A row comes after its directory and goes before it, so that no row ever names a directory that is not there. What may
take long (to copy a parent, to make an image, to measure) is done outside of the database's changes.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from lamella.changes.contracts import Sink
from lamella.changes.losses import Losses
from lamella.errors import AlreadyExists, Conflict, Denied, NotFound, Unsupported, from_os
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.paths import LayerPath
from lamella.store.contract import NO_LABELS, Labels, Mount, SnapshotKind, SnapshotRecord, Usage
from lamella.store.disk_layout import TRASH, snapshotter_path
from lamella.store.metadata.filters import parse_filters
from lamella.store.metadata.labels import check_key, encode, merge, settled
from lamella.store.metadata.leases import hold
from lamella.store.metadata.namespaces import ensure
from lamella.store.snapshots.dirs import Places, locked
from lamella.store.snapshots.driver import OpenTree, SnapshotDriver, Target, Use
from lamella.store.snapshots.kinds import canonical, snapshot_driver
from lamella.store.snapshots.table import Row, Rows, field_of

if TYPE_CHECKING:
    from lamella.store.context import StoreContext

SNAPSHOT_REF: Final = "containerd.io/snapshot.ref"
"""The label by which a client that prepares says what it will commit; where that is there, its work is done."""

UNPACKING: Final = "extract"
"""What the key of a snapshot has in it that a layer is to be applied to; containerd's clients keep to that."""


class LocalSnapshots:
    """The snapshots of one kind in one namespace (`lamella.store.contract.Snapshotter`, `forms.Unpacks`)."""

    def __init__(self, context: StoreContext, form: SnapshotDriver) -> None:
        self._database = context.database
        self._namespace = context.namespace
        self._lease = context.lease
        self._clock = context.clock
        self._readonly = context.readonly
        self._form = form
        self.name = form.name
        """Containerd's name for the kind."""
        self._rows = Rows(context.namespace, form.name)
        self._places = Places(snapshotter_path(context.root, form.name), context.root / TRASH, form.release)

    # Looking

    def stat(self, key: str) -> SnapshotRecord:
        """See `Snapshotter.stat`."""
        with self._database.read() as connection:
            return self._rows.get(connection, key).record

    def list(self, filters: Sequence[str] = ()) -> list[SnapshotRecord]:
        """See `Snapshotter.list`; filters know ``name``, ``parent``, ``kind`` and ``labels.KEY``."""
        wanted = parse_filters(filters)
        with self._database.read() as connection:
            records = self._rows.records(connection)
        return [one for one in records if wanted.matches(partial(field_of, one))]

    def usage(self, key: str) -> Usage:
        """See `Snapshotter.usage`. Of a committed one it is what was measured then."""
        with self._database.read() as connection:
            row = self._rows.get(connection, key)
        if row.usage is not None:
            return row.usage
        return self._form.usage(self._places.of(row.number), row.record.kind)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """See `Snapshotter.mounts`. Raises Denied, Unsupported where layers must be mounted for it and cannot be."""
        with self._database.read() as connection:
            row = self._rows.get(connection, key)
            parents = self._chain(connection, row.parent)
        if row.record.kind is SnapshotKind.COMMITTED:
            raise Conflict(
                f"snapshot {key!r} is committed and is not mounted itself", hint="make a view of it, and mount that"
            )
        return self._form.mounts(self._places.of(row.number), row.record.kind, parents)

    # Changing

    def update(self, key: str, labels: Labels, fields: Sequence[str] = ()) -> SnapshotRecord:
        """See `Snapshotter.update`."""
        self._check_writable()
        with self._database.write() as connection:
            row = self._rows.get(connection, key)
            changed = merge(row.record.labels, labels, fields)
            connection.execute(
                "UPDATE snapshot SET labels = ?, updated = ? WHERE number = ?",
                (encode(changed), self._clock(), row.number),
            )
            return self._rows.get(connection, key).record

    def prepare(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> tuple[Mount, ...]:
        """See `Snapshotter.prepare`. AlreadyExists also where what the label `SNAPSHOT_REF` names is committed."""
        return self._shown(self._make(SnapshotKind.ACTIVE, key, parent, labels))

    def begin(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> None:
        """An active snapshot as of `prepare`, for `sink` alone: nothing is mounted for it. Raises as that does."""
        self._make(SnapshotKind.ACTIVE, key, parent, labels, Use.APPLY)

    def view(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> tuple[Mount, ...]:
        """See `Snapshotter.view`."""
        return self._shown(self._make(SnapshotKind.VIEW, key, parent, labels))

    def commit(
        self, name: str, key: str, labels: Labels = NO_LABELS, parent: str = "", *, beneath: Usage | None = None
    ) -> None:
        """See `Snapshotter.commit`. All that was written is on the disk first.

        ``beneath`` is what was measured by `Target.beneath` after the last change, so that it need not be done again.
        Raises also Unsupported (a parent for a snapshot of a kind that must know it before), Exhausted.
        """
        check_key(name, "the name of a snapshot")
        settled(labels)
        self._check_writable()
        form = self._form
        with self._database.read() as connection:
            row = self._rows.active(connection, key)
        place = self._places.of(row.number)
        with _told(f"commit snapshot {key!r}"), self._sole(place, key):
            with self._database.read() as connection:
                row = self._rows.active(connection, key, row.number)
                number = self._parent_at_last(connection, row, parent)
                parents = self._chain(connection, number)
                taken = self._rows.find(connection, name) is not None
            if taken:
                self._give_up(name)
            if number != row.parent:
                form.rebase(place, parents)
            form.seal(place)
            usage = form.usage(place, SnapshotKind.COMMITTED, beneath)
            _sync(place)
            with self._database.write() as connection:
                row = self._rows.active(connection, key, row.number)
                if number != self._parent_at_last(connection, row, parent):
                    raise NotFound(f"parent snapshot {parent!r} was removed, and another has its name now")
                taken = self._rows.find(connection, name) is not None
                if not taken:
                    self._turn(connection, row, name, number, labels, usage)
            if taken:
                self._give_up(name)
            for unneeded in form.settle(place):
                self._places.discard(unneeded)

    def remove(self, key: str) -> None:
        """See `Snapshotter.remove`."""
        self._check_writable()
        with self._database.write(frees=True) as connection:
            row = self._rows.get(connection, key)
            (children,) = connection.execute("SELECT count(*) FROM snapshot WHERE parent = ?", (row.number,)).fetchone()
            if children:
                raise Conflict(
                    f"cannot remove snapshot {key!r}: {children} other{'s lie' if children > 1 else ' lies'} on it",
                    hint="remove what lies on it first",
                )
            connection.execute("DELETE FROM snapshot WHERE number = ?", (row.number,))
            self._let_go(connection, key)
        self._places.discard(self._places.of(row.number))

    def cleanup(self) -> None:
        """See `Snapshotter.cleanup`. Raises Denied, Conflict and the like where something resists."""
        self._check_writable()
        with _told("clean up after snapshots"):
            with self._database.write(frees=True) as connection:
                numbers: dict[int, str] = dict(
                    connection.execute("SELECT number, kind FROM snapshot WHERE snapshotter = ?", (self.name,))
                )
                self._places.evict(numbers)
            for number, kind in numbers.items():
                if kind == SnapshotKind.COMMITTED.value:
                    for unneeded in self._form.settle(self._places.of(number)):
                        self._places.discard(unneeded)
            self._places.sweep()

    # Unpacking

    @property
    def side_by_side(self) -> bool:
        """See `Unpacks.side_by_side`."""
        return self._form.side_by_side

    @property
    def windows(self) -> bool:
        """Whether the layers are those of Windows images, whose tars have rules of their own."""
        return self._form.windows

    def sink(
        self, key: str, *, policy: Policy | None = None, losses: Losses | None = None, parents_known: bool = True
    ) -> Sink[Losses]:
        """See `Unpacks.sink`."""
        return self.target(key, parents_known=parents_known).sink(policy, losses)

    def target(self, key: str, *, parents_known: bool = True) -> Target:
        """What makes the sink as of `sink`, also in a process that has no database. Raises as that does."""
        with self._database.read() as connection:
            row = self._rows.active(connection, key)
            parents = self._chain(connection, row.parent)
        if not parents_known and not self._form.side_by_side:
            raise Unsupported(f"the snapshotter {self.name!r} unpacks a layer over those below alone")
        return Target(self._form, self._places.of(row.number), parents if parents_known else None)

    def uncover(self, key: str, paths: Sequence[LayerPath]) -> None:
        """Drop whiteouts of the active snapshot ``key``, which was unpacked without its parents.

        Raises NotFound, Conflict, Denied.
        """
        with self._database.read() as connection:
            row = self._rows.active(connection, key)
        self._form.uncover(self._places.of(row.number), paths)

    def tree(self, key: str) -> OpenTree:
        """See `Unpacks.tree`."""
        with self._database.read() as connection:
            row = self._rows.get(connection, key)
            parents = self._chain(connection, row.parent)
        return self._form.tree(self._places.of(row.number), row.record.kind, parents)

    def place(self, key: str) -> Path:
        """The directory that the snapshot's files are in; what lies there is the kind's own. Raises NotFound."""
        with self._database.read() as connection:
            return self._places.of(self._rows.get(connection, key).number)

    # Within

    def _shown(self, made: tuple[int, SnapshotKind, LayerStack[Path]]) -> tuple[Mount, ...]:
        number, kind, parents = made
        return self._form.mounts(self._places.of(number), kind, parents)

    def _make(
        self, kind: SnapshotKind, key: str, parent: str, labels: Labels, use: Use | None = None
    ) -> tuple[int, SnapshotKind, LayerStack[Path]]:
        """Make a snapshot; returned are its number, its kind and the places of its parents."""
        check_key(key, "the key of a snapshot")
        labels = settled(labels)
        self._check_writable()
        form = self._form
        use = use or (Use.UNPACK if UNPACKING in key else Use.RUN)
        wanted = labels.get(SNAPSHOT_REF) if kind is SnapshotKind.ACTIVE else None
        with self._database.read() as connection:
            taken = self._rows.taken(connection, key, wanted)
            above = None if taken else self._rows.committed(connection, parent)
            parents = self._chain(connection, above)
        if taken:
            self._give_up(taken)
        number: int | None = None
        with _told(f"make snapshot {key!r}"), self._places.fresh() as fresh:
            form.make(fresh, kind, parents, use)
            with self._database.write() as connection:
                taken = self._rows.taken(connection, key, wanted)
                if not taken:
                    if above != self._rows.committed(connection, parent):
                        raise NotFound(f"parent snapshot {parent!r} was removed, and another has its name now")
                    number = self._insert(connection, kind, key, above, labels)
                    self._places.put(fresh, number)
        if number is None:
            self._give_up(taken)
        return number, kind, parents

    def _insert(
        self, connection: sqlite3.Connection, kind: SnapshotKind, key: str, parent: int | None, labels: Labels
    ) -> int:
        ensure(connection, self._namespace)
        hold(connection, self._namespace, self._lease, self._type, key)
        return self._rows.insert(connection, kind, key, parent, labels, self._clock())

    def _turn(
        self,
        connection: sqlite3.Connection,
        row: Row,
        name: str,
        parent: int | None,
        labels: Labels,
        usage: Usage,
    ) -> None:
        """Let an active snapshot be a committed one."""
        self._rows.turn(connection, row, name, parent, labels, usage, self._clock())
        self._let_go(connection, row.record.name)
        hold(connection, self._namespace, self._lease, self._type, name)

    def _give_up(self, name: str) -> NoReturn:
        """Raise AlreadyExists; whoever wanted to make it holds what is there."""
        if self._lease is not None:
            with self._database.write() as connection:
                if self._rows.find(connection, name) is not None:
                    hold(connection, self._namespace, self._lease, self._type, name)
        raise AlreadyExists(f"snapshot {name!r} exists already")

    def _let_go(self, connection: sqlite3.Connection, key: str) -> None:
        connection.execute(
            "DELETE FROM held WHERE namespace = ? AND lease = ? AND type = ? AND id = ?",
            (self._namespace, self._lease, self._type, key),
        )

    @property
    def _type(self) -> str:
        return f"snapshots/{self.name}"

    def _parent_at_last(self, connection: sqlite3.Connection, row: Row, parent: str) -> int | None:
        """The number of the parent that a snapshot is to have once it is committed."""
        if not parent or parent == row.record.parent:
            return row.parent
        if row.parent is not None:
            raise Conflict(f"snapshot {row.record.name!r} has the parent {row.record.parent!r} already")
        if not self._form.side_by_side:
            raise Unsupported(
                f"the snapshotter {self.name!r} cannot give a snapshot another parent",
                hint="prepare it with the parent that it is to have",
            )
        return self._rows.committed(connection, parent)

    def _chain(self, connection: sqlite3.Connection, nearest: int | None) -> LayerStack[Path]:
        if nearest is None:
            return LayerStack(())
        return LayerStack.from_nearest(map(self._places.of, self._rows.chain(connection, nearest)))

    def _check_writable(self) -> None:
        if self._readonly:
            raise Denied("the store is open for reading only")

    @contextmanager
    def _sole(self, place: Path, key: str) -> Iterator[None]:
        """Have an active snapshot for oneself among those who would commit it."""
        try:
            with locked(place):
                yield
        except FileNotFoundError as error:
            if os.path.lexists(place):
                raise
            raise NotFound(f"snapshot {key!r} does not exist") from error


def _sync(place: Path) -> None:
    from lamella.host.linux import sync_file_system

    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_file_system(descriptor)
    finally:
        os.close(descriptor)


def open_snapshotter(name: str, context: StoreContext, *, verity: str = "") -> LocalSnapshots:
    """Return the snapshotter ``name`` (`SNAPSHOTTERS` or an alias) of a namespace; creates no files.

    ``verity`` (``fs-verity`` or ``dm-verity``) makes the kernel check committed layers as they are read. Raises
    InvalidInput (unknown snapshotter), Unsupported (not on this system, unknown ``verity``).
    """
    name = canonical(name)
    return LocalSnapshots(context, snapshot_driver(name, snapshotter_path(context.root, name), verity))


@contextmanager
def _told(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os(error, doing) from error
