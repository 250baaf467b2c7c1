# SPDX-License-Identifier: Apache-2.0
"""The Diff service: layers onto mounts, and what changed between mounts as layers.

Where the mounts say how the files come to be, nothing is mounted: a layer goes straight into the upper directory of
an overlay, and out of it again. What is mounted is out of reach for other users and of other calls.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol, TypeAlias

from lamella.changes.apply import apply
from lamella.changes.contracts import Sink, Source
from lamella.changes.losses import Losses
from lamella.changes.model import Entry
from lamella.digests import Digest
from lamella.errors import AlreadyExists, LamellaError, Unsupported, from_os
from lamella.layers.overlay import OverlayLayer, OverlaySink
from lamella.layers.stack import LayerStack
from lamella.oci import mediatypes
from lamella.oci.descriptor import Descriptor
from lamella.paths import LayerPath
from lamella.protocol import wire
from lamella.protocol.mounts import typed
from lamella.protocol.proto import diff_pb2 as pb
from lamella.service.calls import Call
from lamella.store.contract import BindMount, ContentRecord, Ingest, Labels, Mount, OverlayMount

if TYPE_CHECKING:
    from lamella.operations.write_layer import Written

LOG = logging.getLogger("lamella.service")

UNCOMPRESSED: Final = "containerd.io/uncompressed"
"""The label of a layer that is compressed: the digest of its tar."""

_COMPRESSIONS: Final[dict[str, mediatypes.Compression]] = {
    "": "gzip",
    mediatypes.OCI_LAYER: "none",
    mediatypes.OCI_LAYER_GZIP: "gzip",
    mediatypes.OCI_LAYER_ZSTD: "zstd",
}

Lookup: TypeAlias = Callable[[LayerPath], Entry | None]
Mounts: TypeAlias = tuple[Mount, ...]


class ReadableBlobs(Protocol):
    """What is needed to apply a layer."""

    def open(self, digest: Digest) -> BinaryIO:
        """The bytes, in order. Raises NotFound."""
        ...


class Blobs(Protocol):
    """What is needed to make one (see `lamella.store.contract.ContentStore`)."""

    def info(self, digest: Digest) -> ContentRecord:
        """Raises NotFound."""
        ...

    def update(self, digest: Digest, labels: Labels, fields: tuple[str, ...] = ()) -> object:
        """Change the labels that ``fields`` names."""
        ...

    def ingest(self, ref: str) -> Ingest:
        """Open or resume an ingest. Raises Unavailable."""
        ...

    def abort(self, ref: str) -> None:
        """Drop an ingest. Raises NotFound."""
        ...


class Diffing(Protocol):
    """Where a service's blobs are."""

    def reading(self, call: Call) -> AbstractContextManager[ReadableBlobs]:
        """The blobs that ``call`` may read."""
        ...

    def writing(self, call: Call, mounts: Sequence[Mount]) -> AbstractContextManager[Blobs]:
        """Where new blobs of ``call``, made from ``mounts``, go, to be kept until the client has made use of them."""
        ...


class Diff:
    """Applies layers and makes them."""

    def __init__(self, shared: Diffing) -> None:
        self._shared = shared

    def apply(self, request: pb.ApplyRequest, call: Call) -> pb.ApplyResponse:
        """Apply a layer; the answer is what its tar is. Payloads are for stages that there are none of here.

        Raises NotFound (the blob), Unsupported (media type, kind of mount), InvalidInput and whatever the blob leads
        to; what was written by then stays.
        """
        from lamella.layers.tarball import tar_changes
        from lamella.streams.reading import BlobReader

        layer = wire.descriptor(request.diff, "the layer")
        mediatypes.layer_compression(layer.media_type)  # names the layers that there are; the magic says the rest
        mounts = typed(request.mounts)
        losses = Losses()
        with (
            self._shared.reading(call) as blobs,
            blobs.open(layer.digest) as blob,
            BlobReader(blob, size=layer.size or None, cancel=call) as reader,
            _target(mounts, losses) as (sink, root),
        ):
            apply(tar_changes(reader.next_buffer, end=reader.finish), sink, cancel=call)
            facts = reader.finish()
            if request.sync_fs:
                _sync(root)
        _tell(losses, f"layer {layer.digest}")
        applied = Descriptor(media_type=mediatypes.OCI_LAYER, digest=facts.diff_id, size=facts.tar_size)
        return pb.ApplyResponse(applied=wire.sent_descriptor(applied))

    def diff(self, request: pb.DiffRequest, call: Call) -> pb.DiffResponse:
        """Make a layer of what the right mounts have that the left ones have not, and put it into the content store.

        Raises Unsupported (media type, kind of mount), Unavailable (the reference is in use) and what reading raises.
        """
        media_type = request.media_type or mediatypes.OCI_LAYER_GZIP
        compression = _COMPRESSIONS.get(media_type)
        if compression is None:
            raise Unsupported(f"no layers of the media type {media_type!r} are made here")
        left, right = typed(request.left), typed(request.right)
        epoch = wire.nanoseconds(request.source_date_epoch) if request.HasField("source_date_epoch") else None
        ref = request.ref or f"lamella-diff-{secrets.token_hex(8)}"
        with self._shared.writing(call, (*right, *left)) as blobs:
            try:
                with blobs.ingest(ref) as ingest:
                    written = _written(left, right, ingest, compression, epoch, call)
                    labels = wire.labels(request.labels)
                    if compression != "none":
                        labels[UNCOMPRESSED] = str(written.facts.diff_id)
                    _commit(blobs, ingest, written, labels)
            except BaseException:
                if not request.ref:  # nobody else knows of it
                    _abort(blobs, ref)
                raise
        _tell(written.losses, f"layer {written.facts.digest}")
        made = Descriptor(media_type=media_type, digest=written.facts.digest, size=written.facts.size)
        return pb.DiffResponse(diff=wire.sent_descriptor(made))


# Applying ----------------------------------------------------------------------------------------------------------


@contextmanager
def _target(mounts: Mounts, losses: Losses) -> Iterator[tuple[Sink[Losses], Path]]:
    """The sink that takes a layer onto ``mounts``, and a directory of the file system that it writes to."""
    from lamella.layers.directory import DirectorySink

    match mounts:
        case (OverlayMount(lower, Path() as upper, _, options),) if _is_empty(upper):
            # An upper directory alone is that of a layer whose parents come later: then they are not known.
            below = [_overlay_layer(path, options) for path in lower]
            parents = LayerStack.from_nearest(below) if below else None
            yield OverlaySink(_overlay_layer(upper, options), parents=parents, losses=losses), upper
        case (BindMount(source, False),):
            yield DirectorySink(source, losses=losses), source
        case _:
            from lamella.store.mounting import mounted

            with mounted(mounts) as root:
                yield DirectorySink(root, losses=losses), root


def _overlay_layer(path: Path, options: tuple[str, ...]) -> OverlayLayer:
    return OverlayLayer(path, user_xattrs="userxattr" in options)


def _is_empty(directory: Path) -> bool:
    try:
        with os.scandir(directory) as found:
            return next(found, None) is None
    except OSError as error:
        raise from_os(error, f"open the upper directory {os.fspath(directory)!r}") from error


def _sync(directory: Path) -> None:
    from lamella.host.files import sync_file_system

    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_file_system(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise from_os(error, f"bring {os.fspath(directory)!r} to the disk") from error


# Comparing ---------------------------------------------------------------------------------------------------------


def _written(
    left: Mounts, right: Mounts, ingest: Ingest, compression: mediatypes.Compression, epoch: int | None, call: Call
) -> Written:
    from lamella.operations.write_layer import write_layer

    def write(changes: Source, lookup: Lookup) -> Written:
        ingest.truncate()
        return write_layer(changes, ingest.write, lookup=lookup, compression=compression, clamp=epoch, cancel=call)

    upper = stated_by(left, right)
    if upper is not None:
        from lamella.layers.overlay_tree import OverlayChanges

        try:
            with OverlayChanges(upper) as stated:
                return write(stated, stated.lookup)
        except Unsupported as problem:  # marks that only the kernel follows
            LOG.debug("%s: mounted instead", problem)
    with _trees(left, right) as (changes, lookup):
        return write(changes, lookup)


def stated_by(left: Mounts, right: Mounts) -> OverlayLayer | None:
    """The upper directory that holds all that ``right`` changes of ``left``; None where no single one does."""
    match right:
        case (OverlayMount(lower, upper, _, options),):
            layers = lower if upper is None else (upper, *lower)
        case _:
            return None
    match left:
        case (OverlayMount(below, None, _, _),):
            pass
        case (BindMount(source, _),):
            below = (source,)
        case _:
            return None
    return _overlay_layer(layers[0], options) if layers[1:] == below else None


@contextmanager
def _trees(left: Mounts, right: Mounts) -> Iterator[tuple[Source, Lookup]]:
    from lamella.changes.diff import diff
    from lamella.layers.directory_tree import DirectoryTree

    with ExitStack() as stack:
        below = None if not left else stack.enter_context(DirectoryTree(stack.enter_context(_shown(left))))
        tree = stack.enter_context(DirectoryTree(stack.enter_context(_shown(right))))
        yield (tree.changes() if below is None else diff(below, tree)), tree.lookup


@contextmanager
def _shown(mounts: Mounts) -> Iterator[Path]:
    """The directory that ``mounts`` come to, to be read."""
    match mounts:
        case (BindMount(source, _),):
            yield source
            return
        case (OverlayMount(lower, Path() as upper, _, options),):
            # Somebody may have it mounted, and an upper directory is not for two.
            mounts = (OverlayMount((upper, *lower), options=options),)
        case _:
            pass
    from lamella.store.mounting import mounted

    with mounted(mounts) as root:
        yield root


def _commit(blobs: Blobs, ingest: Ingest, written: Written, labels: Labels) -> None:
    digest = written.facts.digest
    try:
        ingest.commit(written.facts.size, digest, labels)
    except AlreadyExists:
        if UNCOMPRESSED in labels and UNCOMPRESSED not in blobs.info(digest).labels:
            blobs.update(digest, {UNCOMPRESSED: labels[UNCOMPRESSED]}, (f"labels.{UNCOMPRESSED}",))


def _abort(blobs: Blobs, ref: str) -> None:
    try:
        blobs.abort(ref)
    except LamellaError as problem:  # what has gone wrong before is what is to be told
        LOG.debug("abort the ingest %r: %s", ref, problem)


def _tell(losses: Losses, what: str) -> None:
    """The protocol has no place for it."""
    if losses.count:
        LOG.warning("%s: %d things were not kept, the first being %s", what, losses.count, losses.kept[0])
