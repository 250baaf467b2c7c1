# SPDX-License-Identifier: Apache-2.0
"""Unpacks an image of the store into snapshots, one for each layer, named by chain ids as containerd's clients do.

A layer whose chain id is a committed snapshot is skipped. Several others are unpacked at once if the snapshotter can
give an active snapshot another parent: each without its parent, which it gets at commit, in the order of the image.
What a layer does not state depends on its parent (implied directories, links, whiteouts). The unpacker records what it
assumed; once the parent is committed, a layer with wrong assumptions is unpacked again over it. So the result is
always that of one layer after the other.

A layer is unpacked under a lock of its chain id, base first: other threads and processes wait, and then find it.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.job import Job
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
from lamella.host.worker import can_fork, processors
from lamella.images.resolve import PlatformImage, resolve_image
from lamella.layers.directory.dirfd_cache import remove_tree
from lamella.oci.config import chain_ids
from lamella.parallel import Consumer, for_each
from lamella.store.contract import Resource, SnapshotKind
from lamella.store.gc.labels import CONTENT, REF_SNAPSHOT, snapshot_type
from lamella.store.image_reader import StoreReader
from lamella.store.locks import exclusive_lock
from lamella.store.metadata.leases import under_lease
from lamella.store.snapshots.kinds import canonical
from lamella.store.snapshots.snapshotter import SNAPSHOT_REF
from lamella.store.unpack.layer import LayerResult, LayerTask, LayerUnpacker, matches_parent, visible_whiteouts
from lamella.streams.blob_reader import BUFFERS

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.layers.policy import Policy
    from lamella.oci.descriptor import Descriptor
    from lamella.oci.platform import Platform
    from lamella.progress import Cancellation
    from lamella.store.snapshots.snapshotter import LocalSnapshots
    from lamella.store.store import LocalNamespace

DIFF_ID: Final = "containerd.io/snapshot/diff-id"
"""The label of a snapshot that says of which layer it was made."""

UNCOMPRESSED: Final = "containerd.io/uncompressed"
"""The label of a layer's blob that says its diff id, once that has been checked."""

DEFAULT_SNAPSHOTTER: Final = "overlayfs"
WINDOWS_SNAPSHOTTER: Final = "cimfs"
"""The one for images of Windows, where none is named."""

_LARGE: Final = 4 << 20
"""Bytes of a layer from which on a worker process pays: its start takes as long as to unpack about so many."""
_MOST_LAYERS: Final = 4
"""Layers that are unpacked at once, unless the caller says."""
_FEW_BUFFERS: Final = 6
"""Buffers of the ring of a layer that is unpacked beside others."""
_POLL: Final = 0.1
"""Seconds between two looks at the cancellation."""


class UnpackedLayer(Struct, frozen=True):
    """The snapshot of one layer."""

    chain_id: Digest
    """The name of its snapshot."""
    diff_id: Digest
    digest: Digest
    skipped: bool
    """Whether the snapshot existed."""
    entries: int = 0
    """Changes that the layer states."""
    again: bool = False
    """Whether it was unpacked twice, the second time over its parent."""


class Unpacked(Struct, frozen=True):
    """The snapshots of an image."""

    manifest: Descriptor
    snapshotter: str
    snapshot: str
    """The top one, named by the chain id of all layers; empty for an image without layers."""
    layers: tuple[UnpackedLayer, ...]
    """Base first."""
    losses: Losses


def unpack_image(
    space: LocalNamespace,
    target: Descriptor | str,
    snapshotter: str | None = None,
    *,
    platform: Platform | None = None,
    policy: Policy | None = None,
    job: Job | None = None,
    concurrency: int | None = None,
) -> Unpacked:
    """Unpack an image of the namespace, by its name or by a manifest or index, for ``platform`` or this host.

    Size and diff id of each layer are checked; the error distinguishes a wrong layer from a blob damaged in the store.
    A failure keeps complete snapshots for the next try or the next garbage collection, and removes the others.
    The snapshots live as long as the image's config, which is labelled with them. ``concurrency`` is the number of
    layers that are unpacked at once, by default one per processor up to a limit. The default of ``snapshotter`` depends
    on the operating system of the image.

    Raises NotFound, Integrity, InvalidInput (also a snapshotter that keeps no layers for the image's system),
    Unsupported, Exhausted, Denied, Cancelled, LossRefused, Unavailable (a worker process was killed).
    """
    if isinstance(target, str):
        target = space.images.get(target).target
    job = job or Job()
    with under_lease(space) as held:
        reader = StoreReader(held, target=target)
        image = resolve_image(reader, platform=platform)
        name = _snapshotter(held, image, snapshotter)
        assert held.lease is not None  # noqa: S101  # `under_lease` has made one
        held.leases.add(held.lease, Resource(CONTENT, image.descriptor.digest))  # and so all blobs that it names
        layers = _Unpacking(held, name, image, policy, job).run(concurrency)
        top = layers[-1].chain_id if layers else ""
        if top:
            config = image.manifest.config.digest
            _label(held, config, REF_SNAPSHOT + name, top)
    return Unpacked(image.descriptor, name, top, layers, job.losses)


def _snapshotter(space: LocalNamespace, image: PlatformImage, given: str | None) -> str:
    """The name of the snapshotter for the image. Raises InvalidInput if ``given`` is for another operating system."""
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
    """The unpacking of one image. Layers are named by their positions, base first."""

    def __init__(
        self, space: LocalNamespace, snapshotter: str, image: PlatformImage, policy: Policy | None, job: Job
    ) -> None:
        self._space = space
        self._name = snapshotter
        self._snapshots: LocalSnapshots = space.snapshots(snapshotter)
        self._layers = image.layers
        self._chain = chain_ids([layer.diff_id for layer in image.layers])
        self._policy = policy
        self._job = job
        self._changed = threading.Condition()
        self._committed: dict[int, UnpackedLayer] = {}
        self._buffers = BUFFERS

    def run(self, concurrency: int | None) -> tuple[UnpackedLayer, ...]:
        """Unpack the layers that have no snapshot yet."""
        start = next((at + 1 for at in reversed(range(len(self._chain))) if self._exists(at)), 0)
        for at in range(start):
            self._committed[at] = self._skip(at)
        left = range(start, len(self._chain))
        with self._job.step("unpack", sum(self._layers[at].descriptor.size for at in left)), ExitStack() as stack:
            consumers = self._consumers(left, concurrency, stack)
            for_each(left, consumers, self._job.cancel, patience=None)
        return tuple(self._committed[at] for at in range(len(self._chain)))

    def _consumers(self, left: Sequence[int], concurrency: int | None, stack: ExitStack) -> list[Consumer[int]]:
        """One that works in this process and takes any layer; others have workers and take large layers.

        Workers are forked here if possible: before there are threads, and before a lock is held.
        """
        others = 0
        if self._snapshots.can_rebase:
            most = concurrency or min(processors(), _MOST_LAYERS)
            # This process takes the first layer, or the small ones; a worker without a large layer would be idle.
            others = max(0, min(most - 1, sum(map(self._is_large, left[1:]))))
        if others:
            self._buffers = _FEW_BUFFERS
        consumers = [Consumer(partial(self._ensure, LayerUnpacker(worker=False)))]
        forks = can_fork()
        for _ in range(others):
            unpacker = LayerUnpacker(worker=True)
            stack.callback(unpacker.close)
            if forks:
                with suppress(OSError):  # a later start may succeed
                    unpacker.start(fork=True)
            consumers.append(Consumer(partial(self._ensure, unpacker), self._is_large))
        return consumers

    def _is_large(self, at: int) -> bool:
        return self._layers[at].descriptor.size >= _LARGE

    def _ensure(self, unpacker: LayerUnpacker, at: int, cancel: Cancellation) -> None:
        """Make sure that a layer has a committed snapshot."""
        work = f"unpack {self._space.name} {self._name} {self._chain[at]}"
        with exclusive_lock(self._space.store.root, work, cancel):
            made = None if self._exists(at) else self._make(unpacker, at, cancel)
        if made is None:
            made = self._skip(at)
        with self._changed:
            self._committed[at] = made
            self._changed.notify_all()

    def _make(self, unpacker: LayerUnpacker, at: int, cancel: Cancellation) -> UnpackedLayer | None:
        """Unpack a layer and commit its snapshot; None if another client of the store was quicker."""
        ahead = at > 0 and at - 1 not in self._committed and self._snapshots.can_rebase
        try:
            made = self._unpack_ahead(unpacker, at, cancel) if ahead else None
            return made if made is not None else self._unpack_over_parent(unpacker, at, cancel, again=ahead)
        except AlreadyExists:
            if self._exists(at):
                return None
            raise

    def _unpack_over_parent(
        self, unpacker: LayerUnpacker, at: int, cancel: Cancellation, *, again: bool
    ) -> UnpackedLayer:
        """Unpack a layer whose parent is committed. The bytes of a second time (``again``) are no progress."""
        parent = self._chain[at - 1] if at else ""
        with self._active(at, parent) as key:
            task = self._task(at, key, parents_known=True)
            result = unpacker.unpack(task, _ignore if again else self._advance, cancel)
            return self._commit(at, key, parent, result, again=again)

    def _unpack_ahead(self, unpacker: LayerUnpacker, at: int, cancel: Cancellation) -> UnpackedLayer | None:
        """Unpack a layer before its parent is committed; None if the parent then proves the assumptions wrong."""
        parent = self._chain[at - 1]
        with self._active(at, "") as key:
            result = None
            try:
                result = unpacker.unpack(self._task(at, key, parents_known=False), self._advance, cancel)
            except (FormatError, UnsafePath):
                raise
            except (NotFound, InvalidInput):
                pass  # as for a link to a file of the parent
            self._wait_for(at - 1, cancel)
            if result is None:
                return None
            with self._snapshots.tree(parent) as below:
                if not matches_parent(result, below):
                    return None
                shown = visible_whiteouts(result, below)
            if shown:
                try:
                    self._snapshots.remove_whiteouts(key, shown)
                except Denied:  # a directory that the layer has closed to its owner
                    return None
                result = replace(result, below_root=None)  # the whiteouts were counted
            return self._commit(at, key, parent, result, again=False)

    @contextmanager
    def _active(self, at: int, parent: str) -> Iterator[str]:
        """An active snapshot for a layer, removed when the block ends unless it was committed."""
        chain_id = self._chain[at]
        key = f"extract-{secrets.token_hex(8)} {chain_id}"
        self._snapshots.prepare_layer(key, parent, self._labels(at))
        try:
            yield key
        finally:
            self._discard(key)

    def _discard(self, key: str) -> None:
        """Remove an active snapshot, if it exists. One that cannot be removed is collected after the lease."""
        try:
            self._snapshots.remove(key)
        except Exhausted:  # the database needs space, too, to forget the snapshot
            with suppress(LamellaError, OSError):
                _empty(self._snapshots.directory(key))
                self._snapshots.remove(key)
        except LamellaError:
            pass

    def _task(self, at: int, key: str, *, parents_known: bool) -> LayerTask:
        layer = self._layers[at]
        blob = layer.descriptor
        with self._space.content.open(blob.digest) as file:
            stored_size = os.fstat(file.fileno()).st_size
        return LayerTask(
            self._snapshots.target(key, parents_known=parents_known),
            self._space.store.root,
            blob.digest,
            stored_size,
            blob.size,
            layer.diff_id,
            layer.compression,
            self._policy,
            self._buffers,
        )

    def _commit(self, at: int, key: str, parent: str, result: LayerResult, *, again: bool) -> UnpackedLayer:
        self._job.losses.merge(result.losses)  # in the order of the layers, since each waits for its parent
        layer, chain_id = self._layers[at], self._chain[at]
        self._snapshots.commit(chain_id, key, self._labels(at), parent, below_root=result.below_root)
        _label(self._space, layer.descriptor.digest, UNCOMPRESSED, layer.diff_id)
        return UnpackedLayer(chain_id, layer.diff_id, layer.descriptor.digest, False, result.entries, again)

    def _wait_for(self, at: int, cancel: Cancellation) -> None:
        """Wait until a layer is committed. Raises Cancelled."""
        with self._changed:
            while at not in self._committed:
                cancel.check()
                self._changed.wait(_POLL)

    def _exists(self, at: int) -> bool:
        """Whether a layer's snapshot is committed; if so, the lease holds it."""
        lease, chain_id = self._space.lease, self._chain[at]
        try:
            if self._snapshots.stat(chain_id).kind is not SnapshotKind.COMMITTED:
                return False
            assert lease is not None  # noqa: S101  # `under_lease` has made one
            self._space.leases.add(lease, Resource(snapshot_type(self._name), chain_id))
            self._snapshots.stat(chain_id)  # it may have been collected before the lease held it
        except NotFound:
            return False
        return True

    def _skip(self, at: int) -> UnpackedLayer:
        layer = self._layers[at]
        return UnpackedLayer(self._chain[at], layer.diff_id, layer.descriptor.digest, True)

    def _labels(self, at: int) -> dict[str, str]:
        return {SNAPSHOT_REF: str(self._chain[at]), DIFF_ID: str(self._layers[at].diff_id)}

    def _advance(self, amount: int) -> None:
        if self._job.progress is not None:
            self._job.progress.advance(amount)


def _ignore(_amount: int) -> None:
    pass


def _empty(place: Path) -> None:
    """Remove the files in the directory of a snapshot, and the contents of its subdirectories."""
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
    """Set a label of a blob, if the store has it: the blob of a skipped layer may be missing."""
    content = space.content
    with suppress(NotFound):
        if content.info(digest).labels.get(label) != value:
            content.update(digest, {label: str(value)}, [f"labels.{label}"])
