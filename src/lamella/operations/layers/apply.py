# SPDX-License-Identifier: Apache-2.0
"""Applies one layer blob: decompresses, checks and writes it in one pass."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.apply import Counts, apply
from lamella.changes.job import Job
from lamella.changes.losses import Losses
from lamella.errors import from_os
from lamella.layers import kinds
from lamella.streams.blob_reader import BlobFacts, BlobLimits, BlobReader, open_blob

if TYPE_CHECKING:
    from collections.abc import Callable

    from lamella.changes.contracts import Sink
    from lamella.digests import Digest
    from lamella.host.windows.system import WindowsSystem
    from lamella.images.resolve import ImageLayer
    from lamella.layers.policy import Policy
    from lamella.layers.process_reader import LayerReading, ReaderProcess
    from lamella.layers.windows.names import NameRules


class ApplyOptions(Struct, frozen=True):
    """How to apply a layer."""

    kind: str = "directory"
    """A name of `lamella.layers.kinds`."""
    parents: Sequence[Path] = ()
    """Places of the same kind, nearest first; a Windows layer without parents is a base layer."""
    policy: Policy | None = None
    """Owners and devices, for directories."""
    rules: NameRules | None = None
    """Unusual names that a Windows layer may have."""
    dirty: bool = False
    """Merge registry hives without their last changes if these are in no transaction log."""
    system: WindowsSystem | None = None
    """The Windows host that writes the layer; None for the current host."""
    compression: str | None = None
    """Compression that the blob must have; None for any."""
    limits: BlobLimits | None = None
    """What reading the blob may cost."""


DEFAULT_OPTIONS: Final = ApplyOptions()

READER_MIN_SIZE: Final = 4 << 20
"""Bytes of blobs from which on a process that reads them gains more time than its start takes."""


class Applied(Struct, frozen=True):
    """A layer that was applied."""

    facts: BlobFacts
    entries: int
    """Number of changes in the layer."""
    losses: Losses
    """What the place could not hold; shared by all layers of one job."""
    size: int | None = None
    """Bytes of the files in a Windows layer's folder, as hcsshim counts them: each once, without alternate streams."""


def apply_blob(
    blob: str | os.PathLike[str] | BinaryIO,
    directory: str | os.PathLike[str],
    options: ApplyOptions = DEFAULT_OPTIONS,
    *,
    digest: Digest | None = None,
    size: int | None = None,
    diff_id: Digest | None = None,
    job: Job | None = None,
) -> Applied:
    """Apply the layer ``blob`` to ``directory``, which is made if it is missing.

    ``digest`` and ``size`` (bytes) of the blob and its ``diff_id``, if given, are checked before the commit. A failure
    leaves in ``directory`` what was written. Other kinds differ: of ``"windows"`` a failure leaves nothing, and the
    directory must be empty or missing; for ``"cim"`` it is the path of a new image, ``DIR/NAME.cim``; for
    ``"blockcim"``, which only Windows writes, that of a file and of the image in it, ``DIR/layer.vhd/layer.cim``. On
    Windows its own calls make the kind ``"windows"``; elsewhere the folder keeps all that the layer has.

    Raises Integrity (digest, size), FormatError, UnsafePath, Exhausted, Denied, Cancelled and the like; Conflict (the
    folder has content), NotFound (a parent, or the target of a link); on Windows Unsupported (no Containers feature).
    """
    job = job or Job()
    place = Path(directory)
    made = kinds.required_directory(options.kind, place)
    if options.system is None:  # another system has its own volume
        _make(made)
    counts = Counts()
    with BlobReader(
        Path(blob) if isinstance(blob, (str, os.PathLike)) else blob,
        compression=options.compression,
        digest=digest,
        size=size,
        diff_id=diff_id,
        limits=options.limits,
        progress=job.advance,
        cancel=job.cancel,
    ) as reader:
        sink = _sink(place, options, job, reader.finish)
        changes = kinds.tar_changes(options.kind, reader, sink, options.rules, job.losses)
        apply(changes, sink, cancel=job.cancel, counts=counts)
        written = sink.size if isinstance(sink, kinds.SizedSink) else None
        return Applied(reader.finish(), counts.changes, job.losses, written)


def apply_reading(
    reading: LayerReading, directory: Path, options: ApplyOptions = DEFAULT_OPTIONS, job: Job | None = None
) -> Applied:
    """Apply a layer that a worker process reads to ``directory``, which is made if it is missing.

    The row of the kind must say `other_process`, and the worker must read its dialect. Raises as `apply_blob`;
    Unavailable if the worker has ended.
    """
    job = job or Job()
    _make(kinds.required_directory(options.kind, directory))
    counts = Counts()
    sink = _sink(directory, options, job, reading.finish)
    apply(reading.changes(), sink, cancel=job.cancel, counts=counts)
    return Applied(reading.finish(), counts.changes, job.losses)


def apply_image_layer(
    layer: ImageLayer, directory: Path, options: ApplyOptions, job: Job, worker: ReaderProcess | None = None
) -> Applied:
    """Apply a layer of an image, checked against manifest and config; ``worker``, if given, has it as its next blob.

    Raises as `apply_blob` and `apply_reading`.
    """
    if worker is not None:
        return apply_reading(worker.next_layer(job), directory, options, job)
    if options.compression is None:
        options = replace(options, compression=layer.compression)
    with layer.open() as blob:
        descriptor = layer.descriptor
        return apply_blob(
            blob, directory, options, digest=descriptor.digest, size=descriptor.size, diff_id=layer.diff_id, job=job
        )


@contextmanager
def start_blob_reader(
    blob: Path, *, digest: Digest | None = None, diff_id: Digest | None = None, rules: NameRules | None = None
) -> Iterator[ReaderProcess | None]:
    """Start a worker that reads the Windows layer ``blob``; None if it cannot start, or for a small or special file.

    This process must have no threads; see `lamella.layers.process_reader`.
    """
    try:
        found = os.stat(blob)
        large = stat.S_ISREG(found.st_mode) and found.st_size >= READER_MIN_SIZE
    except OSError:  # the in-process path reports it
        large = False
    if not large:
        yield None
        return
    from lamella.layers.process_reader import Blob, start_reader
    from lamella.layers.windows.names import NameRules

    def blobs(opened: ExitStack) -> list[Blob]:
        file = opened.enter_context(open_blob(blob))
        return [Blob(file, digest=digest, diff_id=diff_id, windows=rules or NameRules())]

    with ExitStack() as stack:
        yield start_reader(stack, blobs)


def _sink(place: Path, options: ApplyOptions, job: Job, finish: Callable[[], BlobFacts]) -> Sink[Losses]:
    def contents() -> bytes:
        return finish().diff_id.encode()

    how = kinds.SinkOptions(
        options.policy, job.losses, contents, options.rules, dirty=options.dirty, system=options.system
    )
    return kinds.sink(options.kind, place, options.parents, how)


def _make(directory: Path) -> None:
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise from_os(error, f"make directory {os.fspath(directory)!r}") from error
