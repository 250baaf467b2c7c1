# SPDX-License-Identifier: Apache-2.0
"""Whether the files of snapshots are there, and what is sealed is what its seal says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from lamella.errors import Cancelled, LamellaError, from_os
from lamella.store.contract import SnapshotKind
from lamella.store.snapshotters import form_of
from lamella.store.snapshotters.graph import home_of

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress
    from lamella.store.store import Store

_SELECT: Final = "SELECT namespace, snapshotter, name, number, kind, parent FROM snapshot"


class SnapshotRow(Struct, frozen=True):
    """What the database has of a snapshot."""

    namespace: str
    snapshotter: str
    name: str
    number: int
    kind: str
    parent: int | None


def broken(
    store: Store, progress: Progress | None, cancel: Cancellation | None
) -> tuple[list[tuple[SnapshotRow, str]], int]:
    """The snapshots that are not whole, each with what is wrong; and how many are.

    Raises Cancelled, InvalidInput (a kind of snapshotter that is not known here).
    """
    with store.database.read() as connection:
        rows = [SnapshotRow(*row) for row in connection.execute(f"{_SELECT} ORDER BY number")]
    look = _Look(store, progress, cancel)
    try:
        found = [(row, problem) for row in rows if look.problem(row) and (problem := look.still(row))]
    finally:
        look.finish()
    return found, len(rows) - len(found)


class _Look:
    """Looks at snapshots, and tells of the bytes of those that are sealed."""

    def __init__(self, store: Store, progress: Progress | None, cancel: Cancellation | None) -> None:
        self._store = store
        self._progress = progress
        self._cancel = cancel
        self._telling = False

    def problem(self, row: SnapshotRow) -> str:
        """What is wrong with a snapshot; nothing where it is whole. Raises as `broken`."""
        home = home_of(self._store, row.snapshotter)
        form, place, kind = form_of(row.snapshotter, home), home / str(row.number), SnapshotKind(row.kind)
        if not place.is_dir():
            return "its directory is missing"
        problem = form.lacking(place, kind, parents=row.parent is not None)
        if problem or kind is not SnapshotKind.COMMITTED:
            return problem
        try:
            form.examine(place, self._step)
        except Cancelled:
            raise
        except OSError as error:
            return f"its image: {from_os(error, 'read what is sealed')}"
        except LamellaError as error:
            return f"its image: {error}"
        return ""

    def still(self, row: SnapshotRow) -> str:
        """What is wrong with what looked so, looked at again between two looks at its row, whose number is unique."""
        while now := self._row(row.number):
            problem = self.problem(now)
            if not problem or now == self._row(row.number):
                return problem
        return ""

    def finish(self) -> None:
        """All have been looked at."""
        if self._progress is not None and self._telling:
            self._progress.finish()

    def _row(self, number: int) -> SnapshotRow | None:
        with self._store.database.read() as connection:
            found = connection.execute(f"{_SELECT} WHERE number = ?", (number,)).fetchone()
        return None if found is None else SnapshotRow(*found)

    def _step(self, amount: int) -> None:
        if self._cancel is not None:
            self._cancel.check()
        if self._progress is not None:
            if not self._telling:
                self._progress.start("check seals", None)
                self._telling = True
            self._progress.advance(amount)
