# SPDX-License-Identifier: Apache-2.0
"""The table ``snapshot`` of the database. A row's number names the directory of the snapshot."""

from __future__ import annotations

import sqlite3
from typing import Final

from msgspec import Struct

from lamella.errors import Conflict, Integrity, InvalidInput, NotFound
from lamella.store.contract import Labels, SnapshotKind, SnapshotRecord, Usage
from lamella.store.metadata.filters import label_at
from lamella.store.metadata.labels import decode_labels, encode_labels, normalize_labels

_SELECT: Final = """
SELECT s.number, s.parent, s.name, COALESCE(p.name, ''), s.kind, s.created, s.updated, s.labels, s.size, s.inodes
FROM snapshot s LEFT JOIN snapshot p ON p.number = s.parent
WHERE s.namespace = ? AND s.snapshotter = ?
"""

_CHAIN: Final = """
WITH RECURSIVE chain (number, parent, depth) AS (
    SELECT number, parent, 0 FROM snapshot WHERE number = ?
    UNION ALL
    SELECT s.number, s.parent, depth + 1 FROM snapshot s JOIN chain c ON s.number = c.parent WHERE depth < 100000
)
SELECT number FROM chain ORDER BY depth
"""


class SnapshotRow(Struct, frozen=True):
    """A snapshot in the database."""

    number: int
    parent: int | None
    record: SnapshotRecord
    usage: Usage | None


class SnapshotTable:
    """The rows of one snapshotter in one namespace. Each method runs in the caller's transaction."""

    def __init__(self, namespace: str, snapshotter: str) -> None:
        self._namespace = namespace
        self._snapshotter = snapshotter

    def records(self, connection: sqlite3.Connection) -> list[SnapshotRecord]:
        """Return all records, sorted by name."""
        found = connection.execute(f"{_SELECT} ORDER BY s.name", (self._namespace, self._snapshotter))
        return [_decode_row(row).record for row in found]

    def find(self, connection: sqlite3.Connection, key: str) -> SnapshotRow | None:
        """Return the row of a snapshot; None if there is none."""
        found = connection.execute(f"{_SELECT} AND s.name = ?", (self._namespace, self._snapshotter, key)).fetchone()
        return None if found is None else _decode_row(found)

    def get(self, connection: sqlite3.Connection, key: str) -> SnapshotRow:
        """Return the row of a snapshot. Raises NotFound."""
        found = self.find(connection, key)
        if found is None:
            raise NotFound(f"snapshot {key!r} does not exist")
        return found

    def get_active(self, connection: sqlite3.Connection, key: str, number: int | None = None) -> SnapshotRow:
        """Return the row of an active snapshot, with the given ``number`` if there is one.

        Raises NotFound, Conflict (not active).
        """
        row = self.get(connection, key)
        if number is not None and row.number != number:
            raise NotFound(f"snapshot {key!r} was removed, and another snapshot has its key now")
        if row.record.kind is not SnapshotKind.ACTIVE:
            raise Conflict(f"snapshot {key!r} is {_WORDS[row.record.kind]}, not active")
        return row

    def parent_number(self, connection: sqlite3.Connection, parent: str) -> int | None:
        """Return the number of the snapshot ``parent``; None for the empty name.

        Raises NotFound, InvalidInput (not committed).
        """
        if not parent:
            return None
        found = self.find(connection, parent)
        if found is None:
            raise NotFound(f"parent snapshot {parent!r} does not exist")
        if found.record.kind is not SnapshotKind.COMMITTED:
            raise InvalidInput(f"parent snapshot {parent!r} is not committed")
        return found.number

    def find_conflict(self, connection: sqlite3.Connection, key: str, committed: str | None) -> str:
        """Return the name of an existing snapshot that makes ``key`` impossible or unnecessary; empty if none.

        That is ``committed`` if it exists and is committed, or ``key`` itself.
        """
        if committed:
            found = self.find(connection, committed)
            if found is not None and found.record.kind is SnapshotKind.COMMITTED:
                return committed
        return key if self.find(connection, key) is not None else ""

    def chain(self, connection: sqlite3.Connection, nearest: int) -> list[int]:
        """Return the number of a snapshot and those of its ancestors, nearest first."""
        return [number for (number,) in connection.execute(_CHAIN, (nearest,))]

    def insert(
        self,
        connection: sqlite3.Connection,
        kind: SnapshotKind,
        key: str,
        parent: int | None,
        labels: Labels,
        now: int,
    ) -> int:
        """Insert a row; return its number."""
        made = connection.execute(
            "INSERT INTO snapshot (namespace, snapshotter, name, parent, kind, created, updated, labels)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self._namespace, self._snapshotter, key, parent, kind.value, now, now, encode_labels(labels)),
        )
        assert made.lastrowid is not None  # noqa: S101  # an INSERT sets it
        return made.lastrowid

    def commit(self, connection: sqlite3.Connection, row: SnapshotRow) -> None:
        """Turn the active snapshot of ``row.number`` into the committed one that ``row`` describes."""
        record, usage = row.record, row.usage
        assert usage is not None  # noqa: S101  # a committed snapshot is measured
        connection.execute(
            "UPDATE snapshot SET name = ?, parent = ?, kind = ?, created = ?, updated = ?, labels = ?, size = ?,"
            " inodes = ? WHERE number = ?",
            (
                *(record.name, row.parent, record.kind.value, record.created_at, record.updated_at),
                *(encode_labels(normalize_labels(record.labels)), usage.size, usage.inodes, row.number),
            ),
        )


def snapshot_key(connection: sqlite3.Connection, number: int) -> str | None:
    """Return the key or name of the snapshot whose directory is ``number``; None if there is none."""
    row = connection.execute("SELECT name FROM snapshot WHERE number = ?", (number,)).fetchone()
    return None if row is None else str(row[0])


_WORDS: Final = {SnapshotKind.VIEW: "a view", SnapshotKind.COMMITTED: "committed", SnapshotKind.ACTIVE: "active"}


def decode_kind(name: str, kind: str) -> SnapshotKind:
    """Return the kind of the snapshot ``name``. Raises Integrity."""
    try:
        return SnapshotKind(kind)
    except ValueError:
        raise Integrity(f"the store's database holds an unknown kind of snapshot {name!r}: {kind!r}") from None


def _decode_row(row: tuple[int, int | None, str, str, str, int, int, str, int | None, int | None]) -> SnapshotRow:
    number, parent, name, parent_name, kind, created, updated, labels, size, inodes = row
    record = SnapshotRecord(name, parent_name, decode_kind(name, kind), created, updated, decode_labels(labels))
    return SnapshotRow(number, parent, record, None if size is None else Usage(size, inodes or 0))


def field_of(record: SnapshotRecord, path: tuple[str, ...]) -> str | None:
    """Return the value of the field that filters name by ``path``; None if there is none."""
    match path:
        case ("name",):
            return record.name
        case ("parent",):
            return record.parent
        case ("kind",):
            return record.kind.value
        case ("labels", *rest):
            return label_at(record.labels, tuple(rest))
        case _:
            return None
