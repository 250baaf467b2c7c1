# SPDX-License-Identifier: Apache-2.0
"""Disk usage of a store: what its objects take, and what a collection would free."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from lamella.errors import LamellaError
from lamella.store.disk_layout import DATA, ingest_path
from lamella.store.gc.collect import collect
from lamella.store.gc.labels import CONTENT, IMAGES, INGESTS, SNAPSHOTS, forward_references
from lamella.store.metadata.labels import decode_labels

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.store.store import LocalNamespace, Store

_BLOB_BYTES: Final = "SELECT coalesce(sum(size), 0) FROM (SELECT max(size) AS size FROM blob GROUP BY digest)"
_COUNTS: Final = {
    "blobs": "SELECT count(DISTINCT digest) FROM blob",
    "images": "SELECT count(*) FROM image",
    "ingests": "SELECT count(*) FROM ingest",
    "leases": "SELECT count(*) FROM lease",
    "snapshots": "SELECT count(*) FROM snapshot",
}


class ObjectUsage(Struct, frozen=True):
    """Objects of one type in one namespace."""

    namespace: str
    type: str
    """The resource type, as in `lamella.store.contract.Resource`."""
    count: int
    size: int
    """Bytes; a blob that several namespaces have counts in each."""


class StoreUsage(Struct, frozen=True):
    """Disk usage of a store."""

    shares: tuple[ObjectUsage, ...]
    blobs: int
    """Bytes of all blobs, each counted once."""
    snapshots: int
    """Bytes of all snapshots."""
    reclaimable: int
    """Bytes that a collection would free now."""


class StoreCounts(Struct, frozen=True):
    """Number of objects in a store, all namespaces together."""

    objects: dict[str, int]
    """By kind: ``blobs`` (each counted once), ``images``, ``ingests``, ``leases``, ``snapshots``."""
    blob_bytes: int


def store_counts(store: Store) -> StoreCounts:
    """Count the objects of a store in its database, without reading files."""
    with store.database.read() as connection:
        counts = {kind: connection.execute(sql).fetchone()[0] for kind, sql in _COUNTS.items()}
        (size,) = connection.execute(_BLOB_BYTES).fetchone()
    return StoreCounts(counts, size)


def store_usage(store: Store, *, namespaces: Sequence[str] | None = None) -> StoreUsage:
    """Measure the objects of ``namespaces``, by default of all; the totals always cover the whole store.

    Committed snapshots count as measured when they were committed, the others as they are now.
    """
    unmeasured: list[tuple[str, str, str]] = []
    shares: dict[tuple[str, str], tuple[int, int]] = {}

    def count(namespace: str, kind: str, size: int, objects: int = 1) -> None:
        number, total = shares.get((namespace, kind), (0, 0))
        shares[namespace, kind] = (number + objects, total + size)

    with store.database.read() as connection:
        for namespace, number in connection.execute("SELECT namespace, count(*) FROM image GROUP BY namespace"):
            count(namespace, IMAGES, 0, number)
        for namespace, number, size in connection.execute(
            "SELECT namespace, count(*), sum(size) FROM blob GROUP BY namespace"
        ):
            count(namespace, CONTENT, size, number)
        (blobs,) = connection.execute(_BLOB_BYTES).fetchone()
        ingests = connection.execute("SELECT namespace, folder FROM ingest").fetchall()
        for namespace, kind, name, size in connection.execute(
            "SELECT namespace, snapshotter, name, size FROM snapshot"
        ):
            if size is None:
                unmeasured.append((namespace, kind, name))
            else:
                count(namespace, f"{SNAPSHOTS}{kind}", size)
    for namespace, folder in ingests:
        try:
            size = os.stat(f"{ingest_path(store.root, folder)}/{DATA}").st_size
        except OSError:
            size = 0
        count(namespace, INGESTS, size)
    for namespace, kind, name in unmeasured:
        try:
            count(namespace, f"{SNAPSHOTS}{kind}", store.namespace(namespace).snapshots(kind).usage(name).size)
        except LamellaError:  # removed meanwhile, or its directory is missing, which the check reports
            count(namespace, f"{SNAPSHOTS}{kind}", 0)
    return StoreUsage(
        tuple(
            ObjectUsage(namespace, kind, number, size)
            for (namespace, kind), (number, size) in sorted(shares.items())
            if namespaces is None or namespace in namespaces
        ),
        blobs,
        sum(size for (_, kind), (_, size) in shares.items() if kind.startswith(SNAPSHOTS)),
        collect(store, dry_run=True).size,
    )


def image_size(namespace: LocalNamespace, target: Digest) -> int:
    """Return the bytes of the present blobs that ``target`` refers to by labels, itself included."""
    size = 0
    seen: set[str] = set()
    todo: list[str] = [target]
    with namespace.context.database.read() as connection:
        while todo:
            digest = todo.pop()
            if digest in seen:
                continue
            seen.add(digest)
            row = connection.execute(
                "SELECT size, labels FROM blob WHERE namespace = ? AND digest = ?", (namespace.name, digest)
            ).fetchone()
            if row is not None:
                size += row[0]
                todo += [key for _, (kind, key) in forward_references(decode_labels(row[1])) if kind == CONTENT]
    return size
