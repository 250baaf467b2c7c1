# SPDX-License-Identifier: Apache-2.0
"""Consistency check of a store: the database, blobs, snapshots and images. Changes nothing.

Runs beside writers. A file is made before its row and removed after it. So a problem is checked again, and is reported
if the row is the same before and after. Leftovers of interrupted work are no faults: they are reported as notes, and
the next collection removes them.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from lamella.changes.job import Job
from lamella.digests import Digest, parse_digest
from lamella.errors import LamellaError, NotFound, from_os
from lamella.images.graph import ImageGraph, Kind, Node
from lamella.oci.mediatypes import FOREIGN_LAYERS
from lamella.store.check.snapshots import CompareSnapshot, Verdict, compare_snapshots, find_broken_snapshots
from lamella.store.content.files import open_blob
from lamella.store.disk_layout import BLOBS, INGEST, SNAPSHOTS, TRASH
from lamella.store.gc.labels import CONTENT, IMAGES, REF_SNAPSHOT, snapshot_type
from lamella.store.image_reader import StoreReader

if TYPE_CHECKING:
    from lamella.oci.descriptor import Descriptor
    from lamella.store.store import LocalNamespace, Store

DATABASE: Final = "database"
ROOT: Final = "root"
"""Types of findings besides the resource types."""

_CHUNK: Final = 1 << 20
_MAX_LISTED: Final = 5
_CIM_IMAGES: Final = ("cimfs", "cim-layers")
"""Snapshotter and name of the directory that holds the images of all its snapshots."""


class Finding(Struct, frozen=True):
    """A problem that a check has found."""

    namespace: str
    """Empty if it concerns the whole store."""
    type: str
    """The resource type, `DATABASE` or `ROOT`."""
    id: str
    problem: str
    missing: tuple[Digest, ...] = ()
    """Blobs to fetch again."""

    def __str__(self) -> str:
        where = f" (namespace {self.namespace})" if self.namespace else ""
        return f"{self.type} {self.id}{where}: {self.problem}"


class Report(Struct, frozen=True):
    """The result of a check."""

    faults: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    """Findings that are no faults of the store: incomplete images, leftovers."""
    blobs: int
    """Number of intact blobs."""
    size: int
    """Bytes of the intact blobs."""
    snapshots: int
    """Number of intact snapshots."""
    same: int = 0
    """Number of snapshots that are the same as their layers."""
    undecided: tuple[Finding, ...] = ()
    """Snapshots that could not be compared, and why."""

    @property
    def sound(self) -> bool:
        """Whether there are no faults."""
        return not self.faults


class MissingBlobs(Struct):
    """The blobs of an image that the store lacks."""

    required: list[Digest] = field(default_factory=list)
    """Blobs without which the image cannot be used."""
    optional: list[Digest] = field(default_factory=list)
    """Images of platforms that were not imported, and layers that exist unpacked."""


def check(
    store: Store,
    *,
    threads: int | None = None,
    compare: CompareSnapshot | None = None,
    job: Job | None = None,
) -> Report:
    """Check the database, the bytes of each blob, the directory of each snapshot, and the blobs of each image.

    ``compare`` additionally compares committed snapshots with their layers. Raises Cancelled, and as `Database.read` if
    the database is unreadable.
    """
    job = job or Job()
    faults: list[Finding] = [*_check_root(store), *_check_database(store)]
    bad_blobs, blobs, size = _check_blobs(store, threads or min(4, os.cpu_count() or 1), job)
    faults += bad_blobs
    broken, snapshots = find_broken_snapshots(store, job)
    faults += [Finding(row.namespace, snapshot_type(row.snapshotter), row.name, problem) for row, problem in broken]
    incomplete, notes = _check_images(store, {finding.id for finding in bad_blobs})
    faults += incomplete
    notes += _find_leftovers(store)
    undecided: list[Finding] = []
    same = 0
    if compare is not None:
        skip = {(row.namespace, row.snapshotter, row.name) for row, _ in broken}
        for row, result in compare_snapshots(store, compare, skip, job):
            finding = Finding(row.namespace, snapshot_type(row.snapshotter), row.name, result.why)
            match result.verdict:
                case Verdict.SAME:
                    same += 1
                case Verdict.DIFFERENT:
                    faults.append(finding)
                case Verdict.UNKNOWN:
                    undecided.append(finding)
    return Report(tuple(faults), tuple(notes), blobs, size, snapshots, same, tuple(undecided))


def missing_blobs(namespace: LocalNamespace, target: Descriptor, damaged: Container[str] = ()) -> MissingBlobs:
    """Return the blobs that ``target`` refers to and the namespace lacks; one in ``damaged`` counts as missing."""
    required = {target.digest}
    missing: list[Digest] = []

    def select(node: Node) -> Iterable[Descriptor]:
        if not _has_blob(namespace, node.digest, damaged):
            missing.append(node.digest)
            return ()
        match node.kind:
            case Kind.INDEX:
                if not any(_has_blob(namespace, entry.digest, damaged) for entry in node.parts):
                    required.update(entry.digest for entry in node.parts)  # otherwise the user chose some platforms
            case Kind.MANIFEST:
                config = node.manifest.config.digest
                required.add(config)
                if not _is_unpacked(namespace, config):
                    required.update(one.digest for one in node.manifest.layers if one.media_type not in FOREIGN_LAYERS)
        return node.parts

    def record(unreadable: Descriptor, _: LamellaError) -> None:
        required.add(unreadable.digest)
        missing.append(unreadable.digest)

    for _ in ImageGraph(StoreReader(namespace)).walk([target], select, record):
        pass
    blobs = MissingBlobs()
    for digest in dict.fromkeys(missing):
        (blobs.required if digest in required else blobs.optional).append(digest)
    return blobs


def _has_blob(namespace: LocalNamespace, digest: Digest, damaged: Container[str]) -> bool:
    if digest in damaged:
        return False
    try:
        namespace.content.info(digest)
    except NotFound:
        return False
    return True


def _is_unpacked(namespace: LocalNamespace, config: Digest) -> bool:
    try:
        labels = namespace.content.info(config).labels
    except NotFound:
        return False
    return any(label.startswith(REF_SNAPSHOT) for label in labels)


def _check_root(store: Store) -> Iterator[Finding]:
    mode = stat.S_IMODE(store.root.stat().st_mode)
    if mode & 0o077:
        yield Finding("", ROOT, os.fspath(store.root), f"other users have access: mode {mode:04o}, not 0700")


def _check_database(store: Store) -> Iterator[Finding]:
    with store.database.read() as connection:
        for (text,) in connection.execute("PRAGMA integrity_check(20)"):
            if text != "ok":
                yield Finding("", DATABASE, "integrity", str(text))
        for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
            yield Finding("", DATABASE, str(table), f"row {row} refers to a missing {parent}")


def _check_blobs(store: Store, threads: int, job: Job) -> tuple[list[Finding], int, int]:
    """Return the findings, and number and bytes of the intact blobs."""
    with store.database.read() as connection:
        rows: list[tuple[str, int]] = connection.execute(
            "SELECT digest, max(size) FROM blob GROUP BY digest ORDER BY digest"
        ).fetchall()
    faults: list[Finding] = []
    intact = total = 0
    with job.step("check", sum(size for _, size in rows)), ThreadPoolExecutor(threads) as pool:
        waiting: dict[Future[str], tuple[Digest, int]] = {}
        todo = iter(rows)
        try:
            while True:
                while len(waiting) < 2 * threads and (row := next(todo, None)) is not None:
                    digest = parse_digest(row[0])
                    waiting[pool.submit(_check_blob, store, digest, row[1], job)] = (digest, row[1])
                if not waiting:
                    break
                for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                    digest, size = waiting.pop(done)
                    if done.result():
                        faults += _confirm_blob(store, digest)
                    else:
                        intact += 1
                        total += size
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return faults, intact, total


def _check_blob(store: Store, digest: Digest, size: int, job: Job) -> str:
    """Return the problem of a blob's file; empty if it is intact."""
    advance = job.advance
    state = hashlib.new(digest.algorithm)
    try:
        with open_blob(store.root, digest, size) as file:
            while chunk := file.read(_CHUNK):
                job.check()
                state.update(chunk)
                if advance is not None:
                    advance(len(chunk))
    except FileNotFoundError:
        return "its file is missing"
    except OSError as problem:
        return str(from_os(problem, "read its file"))
    except LamellaError as problem:
        job.check()
        return str(problem)
    actual = Digest.finish(state)
    return "" if actual == digest else f"its file is damaged: the digest is {actual}"


def _confirm_blob(store: Store, digest: Digest) -> list[Finding]:
    """Check a blob again until its rows are the same before and after."""
    while rows := _blob_rows(store, digest):
        problem = _check_blob(store, digest, rows[0][1], Job())
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


def _check_images(store: Store, damaged: set[str]) -> tuple[list[Finding], list[Finding]]:
    """Return the unusable images, and the usable ones that are incomplete."""
    faults, notes = [], []
    with store.database.read() as connection:
        names = connection.execute("SELECT DISTINCT namespace FROM image ORDER BY 1").fetchall()
    for (name,) in names:
        namespace = store.namespace(name)
        for image in namespace.images.list():
            missing = missing_blobs(namespace, image.target, damaged)
            if missing.required:
                try:
                    missing = missing_blobs(namespace, namespace.images.get(image.name).target, damaged)
                except NotFound:
                    continue  # removed meanwhile
            if missing.required:
                count = len(missing.required)
                problem = f"{count} of its blobs {'is' if count == 1 else 'are'} missing"
                faults.append(Finding(name, IMAGES, image.name, problem, tuple(missing.required)))
            elif missing.optional:
                count = len(missing.optional)
                problem = f"{count} {'blob' if count == 1 else 'blobs'} that it can be used without are missing"
                notes.append(Finding(name, IMAGES, image.name, problem, tuple(missing.optional)))
    return faults, notes


def _find_leftovers(store: Store) -> list[Finding]:
    """Find files that no row names. They may belong to work in progress, so they are no faults."""
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
        for snapshotter in _names(root / SNAPSHOTS):
            left += [
                f"{SNAPSHOTS}/{snapshotter}/{name}"
                for name in _names(root / SNAPSHOTS / snapshotter)
                if (snapshotter, name) not in numbers and (snapshotter, name) != _CIM_IMAGES
            ]
    if not left:
        return []
    listed = ", ".join(left[:_MAX_LISTED]) + (", ..." if len(left) > _MAX_LISTED else "")
    problem = f"{len(left)} {'leftover' if len(left) == 1 else 'leftovers'} for the next collection: {listed}"
    return [Finding("", ROOT, os.fspath(root), problem)]


def _names(folder: os.PathLike[str]) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
