# SPDX-License-Identifier: Apache-2.0
"""The Diff service: applies layers to mounts and makes layers from mounts, by the differ that supports these."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from lamella.changes.apply import apply
from lamella.changes.contracts import Source
from lamella.changes.losses import Losses
from lamella.digests import Digest
from lamella.errors import AlreadyExists, LamellaError, Unsupported, from_os
from lamella.host.durability import sync_file_system
from lamella.oci import mediatypes
from lamella.oci.descriptor import Descriptor
from lamella.protocol import wire
from lamella.protocol.mounts import typed
from lamella.protocol.proto import diff_pb2 as pb
from lamella.service.differs.contract import Lookup
from lamella.service.differs.table import open_target, plan_diff
from lamella.service.grpc.rpc import Call
from lamella.store.contract import ContentRecord, Ingest, Labels, Mount

if TYPE_CHECKING:
    from lamella.operations.layers.write import Written

LOG = logging.getLogger("lamella.service")

UNCOMPRESSED: Final = "containerd.io/uncompressed"
"""Label of a compressed layer: its diff id."""


class ReadableBlobs(Protocol):
    """Blobs for applying layers."""

    def open(self, digest: Digest) -> BinaryIO:
        """Open a blob for sequential reading. Raises NotFound."""
        ...


class Blobs(Protocol):
    """Blobs for making layers (`lamella.store.contract.ContentStore`)."""

    def info(self, digest: Digest) -> ContentRecord:
        """Raises NotFound."""
        ...

    def update(self, digest: Digest, labels: Labels, fields: tuple[str, ...] = ()) -> object:
        """Change the labels named by ``fields``."""
        ...

    def ingest(self, ref: str) -> Ingest:
        """Open or resume an ingest. Raises Unavailable."""
        ...

    def abort(self, ref: str) -> None:
        """Drop an ingest. Raises NotFound."""
        ...


class Diffing(Protocol):
    """The blobs of an endpoint."""

    def reading(self, call: Call) -> AbstractContextManager[ReadableBlobs]:
        """The blobs that ``call`` may read."""
        ...

    def writing(self, call: Call, mounts: Sequence[Mount]) -> AbstractContextManager[Blobs]:
        """The blobs to which ``call`` adds a layer of ``mounts``, held until the client can use it."""
        ...


class Diff:
    """The Diff service."""

    def __init__(self, shared: Diffing) -> None:
        self._shared = shared

    def apply(self, request: pb.ApplyRequest, call: Call) -> pb.ApplyResponse:
        """Apply a layer; returns the descriptor of its tar. Payloads of stream processors are ignored.

        Raises NotFound (the blob), Unsupported (media type, mounts), InvalidInput and the errors of the blob. After an
        error, files written so far stay.
        """
        from lamella.streams.blob_reader import BlobReader

        layer = wire.descriptor(request.diff, "the layer")
        mediatypes.layer_compression(layer.media_type)  # raises for other media types; the magic decides
        mounts = typed(request.mounts)
        losses = Losses()
        with (
            self._shared.reading(call) as blobs,
            blobs.open(layer.digest) as blob,
            BlobReader(blob, size=layer.size or None, hash_blob=False, cancel=call) as reader,
            open_target(mounts, losses) as target,
        ):
            apply(target.changes(reader), target.sink, cancel=call)
            facts = reader.finish()
            if request.sync_fs:
                _sync(target.root)
        _log_losses(losses, f"layer {layer.digest}")
        applied = Descriptor(media_type=mediatypes.OCI_LAYER, digest=facts.diff_id, size=facts.tar_size)
        return pb.ApplyResponse(applied=wire.sent_descriptor(applied))

    def diff(self, request: pb.DiffRequest, call: Call) -> pb.DiffResponse:
        """Write the layer from the left mounts to the right ones into the content store.

        Raises Unsupported (media type, mounts), Unavailable (the reference is in use) and the errors of reading.
        """
        media_type = request.media_type or mediatypes.OCI_LAYER_GZIP
        compression = mediatypes.layer_compression(media_type)
        if media_type != mediatypes.oci_layer(compression):
            raise Unsupported(f"unsupported media type {media_type!r} for a new layer")
        left, right = typed(request.left), typed(request.right)
        make = plan_diff(left, right)
        epoch = wire.nanoseconds(request.source_date_epoch) if request.HasField("source_date_epoch") else None
        ref = request.ref or f"lamella-diff-{secrets.token_hex(8)}"
        with self._shared.writing(call, (*right, *left)) as blobs:
            try:
                with blobs.ingest(ref) as ingest:
                    written = make(_Layer(ingest, compression, epoch, call))
                    labels = wire.labels(request.labels)
                    if compression != "none":
                        labels[UNCOMPRESSED] = str(written.facts.diff_id)
                    _commit(blobs, ingest, written, labels)
            except BaseException:
                if not request.ref:  # a name of our own
                    _abort(blobs, ref)
                raise
        _log_losses(written.losses, f"layer {written.facts.digest}")
        made = Descriptor(media_type=media_type, digest=written.facts.digest, size=written.facts.size)
        return pb.DiffResponse(diff=wire.sent_descriptor(made))


class _Layer:
    """Writes a layer into an ingest (`WriteLayer`)."""

    def __init__(self, ingest: Ingest, compression: str, epoch: int | None, call: Call) -> None:
        self._ingest = ingest
        self._compression = compression
        self._epoch = epoch
        self._call = call

    def __call__(self, changes: Source, lookup: Lookup | None, *, windows: bool = False) -> Written:
        from lamella.changes.job import Job
        from lamella.layers.windows.names import AS_WINDOWS
        from lamella.operations.layers.write import LayerOptions, write_layer

        self._ingest.truncate()
        return write_layer(
            changes,
            self._ingest.write,
            LayerOptions(self._compression, windows=windows, rules=AS_WINDOWS),
            lookup=lookup,
            clamp=self._epoch,
            job=Job(cancel=self._call),
        )


def _sync(directory: Path) -> None:
    try:
        sync_file_system(directory)
    except OSError as error:
        raise from_os(error, f"sync the file system of {os.fspath(directory)!r}") from error


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
    except LamellaError as problem:  # the caller raises the first error
        LOG.debug("abort the ingest %r: %s", ref, problem)


def _log_losses(losses: Losses, what: str) -> None:
    """Log losses, for which the protocol has no field."""
    if losses.count:
        LOG.warning("%s: %d losses, the first is %s", what, losses.count, losses.kept[0])
