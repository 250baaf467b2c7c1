# SPDX-License-Identifier: Apache-2.0
"""Checks of snapshots: files that a driver needs, seals, and a comparison with the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct

from lamella.errors import Cancelled, LamellaError, NotFound, from_os
from lamella.store.contract import SnapshotKind, SnapshotRecord
from lamella.store.disk_layout import snapshotter_path
from lamella.store.snapshots.kinds import snapshot_driver
from lamella.store.snapshots.table import decode_kind

if TYPE_CHECKING:
    from lamella.changes.job import Job
    from lamella.store.snapshots.snapshotter import LocalSnapshots
    from lamella.store.store import LocalNamespace, Store

_SELECT: Final = "SELECT namespace, snapshotter, name, number, kind, parent FROM snapshot"


class CheckedSnapshot(Struct, frozen=True):
    """The row of a snapshot that is checked."""

    namespace: str
    snapshotter: str
    name: str
    number: int
    kind: SnapshotKind
    parent: int | None


class Verdict(Enum):
    """Result of comparing a snapshot with its layer."""

    SAME = "same"
    DIFFERENT = "different"
    UNKNOWN = "cannot tell"


class Comparison(Struct, frozen=True):
    """A snapshot compared with its layer."""

    verdict: Verdict
    why: str = ""
    """The first difference, or why the comparison was impossible."""


CompareSnapshot: TypeAlias = "Callable[[LocalNamespace, LocalSnapshots, SnapshotRecord], Comparison]"
"""Compares a committed snapshot with the layer that it was unpacked from."""


def find_broken_snapshots(store: Store, job: Job) -> tuple[list[tuple[CheckedSnapshot, str]], int]:
    """Return the broken snapshots, each with its problem, and the number of intact ones.

    Raises Cancelled, InvalidInput (unknown snapshotter).
    """
    checker = _Checker(store, job)
    rows = _read_rows(store, "ORDER BY number")
    try:
        broken = [(row, problem) for row in rows if checker.check(row) and (problem := checker.confirm(row))]
    finally:
        checker.finish()
    return broken, len(rows) - len(broken)


def compare_snapshots(
    store: Store, compare: CompareSnapshot, skip: set[tuple[str, str, str]], job: Job
) -> Iterator[tuple[CheckedSnapshot, Comparison]]:
    """Compare committed snapshots with their layers, parents first.

    ``skip`` has namespace, snapshotter and name of snapshots to omit. Omits snapshots that are removed meanwhile too.
    Raises Cancelled.
    """
    for row in _read_rows(store, "WHERE kind = ? ORDER BY number", SnapshotKind.COMMITTED.value):
        job.check()
        if (row.namespace, row.snapshotter, row.name) in skip:
            continue
        namespace = store.namespace(row.namespace)
        snapshots = namespace.snapshots(row.snapshotter)
        try:
            record = snapshots.stat(row.name)
            try:
                result = compare(namespace, snapshots, record)
            except Cancelled:
                raise
            except LamellaError as problem:
                result = Comparison(Verdict.UNKNOWN, str(problem))
            if result.verdict is not Verdict.SAME and snapshots.stat(row.name).created_at != record.created_at:
                continue  # another snapshot has its name now
        except NotFound:
            continue
        yield row, result


class _Checker:
    """Checks snapshots one by one, and reports the bytes of sealed files."""

    def __init__(self, store: Store, job: Job) -> None:
        self._store = store
        self._job = job
        self._progress = job.progress
        self._started = False

    def check(self, row: CheckedSnapshot) -> str:
        """Return the problem of a snapshot; empty if it is intact. Raises as `find_broken_snapshots`."""
        root = snapshotter_path(self._store.root, row.snapshotter)
        driver, directory = snapshot_driver(row.snapshotter, root), root / str(row.number)
        if not directory.is_dir():
            return "its directory is missing"
        problem = driver.find_missing(directory, row.kind, has_parents=row.parent is not None)
        if problem or row.kind is not SnapshotKind.COMMITTED:
            return problem
        try:
            driver.verify(directory, self._step)
        except Cancelled:
            raise
        except OSError as error:
            return f"its image: {from_os(error, 'read the sealed files')}"
        except LamellaError as error:
            return f"its image: {error}"
        return ""

    def confirm(self, row: CheckedSnapshot) -> str:
        """Check again until the row is the same before and after; empty if the snapshot is intact or removed."""
        while now := next(iter(_read_rows(self._store, "WHERE number = ?", row.number)), None):
            problem = self.check(now)
            if not problem or [now] == _read_rows(self._store, "WHERE number = ?", row.number):
                return problem
        return ""

    def finish(self) -> None:
        """End the progress report."""
        if self._progress is not None and self._started:
            self._progress.finish()

    def _step(self, amount: int) -> None:
        self._job.check()
        if self._progress is not None:
            if not self._started:
                self._progress.start("check seals", None)
                self._started = True
            self._progress.advance(amount)


def _read_rows(store: Store, clause: str, *values: str | int) -> list[CheckedSnapshot]:
    with store.database.read() as connection:
        rows = connection.execute(f"{_SELECT} {clause}", values).fetchall()
    return [
        CheckedSnapshot(namespace, snapshotter, name, number, decode_kind(name, kind), parent)
        for namespace, snapshotter, name, number, kind, parent in rows
    ]
