# SPDX-License-Identifier: Apache-2.0
"""Collection: what nothing needs any more goes, by containerd's rules (`marking`).

Marking and the removal of rows are one change of the database, so that no writer can come between them: what a writer
makes under a lease before it is seen, what it makes afterwards is not looked at. Files follow once that change is on
the disk.
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
from lamella.store import locks
from lamella.store.disk_layout import INGEST, keep_reserve, snapshotter_path
from lamella.store.disk_layout import SNAPSHOTS as SNAPSHOT_FOLDER
from lamella.store.gc.labels import CONTENT, IMAGES, INGESTS, LEASES, SNAPSHOTS, Node
from lamella.store.gc.mark import Cause, Picture, chain, mark, picture

if TYPE_CHECKING:
    from lamella.store.store import Store


class Gone(Struct, frozen=True):
    """An object that was collected, or would be."""

    namespace: str
    type: str
    """As leases name it, or ``leases``."""
    id: str
    size: int
    """Bytes that its going frees: 0 for a blob that another namespace keeps, and for what has no files."""
    why: str
    """``expired at ...`` or the like; ``nothing refers to it``."""


class Collection(Struct, frozen=True):
    """What a collection took away, or would have."""

    gone: tuple[Gone, ...]
    kept: int
    """Objects that stay."""
    dry_run: bool

    @property
    def counts(self) -> dict[str, int]:
        """How many objects of each type are gone."""
        return dict(sorted(Counter(one.type for one in self.gone).items()))

    @property
    def size(self) -> int:
        """Bytes that this frees."""
        return sum(one.size for one in self.gone)


class Step(Struct, frozen=True):
    """One object on the way from a root, and why it is there."""

    type: str
    id: str
    why: str
    """Of the first: ``is an image`` or the like. Of another, how the one before needs it: ``target``, a label, ..."""


class Verdict(Struct, frozen=True):
    """Whether an object stays, and why."""

    namespace: str
    type: str
    id: str
    chain: tuple[Step, ...]
    """From the nearest root to the object itself; empty where it goes."""
    why: str
    """The chain in words, or why it goes."""

    @property
    def stays(self) -> bool:
        """Whether the next collection leaves it."""
        return bool(self.chain)


def collect(store: Store, *, namespaces: Sequence[str] | None = None, dry_run: bool = False) -> Collection:
    """Take away what nothing needs in ``namespaces`` (all of them by default); with ``dry_run`` only tell.

    Safe beside writers and other collections. Raises what `Database.write` does. Files that could not be removed go
    with the next collection, and the first failure is raised once all has been tried.
    """
    unneeded = []
    kept = 0
    with store.database.read() if dry_run else store.database.write(frees=True) as connection:
        now = store.clock()
        for namespace in _namespaces(connection, namespaces):
            found = picture(connection, namespace, now)
            alive = mark(found)
            nodes = [node for node in found.sizes if node not in alive]
            kept += len(found.sizes) - len(nodes)
            unneeded.append((namespace, found, nodes))
        freed = _sizes(store, connection, unneeded)
        if not dry_run:
            for namespace, found, nodes in unneeded:
                _remove(connection, namespace, found, nodes)
    gone = []
    for namespace, found, nodes in unneeded:
        for node in nodes:
            size = freed.get((namespace, node), 0)
            gone.append(Gone(namespace, *node, size if isinstance(size, int) else allocated(size), _end(found, node)))
    if not dry_run:
        sweep_files(store)
        keep_reserve(store.root)
    return Collection(tuple(gone), kept, dry_run)


def explain(store: Store, *, namespaces: Sequence[str] | None = None) -> Iterator[Verdict]:
    """For each object whether it would stay, and why. One picture of the store, whose reading ends with the iterator.

    Leases come first, then images, content, ingests and snapshots, each sorted.
    """
    with store.database.read() as connection:
        now = store.clock()
        for namespace in _namespaces(connection, namespaces):
            found = picture(connection, namespace, now)
            alive = mark(found)
            for node in found.sizes:
                yield _verdict(namespace, node, found, alive)


def _verdict(namespace: str, node: Node, found: Picture, alive: dict[Node, Cause]) -> Verdict:
    if node not in alive:
        return Verdict(namespace, *node, (), _end(found, node))
    steps = tuple(Step(*at, cause.why) for at, cause in reversed(chain(alive, node)))
    words = f"{_singular(steps[0].type)} {steps[0].id} {steps[0].why}"
    for step in steps[1:]:
        words += f" -> {step.why}: {_singular(step.type)} {step.id}"
    return Verdict(namespace, *node, steps, words)


_SINGULAR: Final = {CONTENT: "blob", IMAGES: "image", INGESTS: "ingest", LEASES: "lease"}


def _singular(kind: str) -> str:
    return _SINGULAR.get(kind, kind.replace(SNAPSHOTS, "snapshot of ", 1))


def _end(found: Picture, node: Node) -> str:
    return found.ended.get(node, "nothing refers to it")


def _namespaces(connection: sqlite3.Connection, wanted: Sequence[str] | None) -> list[str]:
    if wanted is not None:
        return sorted(set(wanted))
    return [name for (name,) in connection.execute(_EVERY_NAMESPACE)]


_EVERY_NAMESPACE: Final = """
SELECT name FROM namespace UNION SELECT namespace FROM lease UNION SELECT namespace FROM image
UNION SELECT namespace FROM blob UNION SELECT namespace FROM ingest UNION SELECT namespace FROM snapshot ORDER BY 1
"""


def _sizes(
    store: Store, connection: sqlite3.Connection, unneeded: Iterable[tuple[str, Picture, list[Node]]]
) -> dict[tuple[str, Node], int | Path]:
    """What each object frees that goes, as far as it is more than nothing; or what is to be measured, without haste."""
    freed: dict[tuple[str, Node], int | Path] = {}
    going: Counter[str] = Counter()
    for namespace, found, nodes in unneeded:
        for node in nodes:
            kind, key = node
            size: int | Path | None = found.sizes[node]
            if kind == CONTENT:
                # The last one frees the file, if nobody keeps it.
                going[key] += 1
                row = connection.execute("SELECT count(*) FROM blob WHERE digest = ?", (key,)).fetchone()
                if going[key] < row[0]:
                    continue
            elif kind == INGESTS:
                row = connection.execute(
                    "SELECT folder FROM ingest WHERE namespace = ? AND ref = ?", (namespace, key)
                ).fetchone()
                size = store.root / INGEST / row[0]
            elif kind.startswith(SNAPSHOTS) and size is None:
                size = snapshotter_path(store.root, kind.removeprefix(SNAPSHOTS)) / str(found.numbers[node])
            if size is not None:
                freed[namespace, node] = size
    return freed


def allocated(path: str | os.PathLike[str]) -> int:
    """Bytes that a directory of the store takes with all that is in it, as far as it can be read."""
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


def _remove(connection: sqlite3.Connection, namespace: str, found: Picture, nodes: Iterable[Node]) -> None:
    keys: dict[str, list[tuple[str, str]]] = {}
    numbers = []
    for kind, key in nodes:
        if kind.startswith(SNAPSHOTS):
            numbers.append((found.numbers[kind, key],))
        else:
            keys.setdefault(kind, []).append((namespace, key))
    for kind, statement in _REMOVALS:
        connection.executemany(statement, keys.get(kind, ()))
    # A parent may be newer than its child, and is asked for its children when the change is whole.
    connection.execute("PRAGMA defer_foreign_keys = ON")
    connection.executemany("DELETE FROM snapshot WHERE number = ?", numbers)


_REMOVALS: Final = (
    (LEASES, "DELETE FROM lease WHERE namespace = ? AND id = ?"),
    (IMAGES, "DELETE FROM image WHERE namespace = ? AND name = ?"),
    (INGESTS, "DELETE FROM ingest WHERE namespace = ? AND ref = ?"),
    (CONTENT, "DELETE FROM blob WHERE namespace = ? AND digest = ?"),
)


def sweep_files(store: Store) -> None:
    """Remove all files that no row names, whoever left them: blobs, ingests, and snapshots of every kind.

    One kind that fails does not keep the others from it; the first failure is raised then.
    """
    from lamella.store.content.files import sweep
    from lamella.store.snapshots.kinds import SNAPSHOTTERS

    failures: list[LamellaError] = []
    try:
        sweep(store.root, store.database)
    except LamellaError as problem:
        failures.append(problem)
    try:
        locks.sweep(store.root)
    except OSError as problem:
        failures.append(from_os(problem, "remove locks that nobody holds"))
    for snapshotter in sorted(os.listdir(store.root / SNAPSHOT_FOLDER)):
        if snapshotter not in SNAPSHOTTERS:
            continue  # somebody else's, of which nothing is known here
        try:
            store.namespace(_ANY).snapshots(snapshotter).cleanup()
        except LamellaError as problem:
            failures.append(problem)
    if failures:
        raise failures[0]


_ANY: Final = "default"
"""The files of snapshots are no namespace's."""
