# SPDX-License-Identifier: Apache-2.0
"""Leases keep new objects from being collected until something refers to them."""

from __future__ import annotations

import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from lamella.digests import parse_digest
from lamella.errors import AlreadyExists, InvalidInput, NotFound, Unsupported
from lamella.store.contract import NO_LABELS, Labels, Lease, LeaseStore, Namespace, Resource, Snapshotter
from lamella.store.gc.labels import CONTENT, EXPIRE, IMAGES, INGESTS, SNAPSHOTS
from lamella.store.metadata.filters import label_at, parse_filters
from lamella.store.metadata.labels import check_key, decode_labels, encode_labels, normalize_labels
from lamella.store.metadata.namespaces import ensure_namespace
from lamella.times import SECOND, format_rfc3339

if TYPE_CHECKING:
    from lamella.store.context import StoreContext
    from lamella.store.database import Database

V = TypeVar("V", bound=Namespace)

_HOUR: Final = 3600 * SECOND
_SNAPSHOTS: Final = SNAPSHOTS.rstrip("/")
_SNAPSHOTTER: Final = re.compile(re.escape(SNAPSHOTS) + "[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")


class LocalLeases:
    """The leases of a namespace (`LeaseStore`)."""

    def __init__(self, context: StoreContext) -> None:
        self._database = context.database
        self._namespace = context.namespace
        self._clock = context.clock

    def create(self, id: str = "", labels: Labels = NO_LABELS) -> Lease:  # noqa: A002
        kept = normalize_labels(labels)
        if id:
            check_key(id, "the id of a lease")
        now = self._clock()
        with self._database.write() as connection:
            ensure_namespace(connection, self._namespace)
            if not id:
                id = f"{now}-{secrets.token_urlsafe(6)}"  # noqa: A001
            elif _exists(connection, self._namespace, id):
                raise AlreadyExists(f"lease {id!r} exists already")
            connection.execute(
                "INSERT INTO lease (namespace, id, labels, created) VALUES (?, ?, ?, ?)",
                (self._namespace, id, encode_labels(kept), now),
            )
        return Lease(id, now, kept)

    def delete(self, id: str) -> None:  # noqa: A002
        with self._database.write(frees=True) as connection:
            gone = connection.execute("DELETE FROM lease WHERE namespace = ? AND id = ?", (self._namespace, id))
            if not gone.rowcount:
                raise _missing(id)

    def list(self, filters: Sequence[str] = ()) -> list[Lease]:
        """Return the leases that pass any of ``filters``, which know ``id`` and ``labels.KEY``. Raises InvalidInput."""
        wanted = parse_filters(filters)
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT id, created, labels FROM lease WHERE namespace = ? ORDER BY id", (self._namespace,)
            ).fetchall()
        found = [Lease(id_, created, decode_labels(labels)) for id_, created, labels in rows]
        return [lease for lease in found if wanted.matches(partial(_field_of, lease))]

    def add(self, id: str, resource: Resource) -> None:  # noqa: A002
        check_resource(resource)
        with self._database.write() as connection:
            self._check(connection, id)
            add_to_lease(connection, self._namespace, id, resource.type, resource.id)

    def remove(self, id: str, resource: Resource) -> None:  # noqa: A002
        check_resource(resource)
        with self._database.write() as connection:
            self._check(connection, id)
            connection.execute(
                "DELETE FROM held WHERE namespace = ? AND lease = ? AND type = ? AND id = ?",
                (self._namespace, id, resource.type, resource.id),
            )

    def resources(self, id: str) -> Sequence[Resource]:  # noqa: A002
        with self._database.read() as connection:
            self._check(connection, id)
            rows = connection.execute(
                "SELECT type, id FROM held WHERE namespace = ? AND lease = ? ORDER BY type, id", (self._namespace, id)
            )
            return [Resource(kind, key) for kind, key in rows]

    def _check(self, connection: sqlite3.Connection, id_: str) -> None:
        if not _exists(connection, self._namespace, id_):
            raise _missing(id_)


def leases_by_prefix(database: Database, prefix: str) -> list[tuple[str, Lease]]:
    """Return the leases of all namespaces whose ids start with ``prefix``, each after its namespace."""
    with database.read() as connection:
        rows = connection.execute(
            "SELECT namespace, id, created, labels FROM lease WHERE substr(id, 1, ?) = ? ORDER BY namespace, id",
            (len(prefix), prefix),
        ).fetchall()
    return [(namespace, Lease(id_, created, decode_labels(labels))) for namespace, id_, created, labels in rows]


def add_to_lease(connection: sqlite3.Connection, namespace: str, lease: str | None, type_: str, key: str) -> None:
    """Add an object to ``lease``, if that is not None, in the transaction that makes or finds the object.

    Raises NotFound (no such lease).
    """
    if lease is None:
        return
    if not _exists(connection, namespace, lease):
        raise _missing(lease)
    connection.execute(
        "INSERT OR IGNORE INTO held (namespace, lease, type, id) VALUES (?, ?, ?, ?)", (namespace, lease, type_, key)
    )


def check_resource(resource: Resource) -> None:
    """Raise Unsupported for an unknown type, InvalidInput for a malformed type, key or digest."""
    kind, slash, _ = resource.type.partition("/")
    if kind == _SNAPSHOTS:
        if not _SNAPSHOTTER.fullmatch(resource.type):
            raise InvalidInput(f"the type {resource.type!r} of a resource is not snapshots/SNAPSHOTTER")
    elif kind not in (CONTENT, INGESTS, IMAGES):
        raise Unsupported(f"leases cannot hold resources of type {resource.type!r}")
    elif slash:
        raise InvalidInput(f"the type {resource.type!r} of a resource is not {kind!r}")
    if kind == CONTENT:
        parse_digest(resource.id)
    check_key(resource.id, "the id of a resource")


@contextmanager
def temporary_lease(
    leases: LeaseStore, *, hours: float = 24, clock: Callable[[], int] = time.time_ns
) -> Iterator[Lease]:
    """Hold a lease for the block. If the process is killed, the lease expires after ``hours``."""
    lease = leases.create(labels={EXPIRE: format_rfc3339(clock() + int(hours * _HOUR))})
    try:
        yield lease
    finally:
        with suppress(NotFound):  # the block took longer than that, and the lease was collected
            leases.delete(lease.id)


@contextmanager
def under_lease(namespace: V, *, hours: float = 24) -> Iterator[V]:
    """Give the namespace a temporary lease for its new objects, unless it has one."""
    if namespace.lease is not None:
        yield namespace
        return
    with temporary_lease(namespace.leases, hours=hours, clock=namespace.clock) as lease:
        yield namespace.under(lease.id)


def leased_snapshotters(namespace: Namespace, key: str) -> Iterator[Snapshotter]:
    """Yield the snapshotters whose snapshot ``key`` the lease ``key`` holds. Raises NotFound (no such lease)."""
    for resource in namespace.leases.resources(key):
        if resource.type.startswith(SNAPSHOTS) and resource.id == key:
            yield namespace.snapshots(resource.type.removeprefix(SNAPSHOTS))


def remove_leased_snapshot(namespace: Namespace, key: str) -> None:
    """Remove the snapshot ``key`` and the lease ``key`` that holds it, if they exist."""
    with suppress(NotFound):
        for snapshots in leased_snapshotters(namespace, key):
            with suppress(NotFound):
                snapshots.remove(key)
        namespace.leases.delete(key)


def _exists(connection: sqlite3.Connection, namespace: str, lease: str) -> bool:
    row = connection.execute("SELECT 1 FROM lease WHERE namespace = ? AND id = ?", (namespace, lease)).fetchone()
    return row is not None


def _missing(lease: str) -> NotFound:
    return NotFound(f"lease {lease!r} does not exist")


def _field_of(lease: Lease, path: tuple[str, ...]) -> str | None:
    match path:
        case ("id",):
            return lease.id
        case ("labels", *rest):
            return label_at(lease.labels, tuple(rest))
        case _:
            return None
