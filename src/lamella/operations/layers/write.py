# SPDX-License-Identifier: Apache-2.0
"""Write changes as a layer blob: tar, compression and both digests in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final

from msgspec import Struct

from lamella.changes.apply import Counts, apply
from lamella.changes.contracts import Sink, Source
from lamella.changes.job import Job
from lamella.changes.losses import Losses
from lamella.changes.model import Buffer
from lamella.errors import Conflict
from lamella.times import source_date_epoch

if TYPE_CHECKING:
    from lamella.layers.kinds import Lookup, RecordedTar
    from lamella.layers.policy import Owners
    from lamella.layers.windows.names import NameRules
    from lamella.layers.windows.transforms import WindowsTemplate
    from lamella.progress import Progress
    from lamella.streams.blob_reader import BlobFacts
    from lamella.streams.blob_writer import BlobWriter


class LayerOptions(Struct, frozen=True):
    """How to write a layer; the options of the verbs that write layers extend it."""

    compression: str = "gzip"
    """``"gzip"``, ``"zstd"`` or ``"none"``."""
    level: int | None = None
    """Compression level; None for the default of the compression."""
    threads: int | None = None
    """Compression threads; None for one per processor."""
    subsecond: bool = False
    """Keep the fractions of seconds in times. A Windows layer always has them."""
    sparse: bool = False
    """Keep the holes of files, in a form that Docker and Podman unpack but cannot push again; else they are zeros."""
    owners: Owners | None = None
    """How to read the owners of files in a directory; see `lamella.operations.layers.diff.open_changes`."""
    windows: bool | None = None
    """Write a Windows layer, from entries with a Windows facet; None for the system of the image, if there is one."""
    template: WindowsTemplate | None = None
    """Security descriptors and attributes of the files that become a Windows layer; None for the defaults."""
    rules: NameRules | None = None
    """Unusual names that a Windows layer may have; a file with another one is a loss."""


DEFAULT_OPTIONS: Final = LayerOptions()


class Written(Struct, frozen=True):
    """A layer that was written."""

    facts: BlobFacts
    entries: int
    """Number of changes in the layer."""
    losses: Losses
    """What a tar cannot hold; shared by all layers of one job."""


def write_layer(
    changes: Source,
    output: BinaryIO | Callable[[Buffer], object],
    options: LayerOptions = DEFAULT_OPTIONS,
    *,
    lookup: Lookup | None = None,
    clamp: int | None = None,
    job: Job | None = None,
) -> Written:
    """Write ``changes`` to ``output`` as a layer; after a failure, the bytes in ``output`` are no layer.

    ``lookup`` returns the entries of hard links' targets, which `TarSink` needs. ``clamp`` is the latest time of a
    file, in nanoseconds since the epoch. Without it that is SOURCE_DATE_EPOCH, except in a Windows layer, which keeps
    its times. The progress counts bytes of the tar.

    Raises what `apply` and the source raise, and Exhausted if the disk is full.
    """
    job = job or Job()
    counts = Counts()
    with _open_blob_writer(output, options, job) as (writer, write):
        sink: Sink[Losses]
        if options.windows:
            from lamella.layers.windows.tar_sink import WindowsTarSink

            sink = WindowsTarSink(write, lookup=lookup, clamp=clamp, rules=options.rules, losses=job.losses)
        else:
            from lamella.layers.tar.sink import TarSink  # late, as the blob writer: `diff` also lists without writing

            clamp = source_date_epoch() if clamp is None else clamp
            sink = TarSink(
                write,
                lookup=lookup,
                root=True,
                clamp=clamp,
                subsecond=options.subsecond,
                sparse=options.sparse,
                losses=job.losses,
            )
        apply(changes, sink, cancel=job.cancel, counts=counts)
        return Written(writer.finish(), counts.changes, job.losses)


def write_tar(
    tar: RecordedTar,
    output: BinaryIO | Callable[[Buffer], object],
    options: LayerOptions = DEFAULT_OPTIONS,
    *,
    job: Job | None = None,
) -> Written:
    """Write the tar that a layer folder was made from to ``output`` as a layer, byte for byte.

    Raises Conflict if the folder has changed since, and what reading it raises.
    """
    job = job or Job()
    with _open_blob_writer(output, options, job) as (writer, write):
        for piece in tar.pieces():
            job.check()
            write(piece)
        facts = writer.finish()
    if facts.diff_id != tar.diff_id:
        raise Conflict(
            f"the layer folder has changed since the layer was applied: expected diff id {tar.diff_id}, "
            f"got {facts.diff_id}",
            hint="remove lamella.framing from the folder to get a layer of its present content",
        )
    return Written(facts, tar.entries, job.losses)


@contextmanager
def _open_blob_writer(
    output: BinaryIO | Callable[[Buffer], object], options: LayerOptions, job: Job
) -> Iterator[tuple[BlobWriter, Callable[[Buffer], object]]]:
    """The writer of the blob, and the function that takes bytes of its tar, which the progress counts."""
    from lamella.streams.blob_writer import BlobWriter

    with (
        job.step("write", None),
        BlobWriter(output, compression=options.compression, level=options.level, threads=options.threads) as writer,
    ):
        yield writer, writer.write if job.progress is None else _count(writer.write, job.progress)


def _count(write: Callable[[Buffer], object], progress: Progress) -> Callable[[Buffer], object]:
    def counted(data: Buffer) -> None:
        write(data)
        progress.advance(len(data))

    return counted
