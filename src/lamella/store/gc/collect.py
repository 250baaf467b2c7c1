# SPDX-License-Identifier: Apache-2.0
"""Garbage collection: removes what nothing refers to, by containerd's rules (`mark`).

Marking and deleting rows are one transaction, so that no writer can come between: objects that a writer adds to a lease
before are marked, later ones are not considered. Files are removed once the transaction is durable.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from lamella.errors import LamellaError, from_os
from lamella.store.disk_layout import INGEST, keep_reserve, snapshotter_path
from lamella.store.disk_layout import SNAPSHOTS as SNAPSHOT_FOLDER
from lamella.store.gc.labels import CONTENT, IMAGES, INGESTS, LEASES, SNAPSHOTS, Node
from lamella.store.gc.mark import Cause, ReferenceGraph, mark, read_graph, reference_chain
from lamella.store.locks import remove_stale_locks

if TYPE_CHECKING:
    from lamella.store.store import Store


class CollectedObject(Struct, frozen=True):
    """An object that a collection removed, or would remove."""

    namespace: str
    type: str
    """The resource type, or ``leases``."""
    id: str
    size: int
    """Bytes that are freed; 0 for a blob that another namespace keeps, and for an object without files."""
    why: str
    """``expired at ...`` or the like; ``nothing refers to it``."""


class Collection(Struct, frozen=True):
    """The result of a collection, or of a dry run."""

    removed: tuple[CollectedObject, ...]
    kept: int
    """Objects that remain."""
    dry_run: bool

    @property
    def counts(self) -> dict[str, int]:
        """The number of removed objects of each type."""
        return dict(sorted(Counter(one.type for one in self.removed).items()))

    @property
    def size(self) -> int:
        """Bytes that were freed."""
        return sum(one.size for one in self.removed)


class Step(Struct, frozen=True):
    """One object of a chain of references."""

    type: str
    id: str
    why: str
    """For the root, what makes it one, as ``is an image``; for others, the reference to it: ``target``, or a label."""


class Explanation(Struct, frozen=True):
    """Why the next collection keeps or removes an object."""

    namespace: str
    type: str
    id: str
    chain: tuple[Step, ...]
    """From the nearest root to the object itself; empty if it will be removed."""
    why: str
    """The chain in words, or why the object will be removed."""

    @property
    def stays(self) -> bool:
        """Whether the next collection keeps the object."""
        return bool(self.chain)


def collect(store: Store, *, namespaces: Sequence[str] | None = None, dry_run: bool = False) -> Collection:
    """Remove the objects of ``namespaces``, by default of all, that nothing refers to; ``dry_run`` changes nothing.

    Safe beside writers and other collections. Raises as `Database.write`; an error about a file is raised after all
    other files were removed, and the next collection tries again.
    """
    unneeded = []
    kept = 0
    with store.database.read() if dry_run else store.database.write(frees=True) as connection:
        now = store.clock()
        for namespace in _namespaces(connection, namespaces):
            graph = read_graph(connection, namespace, now)
            alive = mark(graph)
            nodes = [node for node in graph.sizes if node not in alive]
            kept += len(graph.sizes) - len(nodes)
            unneeded.append((namespace, graph, nodes))
        freed = _sizes(store, connection, unneeded)
        if not dry_run:
            for namespace, graph, nodes in unneeded:
                _remove(connection, namespace, graph, nodes)
    removed = []
    for namespace, graph, nodes in unneeded:
        for node in nodes:
            size = freed.get((namespace, node), 0)
            removed.append(
                CollectedObject(
                    namespace, *node, size if isinstance(size, int) else allocated(size), _why_removed(graph, node)
                )
            )
    if not dry_run:
        sweep_files(store)
        keep_reserve(store.root)
    return Collection(tuple(removed), kept, dry_run)


def explain(store: Store, *, namespaces: Sequence[str] | None = None) -> Iterator[Explanation]:
    """Explain for each object why it is kept or would be removed.

    Leases come first, then images, content, ingests and snapshots, each sorted. The iterator holds one read transaction
    until it ends.
    """
    with store.database.read() as connection:
        now = store.clock()
        for namespace in _namespaces(connection, namespaces):
            graph = read_graph(connection, namespace, now)
            alive = mark(graph)
            for node in graph.sizes:
                yield _explain(namespace, node, graph, alive)


def _explain(namespace: str, node: Node, graph: ReferenceGraph, alive: dict[Node, Cause]) -> Explanation:
    if node not in alive:
        return Explanation(namespace, *node, (), _why_removed(graph, node))
    steps = tuple(Step(*at, cause.why) for at, cause in reversed(reference_chain(alive, node)))
    words = f"{_singular(steps[0].type)} {steps[0].id} {steps[0].why}"
    for step in steps[1:]:
        words += f" -> {step.why}: {_singular(step.type)} {step.id}"
    return Explanation(namespace, *node, steps, words)


_SINGULAR: Final = {CONTENT: "blob", IMAGES: "image", INGESTS: "ingest", LEASES: "lease"}


def _singular(kind: str) -> str:
    return _SINGULAR.get(kind, kind.replace(SNAPSHOTS, "snapshot of ", 1))


def _why_removed(graph: ReferenceGraph, node: Node) -> str:
    return graph.expired.get(node, "nothing refers to it")


def _namespaces(connection: sqlite3.Connection, wanted: Sequence[str] | None) -> list[str]:
    if wanted is not None:
        return sorted(set(wanted))
    return [name for (name,) in connection.execute(_EVERY_NAMESPACE)]


_EVERY_NAMESPACE: Final = """
SELECT name FROM namespace UNION SELECT namespace FROM lease UNION SELECT namespace FROM image
UNION SELECT namespace FROM blob UNION SELECT namespace FROM ingest UNION SELECT namespace FROM snapshot ORDER BY 1
"""


def _sizes(
    store: Store, connection: sqlite3.Connection, unneeded: Iterable[tuple[str, ReferenceGraph, list[Node]]]
) -> dict[tuple[str, Node], int | Path]:
    """Return the bytes that the removal of each object frees, or a directory to measure after the transaction."""
    freed: dict[tuple[str, Node], int | Path] = {}
    removals: Counter[str] = Counter()
    for namespace, graph, nodes in unneeded:
        for node in nodes:
            kind, key = node
            size: int | Path | None = graph.sizes[node]
            if kind == CONTENT:
                # Removing the last row of a blob frees its file.
                removals[key] += 1
                row = connection.execute("SELECT count(*) FROM blob WHERE digest = ?", (key,)).fetchone()
                if removals[key] < row[0]:
                    continue
            elif kind == INGESTS:
                row = connection.execute(
                    "SELECT folder FROM ingest WHERE namespace = ? AND ref = ?", (namespace, key)
                ).fetchone()
                size = store.root / INGEST / row[0]
            elif kind.startswith(SNAPSHOTS) and size is None:
                size = snapshotter_path(store.root, kind.removeprefix(SNAPSHOTS)) / str(graph.numbers[node])
            if size is not None:
                freed[namespace, node] = size
    return freed


def allocated(path: str | os.PathLike[str]) -> int:
    """Return the allocated bytes of a directory tree; unreadable directories count as empty."""
    size = 0
    seen = set()
    waiting = [os.fspath(path)]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
            size += status.st_blocks * 512
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
    return size


def _remove(connection: sqlite3.Connection, namespace: str, graph: ReferenceGraph, nodes: Iterable[Node]) -> None:
    keys: dict[str, list[tuple[str, str]]] = {}
    numbers = []
    for kind, key in nodes:
        if kind.startswith(SNAPSHOTS):
            numbers.append((graph.numbers[kind, key],))
        else:
            keys.setdefault(kind, []).append((namespace, key))
    for kind, statement in _REMOVALS:
        connection.executemany(statement, keys.get(kind, ()))
    # A parent may be newer than its child: check foreign keys at the end of the transaction.
    connection.execute("PRAGMA defer_foreign_keys = ON")
    connection.executemany("DELETE FROM snapshot WHERE number = ?", numbers)


_REMOVALS: Final = (
    (LEASES, "DELETE FROM lease WHERE namespace = ? AND id = ?"),
    (IMAGES, "DELETE FROM image WHERE namespace = ? AND name = ?"),
    (INGESTS, "DELETE FROM ingest WHERE namespace = ? AND ref = ?"),
    (CONTENT, "DELETE FROM blob WHERE namespace = ? AND digest = ?"),
)


def sweep_files(store: Store) -> None:
    """Remove all files that no row names: blobs, ingests, locks, and snapshots of every driver.

    Raises the first error after all others were tried.
    """
    from lamella.store.content.files import sweep
    from lamella.store.snapshots.kinds import SNAPSHOTTERS

    failures: list[LamellaError] = []
    try:
        sweep(store.root, store.database)
    except LamellaError as problem:
        failures.append(problem)
    try:
        remove_stale_locks(store.root)
    except OSError as problem:
        failures.append(from_os(problem, "remove stale locks"))
    for snapshotter in sorted(os.listdir(store.root / SNAPSHOT_FOLDER)):
        if snapshotter not in SNAPSHOTTERS:
            continue  # not a directory of this program
        try:
            store.namespace(_ANY).snapshots(snapshotter).cleanup()
        except LamellaError as problem:
            failures.append(problem)
    if failures:
        raise failures[0]


_ANY: Final = "default"
"""Any namespace: `cleanup` covers the files of all."""
