# SPDX-License-Identifier: Apache-2.0
"""Whether the files of snapshots are there, and what is sealed is what its seal says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lamella.errors import Cancelled, LamellaError, from_os
from lamella.store.contract import SnapshotKind
from lamella.store.snapshotters import SEALING
from lamella.store.store import SNAPSHOTS

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress
    from lamella.store.store import Store

_SELECT: Final = "SELECT namespace, snapshotter, name, number, kind, parent FROM snapshot"


@dataclass(slots=True, frozen=True)
class SnapshotRow:
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
    """The snapshots that are not whole, each with what is wrong; and how many are. Raises Cancelled."""
    with store.database.read() as connection:
        rows = [SnapshotRow(*row) for row in connection.execute(f"{_SELECT} ORDER BY number")]
    sealed = [row for row in rows if row.snapshotter == SEALING and row.kind == SnapshotKind.COMMITTED.value]
    if progress is not None and sealed:
        progress.start("check seals", None)
    try:
        found = [
            (row, problem)
            for row in rows
            if _problem(store, row, progress, cancel) and (problem := _still(store, row, cancel))
        ]
    finally:
        if progress is not None and sealed:
            progress.finish()
    return found, len(rows) - len(found)


def _still(store: Store, row: SnapshotRow, cancel: Cancellation | None) -> str:
    """What is wrong with what looked wrong, looked at again between two looks at its row, whose number is unique."""
    while now := _row(store, row.number):
        problem = _problem(store, now, None, cancel)
        if not problem or now == _row(store, row.number):
            return problem
    return ""


def _row(store: Store, number: int) -> SnapshotRow | None:
    with store.database.read() as connection:
        found = connection.execute(f"{_SELECT} WHERE number = ?", (number,)).fetchone()
    return None if found is None else SnapshotRow(*found)


def _problem(store: Store, row: SnapshotRow, progress: Progress | None, cancel: Cancellation | None) -> str:
    place = store.root / SNAPSHOTS / row.snapshotter / str(row.number)
    problem = _missing(place, row)
    if problem or row.snapshotter != SEALING or row.kind != SnapshotKind.COMMITTED.value:
        return problem
    from lamella.store.snapshotters.erofs import IMAGE
    from lamella.store.snapshotters.verity import examine

    def step(amount: int) -> None:
        if cancel is not None:
            cancel.check()
        if progress is not None:
            progress.advance(amount)

    try:
        examine(place / IMAGE, step)
    except Cancelled:
        raise
    except OSError as error:
        return f"its image: {from_os(error, 'read what is sealed')}"
    except LamellaError as error:
        return f"its image: {error}"
    return ""


def _missing(place: Path, row: SnapshotRow) -> str:
    """What a snapshot's directory lacks; nothing where it is all there."""
    if not place.is_dir():
        return "its directory is missing"
    committed = row.kind == SnapshotKind.COMMITTED.value
    view = row.kind == SnapshotKind.VIEW.value
    if row.snapshotter == SEALING and committed:
        needed = place / "layer.erofs"
    elif row.snapshotter == "cimfs":
        return _missing_image(place, committed=committed, view=view)
    elif row.snapshotter == "blockcim":
        if not committed:
            return ""
        needed = place / "layer.vhd"
    elif row.snapshotter == "native" and view and row.parent is not None:
        return ""
    else:
        needed = place / "fs"
    return "" if needed.exists() else f"{needed.name!r} is missing in its directory"


def _missing_image(place: Path, *, committed: bool, view: bool) -> str:
    from lamella.store.snapshotters.cimfs import CimForm

    if view:
        return ""
    try:
        image = CimForm(place.parent).layer(place)
    except LamellaError:
        return "it is not said which image is its own"
    return f"its image {image.path.name!r} is missing" if committed and not image.path.exists() else ""
