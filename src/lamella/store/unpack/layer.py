# SPDX-License-Identifier: Apache-2.0
"""Unpacks one layer, from its blob into an active snapshot, in this process or in a worker process.

Unpacking mostly takes interpreter time, which the threads of one process cannot share. A `LayerTask` has all that a
worker needs, so that a worker never opens the database: SQLite connections and locks must not cross a fork.

A layer can be unpacked before its parent is committed, with its parents taken as unknown. `matches_parent` and
`visible_whiteouts` then compare what was assumed with the parent, before the snapshot is rebased onto it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, cast

from msgspec import Struct

from lamella.changes.apply import Counts, apply
from lamella.changes.contracts import Sink, Tree
from lamella.changes.losses import Losses
from lamella.changes.model import Entry, Kind
from lamella.digests import Digest
from lamella.errors import DigestMismatch, FormatError, LamellaError, NotFound, UnsafePath
from lamella.host.worker import Channel, Worker
from lamella.layers.kinds import tar_changes
from lamella.layers.overlay.rules import OverlayRules
from lamella.layers.policy import Policy
from lamella.paths import ROOT, LayerPath, split
from lamella.store.content.files import open_blob
from lamella.store.contract import Usage
from lamella.store.snapshots.driver import SnapshotTarget
from lamella.store.snapshots.kinds import SNAPSHOTTERS
from lamella.streams.blob_reader import BlobReader

if TYPE_CHECKING:
    from lamella.layers.windows.names import NameRules
    from lamella.progress import Cancellation


class LayerTask(Struct, frozen=True):
    """A layer to unpack."""

    target: SnapshotTarget
    """The active snapshot."""
    root: Path
    """Directory of the store."""
    blob: Digest
    """Digest of the blob, which the store has."""
    stored_size: int
    """Bytes of the blob's file."""
    size: int
    """Bytes of the blob by its descriptor."""
    diff_id: Digest
    compression: str
    policy: Policy | None
    buffers: int
    """Buffers of the ring of `BlobReader`."""


class LayerResult(Struct, frozen=True):
    """What unpacking a layer found. The last three are set only for a layer whose parents were unknown."""

    entries: int
    """Changes that the layer states."""
    losses: Losses
    below_root: Usage | None
    """Result of `SnapshotDriver.usage_below_root`."""
    assumed: frozenset[LayerPath] = frozenset()
    """Directories that the layer implies; the parent was assumed to have them."""
    whiteouts: frozenset[LayerPath] = frozenset()
    """Paths of whiteouts; the parent was assumed to have files there."""
    root: Entry | None = None
    """The root directory, if the layer states it."""


Advance: TypeAlias = Callable[[int], object]
"""Takes the bytes of the blob that were read since the last call."""


class LayerUnpacker:
    """Unpacks one layer after the other, in a worker process if ``worker`` is given. Not thread-safe."""

    def __init__(self, *, worker: bool) -> None:
        self.in_worker = worker
        self._worker: Worker | None = None

    def start(self, *, fork: bool) -> None:
        """Start the worker early, which permits a fork; else `unpack` starts an interpreter. Raises OSError."""
        self._worker = Worker(_serve, task="unpacks a layer", fork=fork)

    def unpack(self, task: LayerTask, advance: Advance, cancel: Cancellation | None) -> LayerResult:
        """Unpack a layer. Raises as `unpack_layer`, and Unavailable if the worker ends before its work is done."""
        if not self.in_worker:
            return unpack_layer(task, advance, cancel)
        import pickle

        if self._worker is None:
            self.start(fork=False)
        assert self._worker is not None  # noqa: S101  # it has just been started
        worker, check = self._worker, None if cancel is None else cancel.check
        try:
            worker.send(pickle.dumps(task))
            while isinstance(message := worker.receive(check), int):
                advance(message)
        except BaseException:
            self.close()
            raise
        result: LayerResult = pickle.loads(message)  # noqa: S301  # from our own worker
        return result

    def close(self) -> None:
        """End the worker. May be called again."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()


def _serve(channel: Channel) -> None:
    """Answer each pickled `LayerTask`: any number of integers (bytes read since), then a pickled `LayerResult`."""
    import pickle

    channel.answer(lambda raw: pickle.dumps(unpack_layer(pickle.loads(raw), channel.send, None)))  # noqa: S301


def unpack_layer(task: LayerTask, advance: Advance, cancel: Cancellation | None) -> LayerResult:
    """Unpack a layer and check its size and diff id. Raises what reading the blob and writing the snapshot raise.

    The store has checked the blob's digest once. It is computed again only after an error, to tell a blob that was
    damaged since from one that was malformed from the start.
    """
    losses = Losses()
    counts = Counts()
    try:
        sink = _apply(task, losses, counts, advance, cancel)
    except (FormatError, DigestMismatch, UnsafePath) as error:
        _check_blob(task, error)
        raise
    below_root = task.target.usage_below_root()
    if isinstance(sink, OverlayRules):
        assumed, whiteouts = frozenset(sink.assumed), frozenset(sink.whiteouts)
        return LayerResult(counts.changes, losses, below_root, assumed, whiteouts, sink.root)
    return LayerResult(counts.changes, losses, below_root)


def _apply(
    task: LayerTask, losses: Losses, counts: Counts, advance: Advance, cancel: Cancellation | None
) -> Sink[Losses]:
    with (
        cast("BinaryIO", _open(task)) as file,
        BlobReader(
            file,
            compression=task.compression,
            size=task.size,
            diff_id=task.diff_id,
            hash_blob=False,
            progress=advance,
            cancel=cancel,
            buffers=task.buffers,
        ) as reader,
    ):
        sink = task.target.sink(task.policy, losses)
        row = SNAPSHOTTERS[task.target.driver.name]
        rules: NameRules | None = None
        if row.windows:
            from lamella.layers.windows.names import AS_WINDOWS

            rules = AS_WINDOWS
        apply(tar_changes(row.layer, reader, sink, rules), sink, cancel=cancel, counts=counts)
        reader.finish()
    return sink


def _check_blob(task: LayerTask, error: LamellaError) -> None:
    """Raise DigestMismatch if the blob has been damaged since the store took it in."""
    with _open(task) as file:
        actual = Digest.finish(hashlib.file_digest(file, task.blob.algorithm))
    if actual != task.blob:
        raise DigestMismatch("layer blob", expected=task.blob, actual=actual) from error


def _open(task: LayerTask) -> FileIO:
    try:
        return open_blob(task.root, task.blob, task.stored_size)
    except FileNotFoundError:
        raise NotFound(f"blob {task.blob} was removed before it was unpacked") from None


def matches_parent(result: LayerResult, below: Tree) -> bool:
    """Whether a layer that was unpacked with unknown parents can be rebased onto ``below``; if not, unpack it again."""
    if any(loss.path == ROOT and loss.what == "opaque marker" for loss in result.losses):
        return False  # with known parents the marker is kept
    if result.root is not None and _looks_unstated(result.root):
        # The rebase would replace the stated metadata by the parent's: harmless only if they are equal.
        root = below.lookup(ROOT)
        if root is None or root.posix != result.root.posix:
            return False
    # An implied directory takes the metadata of the parent's directory, which was unknown.
    return not result.assumed


def visible_whiteouts(result: LayerResult, below: Tree) -> list[LayerPath]:
    """The whiteouts that an overlay mount on ``below`` would list as files, of a layer unpacked with unknown parents.

    These hide nothing, and their directory is missing below: a mount hides whiteouts in merged directories only.
    """
    found: list[LayerPath] = []
    for path in sorted(result.whiteouts):
        if below.lookup(path) is None:
            parent = below.lookup(split(path)[0])
            if parent is None or parent.kind is not Kind.DIRECTORY:
                found.append(path)
    return found


def _looks_unstated(root: Entry) -> bool:
    """Whether a stated root has the metadata of an implied one, so that a rebase takes it for one (`is_unstated`)."""
    posix = root.posix
    return posix is not None and posix.mtime == 0 and posix.mode & 0o7777 == 0o755
