# SPDX-License-Identifier: Apache-2.0
"""Whether all that a store says is there is there, and undamaged. Nothing is changed.

Others may be at work meanwhile. Files come before the rows that name them, and go after them; so what looks wrong is
looked at again, and is wrong if its row is the same before and after that. What work that was broken off has left
behind is not wrong; it is told of, and the next collection takes it away.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct

from lamella.digests import Digest, parse_digest
from lamella.errors import Cancelled, LamellaError, NotFound, from_os
from lamella.store.content.files import open_blob
from lamella.store.contract import SnapshotKind, SnapshotRecord
from lamella.store.disk_layout import BLOBS, INGEST, TRASH, snapshotter_path
from lamella.store.disk_layout import SNAPSHOTS as SNAPSHOT_FOLDER
from lamella.store.gc.labels import CONTENT, IMAGES, SNAPSHOTS
from lamella.store.snapshots.kinds import snapshot_driver

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress
    from lamella.store.snapshots.snapshotter import LocalSnapshots
    from lamella.store.store import LocalNamespace, Store

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
        home = snapshotter_path(self._store.root, row.snapshotter)
        driver, directory, kind = snapshot_driver(row.snapshotter, home), home / str(row.number), SnapshotKind(row.kind)
        if not directory.is_dir():
            return "its directory is missing"
        problem = driver.find_missing(directory, kind, has_parents=row.parent is not None)
        if problem or kind is not SnapshotKind.COMMITTED:
            return problem
        try:
            driver.verify(directory, self._step)
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


DATABASE: Final = "database"
ROOT: Final = "root"
"""Types of findings beside those that leases name."""

_CHUNK: Final = 1 << 20
_LEFT_SHOWN: Final = 5


class Verdict(Enum):
    """What came of comparing a snapshot with its layer."""

    SAME = "same"
    DIFFERENT = "different"
    UNKNOWN = "cannot tell"


class Compared(Struct, frozen=True):
    """A snapshot that was compared with its layer."""

    verdict: Verdict
    why: str = ""
    """What differs first, or why nothing can be told."""


Differ: TypeAlias = "Callable[[LocalNamespace, LocalSnapshots, SnapshotRecord], Compared]"
"""Compares a committed snapshot with the layer that it was unpacked from."""


class Finding(Struct, frozen=True):
    """Something that is not as it should be."""

    namespace: str
    """Empty where it concerns all."""
    type: str
    """As leases name it, or `DATABASE`, `ROOT`."""
    id: str
    problem: str
    missing: tuple[Digest, ...] = ()
    """What is to be fetched again."""

    def __str__(self) -> str:
        where = f" (namespace {self.namespace})" if self.namespace else ""
        return f"{self.type} {self.id}{where}: {self.problem}"


class Report(Struct, frozen=True):
    """What a check has found."""

    faults: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    """What is worth knowing, and no fault of the store: images that are not there whole, leftovers."""
    blobs: int
    """Files of blobs that are whole."""
    size: int
    """Bytes of them."""
    snapshots: int
    """That have their directories."""
    same: int = 0
    """Snapshots that are what their layers say."""
    undecided: tuple[Finding, ...] = ()
    """Snapshots that could not be compared, and why."""

    @property
    def sound(self) -> bool:
        """Whether all is well."""
        return not self.faults


def check(
    store: Store,
    *,
    threads: int | None = None,
    differ: Differ | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Report:
    """Look at all of a store: the database, each blob's bytes, each snapshot's directory, what images need.

    ``differ`` compares committed snapshots with their layers besides. Raises Cancelled, and what the database raises
    where it cannot be read at all.
    """
    faults: list[Finding] = list(_root(store))
    broken = list(_database(store))
    faults += broken
    bad, blobs, size = _blobs(store, threads or min(4, os.cpu_count() or 1), progress, cancel)
    faults += bad
    damaged = {finding.id for finding in bad}
    lost, snapshots = _snapshots(store, progress, cancel)
    faults += lost
    incomplete, notes = _images(store, damaged)
    faults += incomplete
    notes += _leftovers(store)
    undecided: list[Finding] = []
    same = 0
    if differ is not None:
        for finding, verdict in _compared(store, differ, {(one.namespace, one.type, one.id) for one in lost}, cancel):
            match verdict:
                case Verdict.SAME:
                    same += 1
                case Verdict.DIFFERENT:
                    faults.append(finding)
                case Verdict.UNKNOWN:
                    undecided.append(finding)
    return Report(tuple(faults), tuple(notes), blobs, size, snapshots, same, tuple(undecided))


def _root(store: Store) -> Iterator[Finding]:
    mode = stat.S_IMODE(store.root.stat().st_mode)
    if mode & 0o077:
        yield Finding("", ROOT, os.fspath(store.root), f"other users can get in: mode {mode:04o}, not 0700")


def _database(store: Store) -> Iterator[Finding]:
    with store.database.read() as connection:
        for (text,) in connection.execute("PRAGMA integrity_check(20)"):
            if text != "ok":
                yield Finding("", DATABASE, "integrity", str(text))
        for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
            yield Finding("", DATABASE, str(table), f"row {row} refers to a {parent} that is not there")


# Blobs


def _blobs(
    store: Store, threads: int, progress: Progress | None, cancel: Cancellation | None
) -> tuple[list[Finding], int, int]:
    with store.database.read() as connection:
        rows: list[tuple[str, int]] = connection.execute(
            "SELECT digest, max(size) FROM blob GROUP BY digest ORDER BY digest"
        ).fetchall()
    if progress is not None:
        progress.start("check", sum(size for _, size in rows))
    faults: list[Finding] = []
    whole = total = 0
    try:
        with ThreadPoolExecutor(threads) as pool:
            waiting: dict[Future[str], tuple[Digest, int]] = {}
            todo = iter(rows)
            try:
                while True:
                    while len(waiting) < 2 * threads and (row := next(todo, None)) is not None:
                        digest = parse_digest(row[0])
                        waiting[pool.submit(_problem, store, digest, row[1], progress, cancel)] = (digest, row[1])
                    if not waiting:
                        break
                    for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                        digest, size = waiting.pop(done)
                        problem = done.result()
                        if problem:
                            faults += _still(store, digest)
                        else:
                            whole += 1
                            total += size
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        if progress is not None:
            progress.finish()
    return faults, whole, total


def _problem(
    store: Store, digest: Digest, size: int, progress: Progress | None = None, cancel: Cancellation | None = None
) -> str:
    """What is wrong with the file of a blob; nothing where nothing is."""
    state = hashlib.new(digest.algorithm)
    try:
        with open_blob(store.root, digest, size) as file:
            while chunk := file.read(_CHUNK):
                if cancel is not None:
                    cancel.check()
                state.update(chunk)
                if progress is not None:
                    progress.advance(len(chunk))
    except FileNotFoundError:
        return "its file is missing"
    except OSError as problem:
        return str(from_os(problem, "read its file"))
    except LamellaError as problem:
        if cancel is not None:
            cancel.check()
        return str(problem)
    actual = Digest.finish(state)
    return "" if actual == digest else f"its file is damaged: the digest is {actual}"


def _still(store: Store, digest: Digest) -> list[Finding]:
    """A blob that looked wrong, looked at again between two looks at its rows."""
    while rows := _blob_rows(store, digest):
        problem = _problem(store, digest, rows[0][1])
        if not problem:
            return []
        if rows == _blob_rows(store, digest):
            return [Finding(namespace, CONTENT, digest, problem, (digest,)) for namespace, _, _ in rows]
    return []


def _blob_rows(store: Store, digest: Digest) -> list[tuple[str, int, int]]:
    with store.database.read() as connection:
        return connection.execute(
            "SELECT namespace, size, created FROM blob WHERE digest = ? ORDER BY namespace", (digest,)
        ).fetchall()


# LocalSnapshots


def _snapshots(store: Store, progress: Progress | None, cancel: Cancellation | None) -> tuple[list[Finding], int]:

    found, whole = broken(store, progress, cancel)
    return [Finding(row.namespace, f"{SNAPSHOTS}{row.snapshotter}", row.name, problem) for row, problem in found], whole


def _compared(
    store: Store, differ: Differ, lost: set[tuple[str, str, str]], cancel: Cancellation | None
) -> Iterator[tuple[Finding, Verdict]]:
    with store.database.read() as connection:
        rows = connection.execute(
            "SELECT namespace, snapshotter, name FROM snapshot WHERE kind = ? ORDER BY number",
            (SnapshotKind.COMMITTED.value,),
        ).fetchall()
    for namespace, snapshotter, name in rows:
        if cancel is not None:
            cancel.check()
        kind = f"{SNAPSHOTS}{snapshotter}"
        if (namespace, kind, name) in lost:
            continue
        space = store.namespace(namespace)
        snapshots = space.snapshots(snapshotter)
        try:
            record = snapshots.stat(name)
            try:
                came = differ(space, snapshots, record)
            except Cancelled:
                raise
            except LamellaError as problem:
                came = Compared(Verdict.UNKNOWN, str(problem))
            if came.verdict is not Verdict.SAME and snapshots.stat(name).created_at != record.created_at:
                continue  # another has its name now
        except NotFound:
            continue  # removed meanwhile
        yield Finding(namespace, kind, name, came.why), came.verdict


# Images


def _images(store: Store, damaged: set[str]) -> tuple[list[Finding], list[Finding]]:
    """Images that are not there whole: those that cannot be used, and those that somebody chose to have in part."""
    from lamella.store.image_parts import parts_of

    faults, notes = [], []
    with store.database.read() as connection:
        names = connection.execute("SELECT DISTINCT namespace FROM image ORDER BY 1").fetchall()
    for (namespace,) in names:
        space = store.namespace(namespace)
        for image in space.images.list():
            parts = parts_of(space, image.target, damaged)
            if parts.missing:
                try:
                    parts = parts_of(space, space.images.get(image.name).target, damaged)
                except NotFound:
                    continue  # removed meanwhile
            if parts.missing:
                problem = f"{len(parts.missing)} of its blobs {'is' if len(parts.missing) == 1 else 'are'} missing"
                faults.append(Finding(namespace, IMAGES, image.name, problem, tuple(parts.missing)))
            elif parts.absent:
                count = len(parts.absent)
                blobs = "1 blob that it names is" if count == 1 else f"{count} blobs that it names are"
                problem = f"{blobs} not here, which it can be used without"
                notes.append(Finding(namespace, IMAGES, image.name, problem, tuple(parts.absent)))
    return faults, notes


# What is left over

_IMAGES: Final = "cim-layers"
"""The directory of all images of a snapshotter, each of which goes with its snapshot."""


def _leftovers(store: Store) -> list[Finding]:
    """Files that no row names. Those of work that goes on are among them at times, so that this is no fault."""
    root = store.root
    with store.database.read() as connection:
        named = {digest for (digest,) in connection.execute("SELECT DISTINCT digest FROM blob")}
        folders = {folder for (folder,) in connection.execute("SELECT folder FROM ingest")}
        numbers = {
            (snapshotter, str(number))
            for snapshotter, number in connection.execute("SELECT snapshotter, number FROM snapshot")
        }
        left = [f"{TRASH}/{name}" for name in _names(root / TRASH)]
        left += [f"{INGEST}/{name}" for name in _names(root / INGEST) if name not in folders]
        for algorithm in _names(root / BLOBS):
            left += [
                f"{BLOBS}/{algorithm}/{name}"
                for name in _names(root / BLOBS / algorithm)
                if f"{algorithm}:{name}" not in named
            ]
        for snapshotter in _names(root / SNAPSHOT_FOLDER):
            left += [
                f"{SNAPSHOT_FOLDER}/{snapshotter}/{name}"
                for name in _names(root / SNAPSHOT_FOLDER / snapshotter)
                if (snapshotter, name) not in numbers and (snapshotter, name) != ("cimfs", _IMAGES)
            ]
    if not left:
        return []
    shown = ", ".join(left[:_LEFT_SHOWN]) + (", ..." if len(left) > _LEFT_SHOWN else "")
    return [Finding("", ROOT, os.fspath(root), f"{len(left)} left over, for the next collection: {shown}")]


def _names(folder: os.PathLike[str]) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
