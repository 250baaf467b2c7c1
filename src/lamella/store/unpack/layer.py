# SPDX-License-Identifier: Apache-2.0
"""One layer, from its blob into an active snapshot: by this process, or by another (`layer_process`).

What is to be done says all that is needed, so that whoever does it asks no database: a process that was forked must
not, since SQLite's locks belong to the one that it was forked from.
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
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Entry, Kind
from lamella.digests import Digest
from lamella.errors import DigestMismatch, FormatError, LamellaError, NotFound, UnsafePath
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


class LayerWork(Struct, frozen=True):
    """What is to be done."""

    target: SnapshotTarget
    """The active snapshot."""
    root: Path
    """Of the store."""
    blob: Digest
    """The store has it."""
    held: int
    """Bytes of its file, as the store knows them."""
    size: int
    """Bytes that were promised."""
    diff_id: Digest
    compression: str
    policy: Policy | None
    buffers: int
    """Of the ring, see `BlobReader`."""


class LayerDone(Struct, frozen=True):
    """What came of it."""

    entries: int
    losses: tuple[Loss, ...]
    lost: int
    """How many losses there were."""
    beneath: Usage | None
    """See `SnapshotDriver.usage_below_root`."""
    assumed: frozenset[LayerPath] = frozenset()
    """Directories that were taken to be below, where that was not known."""
    covered: frozenset[LayerPath] = frozenset()
    """What was taken to be below, and hidden by a whiteout."""
    root: Entry | None = None
    """The root as the layer states it, where what is below was not known."""


Advance: TypeAlias = Callable[[int], object]


def do(work: LayerWork, advance: Advance, cancel: Cancellation | None) -> LayerDone:
    """Unpack a layer; its size and its diff id are checked. Raises what reading and writing it raise.

    The blob was checked when the store took it in, and what is unpacked is held against the diff id. So the blob is
    hashed only where it leads to something wrong: to tell one that has been damaged since from one that was made so.
    """
    losses = Losses()
    counts = Counts()
    try:
        sink = _applied(work, losses, counts, advance, cancel)
    except (FormatError, DigestMismatch, UnsafePath) as problem:
        _check_blob(work, problem)
        raise
    kept, beneath = tuple(losses.kept), work.target.usage_below_root()
    if isinstance(sink, OverlayRules):
        assumed, covered = frozenset(sink.assumed), frozenset(sink.covered)
        return LayerDone(counts.changes, kept, losses.count, beneath, assumed, covered, sink.root)
    return LayerDone(counts.changes, kept, losses.count, beneath)


def _applied(
    work: LayerWork, losses: Losses, counts: Counts, advance: Advance, cancel: Cancellation | None
) -> Sink[Losses]:
    with (
        cast("BinaryIO", _opened(work)) as file,
        BlobReader(
            file,
            compression=work.compression,
            size=work.size,
            diff_id=work.diff_id,
            hash_blob=False,
            progress=advance,
            cancel=cancel,
            buffers=work.buffers,
        ) as reader,
    ):
        sink = work.target.sink(work.policy, losses)
        row = SNAPSHOTTERS[work.target.driver.name]
        rules: NameRules | None = None
        if row.windows:
            from lamella.layers.windows.names import AS_WINDOWS

            rules = AS_WINDOWS
        apply(tar_changes(row.layer, reader, sink, rules), sink, cancel=cancel, counts=counts)
        reader.finish()
    return sink


def _check_blob(work: LayerWork, problem: LamellaError) -> None:
    """Raise DigestMismatch where the blob is not what the store took in."""
    with _opened(work) as file:
        actual = Digest.finish(hashlib.file_digest(file, work.blob.algorithm))
    if actual != work.blob:
        raise DigestMismatch("layer blob", expected=work.blob, actual=actual) from problem


def _opened(work: LayerWork) -> FileIO:
    try:
        return open_blob(work.root, work.blob, work.held)
    except FileNotFoundError:
        raise NotFound(f"blob {work.blob} was removed before it was unpacked") from None


def fits(done: LayerDone, below: Tree) -> bool:
    """Whether ``below`` is what a layer that did not know what is below has taken it for."""
    if any(loss.path == ROOT and loss.what == "opaque marker" for loss in done.losses):
        return False  # which is no loss where the parent is known
    if done.root is not None and _looks_unstated(done.root):
        root = below.lookup(ROOT)
        if root is None or root.posix != done.root.posix:
            return False
    # Directories that the layer does not state would have to be those below; so none may be needed.
    return not done.assumed


def would_show(done: LayerDone, below: Tree) -> list[LayerPath]:
    """The whiteouts of such a layer that a mount would list.

    Those are of nothing, and in a directory that lies over none: where a mount merges directories, it hides whiteouts.
    """
    found: list[LayerPath] = []
    for path in sorted(done.covered):
        if below.lookup(path) is None:
            parent = below.lookup(split(path)[0])
            if parent is None or parent.kind is not Kind.DIRECTORY:
                found.append(path)
    return found


def _looks_unstated(root: Entry) -> bool:
    """Whether a snapshot that is given a parent would take this root for one that no layer has stated."""
    posix = root.posix
    return posix is not None and posix.mtime == 0 and posix.mode & 0o7777 == 0o755
