# SPDX-License-Identifier: Apache-2.0
"""The namespaces of a store and their labels."""

from __future__ import annotations

import builtins
import sqlite3
from collections.abc import Sequence
from typing import Final

from lamella.errors import AlreadyExists, Conflict, NotFound
from lamella.store.contract import NO_LABELS, Labels, NamespaceRecord
from lamella.store.database import Database
from lamella.store.metadata.labels import check_namespace, decode_labels, encode_labels, merge_labels, normalize_labels

SHAREABLE: Final = "containerd.io/namespace.shareable"
"""The label that lets other namespaces share this one's blobs in an isolated store; its value is ``true``."""

_CHECKED: Final = (("image", "images"), ("blob", "blobs"), ("snapshot", "snapshots"))
_CASCADED: Final = ("held", "lease", "ingest")
"""Tables whose rows are deleted with their namespace. A sweep removes the folders of ingests later."""


def ensure_namespace(connection: sqlite3.Connection, name: str) -> None:
    """Insert the namespace if it is missing, in the transaction that makes an object in it."""
    connection.execute("INSERT OR IGNORE INTO namespace (name) VALUES (?)", (name,))


class LocalNamespaces:
    """The namespaces of a store. A namespace is created with its first object."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, name: str) -> NamespaceRecord:
        """Return a namespace; an unknown one has no labels. Raises InvalidInput."""
        check_namespace(name)
        with self._database.read() as connection:
            return NamespaceRecord(name, _labels(connection, name) or {})

    def list(self) -> builtins.list[NamespaceRecord]:
        """Return the namespaces, by name."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT name, labels FROM namespace ORDER BY name").fetchall()
        return [NamespaceRecord(name, decode_labels(labels)) for name, labels in rows]

    def create(self, name: str, labels: Labels = NO_LABELS) -> NamespaceRecord:
        """Create a namespace. Raises AlreadyExists, InvalidInput."""
        check_namespace(name)
        kept = normalize_labels(labels)
        with self._database.write() as connection:
            if _labels(connection, name) is not None:
                raise AlreadyExists(f"namespace {name!r} exists already")
            _put(connection, name, kept)
        return NamespaceRecord(name, kept)

    def update(self, name: str, labels: Labels, fields: Sequence[str] = ()) -> NamespaceRecord:
        """Change labels; create the namespace if it is missing. Raises InvalidInput."""
        check_namespace(name)
        with self._database.write() as connection:
            kept = merge_labels(_labels(connection, name) or {}, labels, fields)
            _put(connection, name, kept)
        return NamespaceRecord(name, kept)

    def delete(self, name: str) -> None:
        """Delete an empty namespace, with its leases and ingests. Raises NotFound, Conflict (not empty)."""
        check_namespace(name)
        with self._database.write() as connection:
            if _labels(connection, name) is None:
                raise NotFound(f"there is no namespace {name!r}")
            for table, what in _CHECKED:
                if connection.execute(f"SELECT 1 FROM {table} WHERE namespace = ?", (name,)).fetchone():  # noqa: S608
                    raise Conflict(f"namespace {name!r} still has {what}", hint="delete them first")
            for table in _CASCADED:
                connection.execute(f"DELETE FROM {table} WHERE namespace = ?", (name,))  # noqa: S608
            connection.execute("DELETE FROM namespace WHERE name = ?", (name,))


def _labels(connection: sqlite3.Connection, name: str) -> dict[str, str] | None:
    row = connection.execute("SELECT labels FROM namespace WHERE name = ?", (name,)).fetchone()
    return None if row is None else decode_labels(row[0])


def _put(connection: sqlite3.Connection, name: str, labels: Labels) -> None:
    connection.execute(
        "INSERT INTO namespace (name, labels) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET labels = excluded.labels",
        (name, encode_labels(labels)),
    )
