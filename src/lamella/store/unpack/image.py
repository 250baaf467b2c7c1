# SPDX-License-Identifier: Apache-2.0
"""An image of the store into snapshots, one for each layer, named by chain ids as containerd's clients name them.

A layer whose chain id is a committed snapshot is there. Of those that are not, several are unpacked side by side where
the snapshotter allows it: each without its parent, which it is given when it is committed, in the images' order. What a
layer does not state itself depends on what lies below (directories on the way to its files, links, whiteouts). It is
noted what was taken to be there, and held against the parent once that is known; should it have been otherwise, the
layer is unpacked again, over its parent. So the result is always that of one layer after the other.

Whoever unpacks a layer holds a lock of its chain id, base first: others, in this and all processes, wait and find it.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.losses import Losses
from lamella.digests import Digest
from lamella.errors import (
    AlreadyExists,
    Denied,
    Exhausted,
    FormatError,
    InvalidInput,
    LamellaError,
    NotFound,
    UnsafePath,
)
from lamella.images.resolve import PlatformImage, resolve_image
from lamella.layers.directory.dirfd_cache import remove_tree
from lamella.oci.config import chain_ids
from lamella.progress import LinkedCancellation
from lamella.store.contract import Resource, SnapshotKind
from lamella.store.gc.labels import CONTENT, REF_SNAPSHOT, snapshot_type
from lamella.store.image_reader import StoreReader
from lamella.store.locks import exclusive_lock
from lamella.store.metadata.leases import under_lease
from lamella.store.snapshots.kinds import canonical
from lamella.store.snapshots.snapshotter import SNAPSHOT_REF
from lamella.store.unpack.layer import LayerDone, LayerWork, fits, would_show
from lamella.store.unpack.schedule import Lane, in_lanes
from lamella.streams.blob_reader import BUFFERS

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.layers.policy import Policy
    from lamella.oci.descriptor import Descriptor
    from lamella.oci.platform import Platform
    from lamella.progress import Cancellation, Progress
    from lamella.store.snapshots.snapshotter import LocalSnapshots
    from lamella.store.store import LocalNamespace

DIFF_ID: Final = "containerd.io/snapshot/diff-id"
"""The label of a snapshot that says of which layer it was made."""

UNCOMPRESSED: Final = "containerd.io/uncompressed"
"""The label of a layer's blob that says its diff id, once that has been checked."""

DEFAULT_SNAPSHOTTER: Final = "overlayfs"
WINDOWS_SNAPSHOTTER: Final = "cimfs"
"""The one for images of Windows, where none is named."""

_OWN_PROCESS: Final = 4 << 20
"""Bytes of a layer from which on a process of its own pays, whose start takes as long as to unpack about so many."""
_MOST_LANES: Final = 4
_FEW_BUFFERS: Final = 6
"""Of the ring of a layer that is unpacked beside others."""
_POLL: Final = 0.1
"""Seconds between two looks at the cancellation."""


class UnpackedLayer(Struct, frozen=True):
    """What came of one layer."""

    chain_id: Digest
    """The name of its snapshot."""
    diff_id: Digest
    digest: Digest
    skipped: bool
    """Whether it was there already."""
    entries: int = 0
    """Changes that the layer states."""
    again: bool = False
    """Whether it was unpacked a second time, over its parent."""


class Unpacked(Struct, frozen=True):
    """What came of an image."""

    manifest: Descriptor
    snapshotter: str
    snapshot: str
    """The one to make views of, or to run on: the chain id of all layers, empty for an image without any."""
    layers: tuple[UnpackedLayer, ...]
    """The base first."""
    losses: Losses


def unpack_image(
    space: LocalNamespace,
    target: Descriptor | str,
    snapshotter: str | None = None,
    *,
    platform: Platform | None = None,
    policy: Policy | None = None,
    losses: Losses | None = None,
    lanes: int | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Unpacked:
    """Unpack an image of the namespace, by its name or a manifest or index that it has, for ``platform`` or this host.

    What the layers come to is checked on the way, by size and diff id; one that is wrong is told from one whose blob
    has been damaged since the store took it in. A failure leaves the layers that are whole, for the next attempt or the
    next collection, and nothing of the others. The snapshots live as long as the image's config, which is labelled with
    them. ``lanes`` is how many layers are unpacked at once at most, None for what the machine has.
    Without a ``snapshotter`` it is the usual one for what the image is made for.

    Raises NotFound, Integrity, InvalidInput (also a snapshotter that keeps no layers for the image's system),
    Unsupported, Exhausted, Denied, Cancelled, LossRefused.
    """
    if isinstance(target, str):
        target = space.images.get(target).target
    losses = losses if losses is not None else Losses()
    with under_lease(space) as held:
        reader = StoreReader(held, target=target)
        image = resolve_image(reader, platform=platform)
        name = _snapshotter(held, image, snapshotter)
        assert held.lease is not None  # noqa: S101  # that is what `under_lease` is for
        held.leases.add(held.lease, Resource(CONTENT, image.descriptor.digest))  # and so all that it needs
        work = _Unpacking(held, name, image, policy, losses, progress, cancel)
        layers = work.run(lanes)
        top = layers[-1].chain_id if layers else ""
        if top:
            config = image.manifest.config.digest
            _label(held, config, REF_SNAPSHOT + name, top)
    return Unpacked(image.descriptor, name, top, layers, losses)


def _snapshotter(space: LocalNamespace, image: PlatformImage, given: str | None) -> str:
    """The name of the snapshotter for the image. Raises InvalidInput where ``given`` is one for another system."""
    windows = image.config.os == "windows"
    if given is None:
        return WINDOWS_SNAPSHOTTER if windows else DEFAULT_SNAPSHOTTER
    name = canonical(given)
    if space.snapshots(name).windows is not windows:
        raise InvalidInput(
            f"the image is for {image.config.os}, and {name!r} keeps layers of {'Linux' if windows else 'Windows'}",
            hint=f"the snapshotter {WINDOWS_SNAPSHOTTER if windows else DEFAULT_SNAPSHOTTER!r} is one for it",
        )
    return name


class _Unpacking:
    """The unpacking of one image."""

    def __init__(
        self,
        space: LocalNamespace,
        snapshotter: str,
        image: PlatformImage,
        policy: Policy | None,
        losses: Losses,
        progress: Progress | None,
        cancel: Cancellation | None,
    ) -> None:
        self._space = space
        self._name = snapshotter
        self._snapshots: LocalSnapshots = space.snapshots(snapshotter)
        self._layers = image.layers
        self._chain = chain_ids([layer.diff_id for layer in image.layers])
        self._policy = policy
        self._losses = losses
        self._progress = progress
        self._stop = LinkedCancellation(cancel)
        self._changed = threading.Condition()
        self._done: dict[int, UnpackedLayer] = {}
        """The layers whose snapshots are committed."""
        self._lanes = 1

    def run(self, lanes: int | None) -> tuple[UnpackedLayer, ...]:
        """Unpack what is not there yet."""
        start = next((at + 1 for at in reversed(range(len(self._chain))) if self._is_there(at)), 0)
        for at in range(start):
            self._done[at] = self._skipped(at)
        left = range(start, len(self._chain))
        if self._snapshots.can_rebase:
            large = sum(map(self._is_large, left))
            # Whoever takes turns with the small ones is this process, and one is enough for them.
            self._lanes = max(1, min(lanes or min(_processors(), _MOST_LANES), large + (large < len(left))))
        if self._progress is not None:
            self._progress.start("unpack", sum(self._layers[at].descriptor.size for at in left))
        try:
            in_lanes(left, self._lanes, self._is_large, self._one, self._stop)
        finally:
            if self._progress is not None:
                self._progress.finish()
        return tuple(self._done[at] for at in range(len(self._chain)))

    def _is_large(self, at: int) -> bool:
        return self._layers[at].descriptor.size >= _OWN_PROCESS

    def _one(self, at: int, lane: Lane) -> None:
        """See to it that a layer's snapshot is committed."""
        work = f"unpack {self._space.name} {self._name} {self._chain[at]}"
        with exclusive_lock(self._space.store.root, work, self._stop):
            made = None if self._is_there(at) else self._make(at, lane)
        if made is None:
            made = self._skipped(at)
        with self._changed:
            self._done[at] = made
            self._changed.notify_all()

    def _make(self, at: int, lane: Lane) -> UnpackedLayer | None:
        """Unpack a layer and commit its snapshot; None where another client of the store was quicker."""
        beside = at > 0 and at - 1 not in self._done and self._snapshots.can_rebase
        try:
            made = self._beside(at, lane) if beside else None
            return made if made is not None else self._over(at, lane, again=beside)
        except AlreadyExists:
            if self._is_there(at):
                return None
            raise

    def _over(self, at: int, lane: Lane, *, again: bool) -> UnpackedLayer:
        """Unpack a layer over its parent, which is there."""
        parent = self._chain[at - 1] if at else ""
        with self._active(at, parent) as key:
            done = lane.do(self._work(at, key, known=True), self._nothing if again else self._advance, self._stop)
            return self._commit(at, key, parent, done, again=again)

    def _beside(self, at: int, lane: Lane) -> UnpackedLayer | None:
        """Unpack a layer whose parent is not there yet; None, once it is, where that has come out otherwise."""
        parent = self._chain[at - 1]
        with self._active(at, "") as key:
            try:
                done = lane.do(self._work(at, key, known=False), self._advance, self._stop)
            except (FormatError, UnsafePath):
                raise
            except (NotFound, InvalidInput):  # as for a link to a file of the parent
                done = None
            self._wait_for(at - 1)
            if done is None:
                return None
            with self._snapshots.tree(parent) as below:
                if not fits(done, below):
                    return None
                shown = would_show(done, below)
            if shown:
                try:
                    self._snapshots.remove_whiteouts(key, shown)
                except Denied:  # a directory keeps its owner out by now
                    return None
                done = replace(done, beneath=None)  # there is less of it now
            return self._commit(at, key, parent, done, again=False)

    @contextmanager
    def _active(self, at: int, parent: str) -> Iterator[str]:
        """An active snapshot for a layer, which is gone when the block ends, unless it was committed."""
        chain_id = self._chain[at]
        key = f"extract-{secrets.token_hex(8)} {chain_id}"
        self._snapshots.prepare_layer(key, parent, self._labels(at))
        try:
            yield key
        finally:
            self._discard(key)

    def _discard(self, key: str) -> None:
        """Remove an active snapshot, if it is there. What resists goes with the lease."""
        try:
            self._snapshots.remove(key)
        except Exhausted:  # a full disk takes no change of the database either
            with suppress(LamellaError, OSError):
                _empty(self._snapshots.directory(key))
                self._snapshots.remove(key)
        except LamellaError:
            pass

    def _work(self, at: int, key: str, *, known: bool) -> LayerWork:
        layer = self._layers[at]
        blob = layer.descriptor
        with self._space.content.open(blob.digest) as file:
            held = os.fstat(file.fileno()).st_size
        return LayerWork(
            self._snapshots.target(key, parents_known=known),
            self._space.store.root,
            blob.digest,
            held,
            blob.size,
            layer.diff_id,
            layer.compression,
            self._policy,
            BUFFERS if self._lanes == 1 else _FEW_BUFFERS,
        )

    def _commit(self, at: int, key: str, parent: str, done: LayerDone, *, again: bool) -> UnpackedLayer:
        for loss in done.losses:  # in the order of the layers, since each waits for its parent
            self._losses.record(loss)
        self._losses.count += done.lost - len(done.losses)
        layer, chain_id = self._layers[at], self._chain[at]
        self._snapshots.commit(chain_id, key, self._labels(at), parent, below_root=done.beneath)
        _label(self._space, layer.descriptor.digest, UNCOMPRESSED, layer.diff_id)
        return UnpackedLayer(chain_id, layer.diff_id, layer.descriptor.digest, False, done.entries, again)

    def _wait_for(self, at: int) -> None:
        with self._changed:
            while at not in self._done:
                self._stop.check()
                self._changed.wait(_POLL)

    def _is_there(self, at: int) -> bool:
        """Whether a layer's snapshot is committed; then it stays as long as the lease does."""
        lease, chain_id = self._space.lease, self._chain[at]
        try:
            if self._snapshots.stat(chain_id).kind is not SnapshotKind.COMMITTED:
                return False
            assert lease is not None  # noqa: S101  # that is what `under_lease` is for
            self._space.leases.add(lease, Resource(snapshot_type(self._name), chain_id))
            self._snapshots.stat(chain_id)  # it may have been collected before it was held
        except NotFound:
            return False
        return True

    def _skipped(self, at: int) -> UnpackedLayer:
        layer = self._layers[at]
        return UnpackedLayer(self._chain[at], layer.diff_id, layer.descriptor.digest, True)

    def _labels(self, at: int) -> dict[str, str]:
        return {SNAPSHOT_REF: str(self._chain[at]), DIFF_ID: str(self._layers[at].diff_id)}

    def _advance(self, amount: int) -> None:
        if self._progress is not None:
            self._progress.advance(amount)

    def _nothing(self, amount: int) -> None:
        """What is done again is not told of again."""


def _empty(place: Path) -> None:
    """Remove the files of a snapshot's place, and what lies in its directories."""
    for directory in os.listdir(place):
        if not (place / directory).is_dir():
            (place / directory).unlink()
            continue
        opened = os.open(place / directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for name in os.listdir(opened):
                remove_tree(opened, name)
        finally:
            os.close(opened)


def _label(space: LocalNamespace, digest: Digest, label: str, value: str) -> None:
    """Set a label of a blob, if there is the blob: a layer that was unpacked need not be."""
    content = space.content
    with suppress(NotFound):
        if content.info(digest).labels.get(label) != value:
            content.update(digest, {label: str(value)}, [f"labels.{label}"])


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
