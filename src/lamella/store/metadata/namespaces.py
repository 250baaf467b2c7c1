# SPDX-License-Identifier: Apache-2.0
"""Namespaces: which there are, and their labels."""

from __future__ import annotations

import builtins
import sqlite3
from collections.abc import Sequence
from typing import Final

from lamella.errors import AlreadyExists, Conflict, NotFound
from lamella.store.contract import NO_LABELS, Labels, NamespaceRecord
from lamella.store.database import Database
from lamella.store.metadata.labels import check_namespace, decode, encode, merge, settled

SHAREABLE: Final = "containerd.io/namespace.shareable"
"""The label whose value ``true`` lets other namespaces have this one's blobs, whatever the store's policy."""

_FILLED: Final = (("image", "images"), ("blob", "blobs"), ("snapshot", "snapshots"))
_EMPTIED: Final = ("held", "lease", "ingest")
"""What goes with its namespace. The folders of ingests are swept later."""


def ensure(connection: sqlite3.Connection, name: str) -> None:
    """Let the namespace come into being; for whoever writes its first object, in that change."""
    connection.execute("INSERT OR IGNORE INTO namespace (name) VALUES (?)", (name,))


class LocalNamespaces:
    """The namespaces of a store (`lamella.store.contract.NamespaceStore`)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, name: str) -> NamespaceRecord:
        """One without labels where the name is not known. Raises InvalidInput."""
        check_namespace(name)
        with self._database.read() as connection:
            return NamespaceRecord(name, _labels(connection, name) or {})

    def list(self) -> builtins.list[NamespaceRecord]:
        """By name."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT name, labels FROM namespace ORDER BY name").fetchall()
        return [NamespaceRecord(name, decode(labels)) for name, labels in rows]

    def create(self, name: str, labels: Labels = NO_LABELS) -> NamespaceRecord:
        """Raises AlreadyExists, InvalidInput."""
        check_namespace(name)
        kept = settled(labels)
        with self._database.write() as connection:
            if _labels(connection, name) is not None:
                raise AlreadyExists(f"namespace {name!r} is there already")
            _put(connection, name, kept)
        return NamespaceRecord(name, kept)

    def update(self, name: str, labels: Labels, fields: Sequence[str] = ()) -> NamespaceRecord:
        """Change labels; makes the namespace where it is not there. Raises InvalidInput."""
        check_namespace(name)
        with self._database.write() as connection:
            kept = merge(_labels(connection, name) or {}, labels, fields)
            _put(connection, name, kept)
        return NamespaceRecord(name, kept)

    def delete(self, name: str) -> None:
        """Raises NotFound, Conflict while images, blobs or snapshots are in it; leases and ingests go with it."""
        check_namespace(name)
        with self._database.write() as connection:
            if _labels(connection, name) is None:
                raise NotFound(f"there is no namespace {name!r}")
            for table, what in _FILLED:
                if connection.execute(f"SELECT 1 FROM {table} WHERE namespace = ?", (name,)).fetchone():  # noqa: S608
                    raise Conflict(f"namespace {name!r} still has {what} in it", hint="delete them first")
            for table in _EMPTIED:
                connection.execute(f"DELETE FROM {table} WHERE namespace = ?", (name,))  # noqa: S608
            connection.execute("DELETE FROM namespace WHERE name = ?", (name,))


def _labels(connection: sqlite3.Connection, name: str) -> dict[str, str] | None:
    row = connection.execute("SELECT labels FROM namespace WHERE name = ?", (name,)).fetchone()
    return None if row is None else decode(row[0])


def _put(connection: sqlite3.Connection, name: str, labels: Labels) -> None:
    connection.execute(
        "INSERT INTO namespace (name, labels) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET labels = excluded.labels",
        (name, encode(labels)),
    )
