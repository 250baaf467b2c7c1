# SPDX-License-Identifier: Apache-2.0
"""What takes how much space in a store."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from lamella.errors import LamellaError
from lamella.store.gc.labels import CONTENT, needed

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.store.store import Space, Store


class Share(Struct, frozen=True):
    """Objects of one type in one namespace."""

    namespace: str
    type: str
    """As leases name it."""
    count: int
    size: int
    """Bytes; a blob that several namespaces have counts in each."""


class StoreUsage(Struct, frozen=True):
    """What a store holds."""

    shares: tuple[Share, ...]
    blobs: int
    """Bytes of all blobs, each counted once."""
    snapshots: int
    """Bytes that all snapshots take."""
    reclaimable: int
    """Bytes that a collection would free now."""


def store_usage(store: Store, *, namespaces: Sequence[str] | None = None) -> StoreUsage:
    """What the objects of ``namespaces``, by default of all, take; the totals are always those of the whole store.

    Committed snapshots count as they were measured then, others as they are now.
    """
    from lamella.store.gc.collect import collect
    from lamella.store.store import INGEST

    unmeasured: list[tuple[str, str, str]] = []
    shares: dict[tuple[str, str], tuple[int, int]] = {}

    def count(namespace: str, kind: str, size: int, objects: int = 1) -> None:
        number, total = shares.get((namespace, kind), (0, 0))
        shares[namespace, kind] = (number + objects, total + size)

    with store.database.read() as connection:
        for namespace, number in _rows(connection, "SELECT namespace, count(*) FROM image GROUP BY 1"):
            count(namespace, "images", 0, number)
        for namespace, number, size in _rows(
            connection, "SELECT namespace, count(*), sum(size) FROM blob GROUP BY namespace"
        ):
            count(namespace, CONTENT, size, number)
        (blobs,) = connection.execute(
            "SELECT coalesce(sum(size), 0) FROM (SELECT max(size) AS size FROM blob GROUP BY digest)"
        ).fetchone()
        ingests = _rows(connection, "SELECT namespace, folder FROM ingest")
        for namespace, kind, name, size in _rows(connection, "SELECT namespace, snapshotter, name, size FROM snapshot"):
            if size is None:
                unmeasured.append((namespace, kind, name))
            else:
                count(namespace, f"snapshots/{kind}", size)
    for namespace, folder in ingests:
        try:
            size = (store.root / INGEST / folder / "data").stat().st_size
        except OSError:
            size = 0
        count(namespace, "ingests", size)
    for namespace, kind, name in unmeasured:
        try:
            count(namespace, f"snapshots/{kind}", store.namespace(namespace).snapshots(kind).usage(name).size)
        except LamellaError:  # removed meanwhile, or its directory is: that is for the check to tell
            count(namespace, f"snapshots/{kind}", 0)
    snapshots = sum(size for (_, kind), (_, size) in shares.items() if kind.startswith("snapshots/"))
    return StoreUsage(
        tuple(
            Share(namespace, kind, number, size)
            for (namespace, kind), (number, size) in sorted(shares.items())
            if namespaces is None or namespace in namespaces
        ),
        blobs,
        snapshots,
        collect(store, dry_run=True).size,
    )


def image_size(space: Space, target: Digest) -> int:
    """Bytes of the blobs that are there of what ``target`` leads to, itself included, by the labels that say so."""
    size = 0
    seen: set[str] = set()
    todo: list[str] = [target]
    with space.store.database.read() as connection:
        while todo:
            digest = todo.pop()
            if digest in seen:
                continue
            seen.add(digest)
            row = connection.execute(
                "SELECT size, labels FROM blob WHERE namespace = ? AND digest = ?", (space.name, digest)
            ).fetchone()
            if row is not None:
                size += row[0]
                todo += [key for _, (kind, key) in needed(_labels(row[1])) if kind == CONTENT]
    return size


def _labels(text: str) -> dict[str, str]:
    from lamella.store.metadata.labels import decode

    return decode(text)


def _rows(connection: sqlite3.Connection, query: str) -> list[tuple]:  # type: ignore[type-arg]
    return connection.execute(query).fetchall()
