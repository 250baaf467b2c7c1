# SPDX-License-Identifier: Apache-2.0
"""Comparison of committed snapshots with the layers that they were unpacked from.

Comparing digests of tars would say nothing: each tool writes the same files as another tar. So the layers are read from
their blobs, base first, into a tree in memory, which is compared with the tree of the snapshot. Without the blobs, the
result is unknown.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from msgspec import Struct

from lamella.changes.apply import apply
from lamella.changes.contracts import Tree
from lamella.changes.diff import same_bytes
from lamella.changes.model import Content, Entry, Kind, Posix
from lamella.changes.tree import MemorySink, MemoryTree
from lamella.digests import Digest, parse_digest
from lamella.errors import LamellaError, NotFound
from lamella.layers.policy import refusal
from lamella.layers.tar.source import tar_changes
from lamella.paths import ROOT, LayerPath
from lamella.store.check.snapshots import Comparison, Verdict
from lamella.store.unpack.image import DIFF_ID, UNCOMPRESSED
from lamella.streams.blob_reader import BlobReader
from lamella.streams.seekable import SeekableBlob
from lamella.times import SECOND

if TYPE_CHECKING:
    from lamella.progress import Cancellation
    from lamella.store.contract import SnapshotRecord
    from lamella.store.snapshots.snapshotter import LocalSnapshots
    from lamella.store.store import LocalNamespace

_LAST_TIME: Final = (1 << 31) * SECOND
"""Times beyond this, and before the epoch, are not stored by all file systems."""


class Rediff:
    """Compares snapshots, parents first, with their layers (`CompareSnapshot`). Close it, or use it as a context.

    Keeps the tree of the last snapshot, so that each layer of a chain is read once.
    """

    def __init__(self, cancel: Cancellation | None = None) -> None:
        self._cancel = cancel
        self._held = ExitStack()
        self._known: tuple[str, str, str] | None = None
        """The snapshot that the tree belongs to."""
        self._tree = MemoryTree()

    def __call__(self, namespace: LocalNamespace, snapshots: LocalSnapshots, record: SnapshotRecord) -> Comparison:
        key = (namespace.name, snapshots.name, record.name)
        chain = [record]
        if snapshots.windows:
            return Comparison(Verdict.UNKNOWN, "Windows layers are not compared, since importing them adds files")
        while chain[-1].parent and self._known != (namespace.name, snapshots.name, chain[-1].parent):
            chain.append(snapshots.stat(chain[-1].parent))
        if not chain[-1].parent:
            self.close()
        known, self._known = self._known, None  # invalid until all layers are applied
        put: set[LayerPath] = set()
        for one in reversed(chain):
            blob = _blob(namespace, one)
            if isinstance(blob, str):
                if len(chain) == 1 and one.parent:
                    self._known = known  # nothing was applied
                return Comparison(Verdict.UNKNOWN, blob)
            put = self._apply(namespace, *blob)
        self._known = key
        # The native driver copies all files; the others have only those of their layer.
        found = _Difference()
        with snapshots.tree(record.name) as tree:
            _compare(self._tree, tree, None if snapshots.name == "native" else put, found)
        if found.certain:
            return Comparison(Verdict.DIFFERENT, found.certain)
        if found.possible:
            return Comparison(Verdict.UNKNOWN, found.possible)
        return Comparison(Verdict.SAME)

    def _apply(self, namespace: LocalNamespace, blob: Digest, diff_id: Digest) -> set[LayerPath]:
        """Apply a layer to the tree; return the paths that it puts."""
        stored = SeekableBlob(lambda: namespace.content.open(blob), None)
        self._held.callback(stored.close)
        sink = _RecordingSink(self._tree)
        with (
            namespace.content.open(blob) as file,
            BlobReader(file, digest=blob, diff_id=diff_id, cancel=self._cancel) as reader,
        ):
            apply(tar_changes(reader.next_buffer, stored=stored, end=reader.finish), sink, cancel=self._cancel)
            reader.finish()
        return sink.paths

    def close(self) -> None:
        """Close the blobs. May be called again."""
        self._held.close()
        self._held = ExitStack()
        self._known = None
        self._tree = MemoryTree()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _blob(namespace: LocalNamespace, record: SnapshotRecord) -> tuple[Digest, Digest] | str:
    """Return the blob and the diff id of a snapshot's layer; or a message why there is none."""
    stated = record.labels.get(DIFF_ID)
    if not stated:
        return f"{record.name} has no label that names its layer"
    try:
        diff_id = parse_digest(stated)
    except LamellaError as problem:
        return str(problem)
    for found in namespace.content.walk([f'labels."{UNCOMPRESSED}"=={diff_id}']):
        return found.digest, diff_id
    try:
        return namespace.content.info(diff_id).digest, diff_id
    except NotFound:
        return f"the layer with diff id {diff_id} is not in the store any more"


class _RecordingSink(MemorySink):
    """Records the paths that a layer puts."""

    __slots__ = ("paths",)

    def __init__(self, tree: MemoryTree) -> None:
        super().__init__(tree)
        self.paths: set[LayerPath] = set()

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        self.paths.add(entry.path)
        return super().put(entry, content)

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        self.paths.add(path)
        return super().link(path, target)


class _Difference(Struct):
    """The first certain difference, and the first that a file system or a policy may have caused."""

    certain: str = ""
    possible: str = ""

    def record(self, path: LayerPath, what: str, *, certain: bool = True) -> None:
        text = f"{path or '/'}: {what}"
        if certain:
            self.certain = self.certain or text
        else:
            self.possible = self.possible or text


def _compare(expected: Tree, actual: Tree, read: Container[LayerPath] | None, found: _Difference) -> None:
    """Compare until a difference is certain; compare the content of the files in ``read`` only, None for all."""
    todo = [ROOT]
    _compare_entries(_lookup(expected, ROOT), _lookup(actual, ROOT), found)
    while todo and not found.certain:
        directory = todo.pop()
        names = {entry.path: entry for entry in actual.entries(directory)}
        for want in expected.entries(directory):
            have = names.pop(want.path, None)
            if have is None:
                device = want.kind in (Kind.CHARACTER, Kind.BLOCK)
                found.record(want.path, f"the {want.kind.phrase} is missing", certain=not device)
                continue
            _compare_entries(want, have, found)
            if want.kind is Kind.DIRECTORY and have.kind is Kind.DIRECTORY:
                todo.append(want.path)
            elif (
                (read is None or want.path in read)
                and (want.kind, have.kind, want.size) == (Kind.FILE, Kind.FILE, have.size)
                and not same_bytes(expected.open(want.path), actual.open(want.path))
            ):
                found.record(want.path, "its content differs")
        for path, entry in names.items():
            found.record(path, f"no layer has this {entry.kind.phrase}")


def _lookup(tree: Tree, path: LayerPath) -> Entry:
    entry = tree.lookup(path)
    if entry is None:
        raise NotFound(f"{path!r} does not exist")
    return entry


def _compare_entries(want: Entry, have: Entry, found: _Difference) -> None:
    for what, certain in _differences(want, have):
        found.record(want.path, what, certain=certain)


def _differences(want: Entry, have: Entry) -> Iterator[tuple[str, bool]]:
    if want.kind is not have.kind:
        yield f"a {want.kind.phrase} became a {have.kind.phrase}", True
        return
    if want.size != have.size:
        yield f"{want.size} bytes became {have.size}", True
    if want.target != have.target:
        yield f"its target {want.target!r} became {have.target!r}", True
    if want.posix is not None and have.posix is not None:
        yield from _posix_differences(want.kind, want.posix, have.posix)


def _posix_differences(kind: Kind, want: Posix, have: Posix) -> Iterator[tuple[str, bool]]:
    if want.mode != have.mode and kind is not Kind.SYMLINK:
        yield f"mode {want.mode:04o} became {have.mode:04o}", True
    if want.device != have.device:
        yield "its device number changed", True
    if want.mtime != have.mtime:
        yield "its time changed", 0 <= want.mtime < _LAST_TIME
    if (want.uid, want.gid) != (have.uid, have.gid):
        yield f"owner {want.uid}:{want.gid} became {have.uid}:{have.gid}", False
    kept = {name: value for name, value in want.xattrs.items() if refusal(name) is None}
    for name, value in kept.items():
        if have.xattrs.get(name) != value:
            yield f"its attribute {name!r} {'changed' if name in have.xattrs else 'is missing'}", name in have.xattrs
    for name in have.xattrs:
        if name not in kept and refusal(name) is None:
            yield f"no layer has its attribute {name!r}", False  # security modules and ACLs add their own
