# SPDX-License-Identifier: Apache-2.0
"""Committed snapshots held against the layers that they were unpacked from.

To write a snapshot as a tar again and to compare digests would say nothing: of the same files each tool makes another
tar. So the layers are read from their blobs, from the base on, into a tree in memory, and each file of that tree is
looked up in the snapshot. Where a blob is not in the store any more, nothing can be told.
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
from lamella.store.check.check import Compared, Verdict
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
"""Some file systems hold times up to here, and none before the epoch."""


class Rediff:
    """Compares snapshots, given parents first, with what their layers come to. To be closed, or used as a context.

    The tree of the snapshot before is kept, so that a chain is read once and not once for each of its members.
    """

    def __init__(self, cancel: Cancellation | None = None) -> None:
        self._cancel = cancel
        self._held = ExitStack()
        self._known: tuple[str, str, str] | None = None
        """Of which snapshot the tree is."""
        self._tree = MemoryTree()

    def __call__(self, space: LocalNamespace, snapshots: LocalSnapshots, record: SnapshotRecord) -> Compared:
        """The differ that `lamella.store.check.check.check` takes."""
        key = (space.name, snapshots.name, record.name)
        chain = [record]
        if snapshots.windows:
            return Compared(Verdict.UNKNOWN, "layers of Windows are not compared, since importing them adds files")
        while chain[-1].parent and self._known != (space.name, snapshots.name, chain[-1].parent):
            chain.append(snapshots.stat(chain[-1].parent))
        if not chain[-1].parent:
            self.close()
        known, self._known = self._known, None  # until it has all been applied
        put: set[LayerPath] = set()
        for one in reversed(chain):
            blob = _blob(space, one)
            if isinstance(blob, str):
                if len(chain) == 1 and one.parent:
                    self._known = known  # nothing was applied
                return Compared(Verdict.UNKNOWN, blob)
            put = self._apply(space, *blob)
        self._known = key
        # A copy has all of its files anew, the others those of their own layer alone.
        found = _Difference()
        with snapshots.tree(record.name) as tree:
            _compare(self._tree, tree, None if snapshots.name == "native" else put, found)
        if found.sure:
            return Compared(Verdict.DIFFERENT, found.sure)
        if found.perhaps:
            return Compared(Verdict.UNKNOWN, found.perhaps)
        return Compared(Verdict.SAME)

    def _apply(self, space: LocalNamespace, blob: Digest, diff_id: Digest) -> set[LayerPath]:
        """Apply a layer to the tree; the paths that it puts."""
        stored = SeekableBlob(lambda: space.content.open(blob), None)
        self._held.callback(stored.close)
        sink = _NotingSink(self._tree)
        with (
            space.content.open(blob) as file,
            BlobReader(file, digest=blob, diff_id=diff_id, cancel=self._cancel) as reader,
        ):
            apply(tar_changes(reader.next_buffer, stored=stored, end=reader.finish), sink, cancel=self._cancel)
            reader.finish()
        return sink.noted

    def close(self) -> None:
        """Let go of the blobs. May be called again."""
        self._held.close()
        self._held = ExitStack()
        self._known = None
        self._tree = MemoryTree()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _blob(space: LocalNamespace, record: SnapshotRecord) -> tuple[Digest, Digest] | str:
    """The blob of the layer that a snapshot was made of and its diff id; or why there is none."""
    stated = record.labels.get(DIFF_ID)
    if not stated:
        return f"it is not known of which layer {record.name} was made"
    try:
        diff_id = parse_digest(stated)
    except LamellaError as problem:
        return str(problem)
    for found in space.content.walk([f'labels."{UNCOMPRESSED}"=={diff_id}']):
        return found.digest, diff_id
    try:
        return space.content.info(diff_id).digest, diff_id
    except NotFound:
        return f"the layer with diff id {diff_id} is not in the store any more"


class _NotingSink(MemorySink):
    """Notes which paths a layer puts."""

    __slots__ = ("noted",)

    def __init__(self, tree: MemoryTree) -> None:
        super().__init__(tree)
        self.noted: set[LayerPath] = set()

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        self.noted.add(entry.path)
        return super().put(entry, content)

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        self.noted.add(path)
        return super().link(path, target)


class _Difference(Struct):
    """The first difference that is one for sure, and the first that a file system or a policy may have caused."""

    sure: str = ""
    perhaps: str = ""

    def note(self, path: LayerPath, what: str, *, sure: bool = True) -> None:
        text = f"{path or '/'}: {what}"
        if sure:
            self.sure = self.sure or text
        else:
            self.perhaps = self.perhaps or text


def _compare(expected: Tree, actual: Tree, read: Container[LayerPath] | None, found: _Difference) -> None:
    """Look for differences until one is sure; the content of files in ``read`` alone, or of all."""
    todo = [ROOT]
    _entry(_there(expected, ROOT), _there(actual, ROOT), found)
    while todo and not found.sure:
        directory = todo.pop()
        names = {entry.path: entry for entry in actual.entries(directory)}
        for want in expected.entries(directory):
            have = names.pop(want.path, None)
            if have is None:
                device = want.kind in (Kind.CHARACTER, Kind.BLOCK)
                found.note(want.path, f"the {want.kind.phrase} is missing", sure=not device)
                continue
            _entry(want, have, found)
            if want.kind is Kind.DIRECTORY and have.kind is Kind.DIRECTORY:
                todo.append(want.path)
            elif (
                (read is None or want.path in read)
                and (want.kind, have.kind, want.size) == (Kind.FILE, Kind.FILE, have.size)
                and not same_bytes(expected.open(want.path), actual.open(want.path))
            ):
                found.note(want.path, "its content differs")
        for path, entry in names.items():
            found.note(path, f"no layer has this {entry.kind.phrase}")


def _there(tree: Tree, path: LayerPath) -> Entry:
    entry = tree.lookup(path)
    if entry is None:
        raise NotFound(f"{path!r} is not there")
    return entry


def _entry(want: Entry, have: Entry, found: _Difference) -> None:
    for what, sure in _differences(want, have):
        found.note(want.path, what, sure=sure)


def _differences(want: Entry, have: Entry) -> Iterator[tuple[str, bool]]:
    if want.kind is not have.kind:
        yield f"a {want.kind.phrase} became a {have.kind.phrase}", True
        return
    if want.size != have.size:
        yield f"{want.size} bytes became {have.size}", True
    if want.target != have.target:
        yield f"its target {want.target!r} became {have.target!r}", True
    if want.posix is not None and have.posix is not None:
        yield from _posix(want.kind, want.posix, have.posix)


def _posix(kind: Kind, want: Posix, have: Posix) -> Iterator[tuple[str, bool]]:
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
            yield f"no layer has its attribute {name!r}", False  # security modules and ACLs give their own
