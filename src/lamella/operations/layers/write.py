# SPDX-License-Identifier: Apache-2.0
"""Changes to a layer blob: tar, compressed, with both digests, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final

from msgspec import Struct

from lamella.changes.apply import Tally, apply
from lamella.changes.contracts import Sink, Source
from lamella.changes.losses import Losses
from lamella.changes.model import Buffer, Entry
from lamella.errors import Conflict
from lamella.layers.tar.sink import TarSink
from lamella.paths import LayerPath
from lamella.streams.blob_writer import BlobWriter
from lamella.times import source_date_epoch

if TYPE_CHECKING:
    from lamella.layers.kinds import RecordedTar
    from lamella.layers.policy import Owners
    from lamella.layers.windows.names import NameRules
    from lamella.layers.windows.transforms import WindowsTemplate
    from lamella.progress import Cancellation, Progress
    from lamella.streams.blob_reader import BlobFacts


class LayerOptions(Struct, frozen=True):
    """How a layer is written."""

    compression: str = "gzip"
    level: int | None = None
    threads: int | None = None
    subsecond: bool = False
    """Whether times keep their fractions of seconds."""
    owners: Owners | None = None
    """Which owners files have that come from a directory; see `lamella.operations.layers.diff.sourced`."""
    losses: Losses | None = None
    """Told what cannot be kept."""
    windows: bool = False
    """Whether it is the tar of a Windows layer, of entries with a Windows facet: times have all of their fraction."""
    template: WindowsTemplate | None = None
    """What files get that become a Windows layer, where that is not as usual."""
    rules: NameRules | None = None
    """Which odd names a Windows layer may have; the others are lost."""


DEFAULT_OPTIONS: Final = LayerOptions()


class Written(Struct, frozen=True):
    """What came of one layer."""

    facts: BlobFacts
    entries: int
    """Changes that the layer states."""
    losses: Losses
    """What a tar could not hold."""


def write_layer(
    changes: Source,
    output: BinaryIO | Callable[[Buffer], object],
    options: LayerOptions = DEFAULT_OPTIONS,
    *,
    lookup: Callable[[LayerPath], Entry | None] | None = None,
    clamp: int | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Written:
    """Write ``changes`` to ``output`` as a layer; what was written before a failure is no layer.

    ``lookup`` tells the metadata of hard links' targets; see `TarSink`. No time is later than ``clamp``, in
    nanoseconds, or SOURCE_DATE_EPOCH where that is not given; those of a Windows layer stay as they are without
    ``clamp``.

    ``progress`` counts bytes of the tar. Raises as `apply` and the source do; Exhausted where there is no space.
    """
    losses = options.losses if options.losses is not None else Losses()
    tally = Tally()
    with _writing(output, options, progress) as (writer, write):
        sink: Sink[Losses]
        if options.windows:
            from lamella.layers.windows.tar_sink import WindowsTarSink

            sink = WindowsTarSink(write, lookup=lookup, clamp=clamp, rules=options.rules, losses=losses)
        else:
            clamp = source_date_epoch() if clamp is None else clamp
            sink = TarSink(write, lookup=lookup, root=True, clamp=clamp, subsecond=options.subsecond, losses=losses)
        apply(changes, sink, cancel=cancel, tally=tally)
        return Written(writer.finish(), tally.changes, losses)


def write_tar(
    tar: RecordedTar,
    output: BinaryIO | Callable[[Buffer], object],
    options: LayerOptions = DEFAULT_OPTIONS,
    *,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Written:
    """Write the very tar that a place was made of to ``output``, as a layer; its times and owners are what they are.

    Raises Conflict where the place is not what it was then, and what reading it raises.
    """
    with _writing(output, options, progress) as (writer, write):
        for piece in tar.pieces():
            if cancel is not None:
                cancel.check()
            write(piece)
        facts = writer.finish()
    if facts.diff_id != tar.diff_id:
        raise Conflict(
            f"what the layer was applied to has changed since: expected diff id {tar.diff_id}, got {facts.diff_id}",
            hint="without lamella.framing in it, its folder gives a layer of what is there now",
        )
    return Written(facts, tar.entries, options.losses if options.losses is not None else Losses())


@contextmanager
def _writing(
    output: BinaryIO | Callable[[Buffer], object], options: LayerOptions, progress: Progress | None
) -> Iterator[tuple[BlobWriter, Callable[[Buffer], object]]]:
    """What makes the blob, and what takes bytes of its tar, which ``progress`` counts."""
    if progress is not None:
        progress.start("write", None)
    try:
        with BlobWriter(
            output, compression=options.compression, level=options.level, threads=options.threads
        ) as writer:
            yield writer, writer.write if progress is None else _counting(writer.write, progress)
    finally:
        if progress is not None:
            progress.finish()


def _counting(write: Callable[[Buffer], object], progress: Progress) -> Callable[[Buffer], object]:
    def counted(data: Buffer) -> None:
        write(data)
        progress.advance(len(data))

    return counted
