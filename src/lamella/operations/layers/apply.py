# SPDX-License-Identifier: Apache-2.0
"""One layer blob onto a directory: decompressed, checked and applied in one pass."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from msgspec import Struct

from lamella.changes.apply import Counts, apply
from lamella.changes.losses import Losses
from lamella.errors import from_os
from lamella.layers import kinds
from lamella.streams.blob_reader import BlobFacts, BlobLimits, BlobReader, open_blob

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.host.windows.system import WindowsSystem
    from lamella.images.resolve import ImageLayer
    from lamella.layers.policy import Policy
    from lamella.layers.process_reader import LayerReading, ReaderProcess
    from lamella.layers.windows.names import NameRules
    from lamella.progress import Cancellation, Progress


class Applied(Struct, frozen=True):
    """What came of one layer."""

    facts: BlobFacts
    entries: int
    """Changes that the layer states."""
    losses: Losses
    """What the place could not hold; shared by all layers of one call."""
    size: int | None = None
    """Bytes of the files in a Windows layer's folder, as hcsshim counts them: each once, without alternate streams."""


def apply_blob(
    blob: str | os.PathLike[str] | BinaryIO,
    directory: str | os.PathLike[str],
    *,
    kind: str = "directory",
    parents: Sequence[Path] = (),
    policy: Policy | None = None,
    losses: Losses | None = None,
    compression: str | None = None,
    digest: Digest | None = None,
    size: int | None = None,
    diff_id: Digest | None = None,
    limits: BlobLimits | None = None,
    rules: NameRules | None = None,
    system: WindowsSystem | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Applied:
    """Apply the layer ``blob`` to ``directory``, which is made where missing.

    ``kind`` is a name of `lamella.layers.kinds`; ``parents`` are places of the same kind, nearest first. Whatever of
    ``digest``, ``size`` (bytes of the blob), ``diff_id`` and ``compression`` is given must hold; all are compared
    before the layer is committed. What was written before a failure stays in ``directory``; of the kind ``"windows"``,
    which takes the tar of a Windows layer, nothing stays, and the directory must be empty or not exist; without parents
    that is a base layer. Of the kind ``"cim"`` it is the path of an image, ``DIR/NAME.cim``, that must not exist; of
    the kind ``"blockcim"``, which only Windows can write, that of a file and the name of the image in it,
    ``DIR/layer.vhd/layer.cim``. ``rules`` are for the names in a Windows layer. On Windows (``system``, which is this
    host unless given) its own calls make the kind ``"windows"``; elsewhere the folder keeps all that the layer has.

    Raises Integrity (digest, size), FormatError, UnsafePath, Exhausted, Denied, Cancelled and the like; Conflict (the
    folder is there), NotFound (a parent is not, or a link's target); on Windows Unsupported (no Containers feature).
    """
    losses = losses if losses is not None else Losses()
    made = kinds.required_directory(kind, Path(directory))
    if system is None:  # a system that is given has a volume of its own
        _make(made)
    counts = Counts()
    with BlobReader(
        Path(blob) if isinstance(blob, (str, os.PathLike)) else blob,
        compression=compression,
        digest=digest,
        size=size,
        diff_id=diff_id,
        limits=limits,
        progress=None if progress is None else progress.advance,
        cancel=cancel,
    ) as reader:

        def contents() -> bytes:
            return reader.finish().diff_id.encode()

        sink = kinds.sink(
            kind,
            Path(directory),
            parents,
            policy=policy,
            losses=losses,
            contents=contents,
            rules=rules,
            system=system,
        )
        apply(kinds.tar_changes(kind, reader, sink, rules, losses), sink, cancel=cancel, counts=counts)
        size = sink.size if isinstance(sink, kinds.SizedSink) else None
        return Applied(reader.finish(), counts.changes, losses, size)


def apply_reading(
    layer: LayerReading,
    directory: Path,
    *,
    kind: str = "directory",
    parents: Sequence[Path] = (),
    policy: Policy | None = None,
    losses: Losses | None = None,
    cancel: Cancellation | None = None,
) -> Applied:
    """Apply a layer that another process reads to ``directory``, which is made where missing.

    ``kind`` is one whose row says `other_process`; that process must read the dialect of the kind.
    Raises as `apply_blob`, and Unavailable where the other process has ended.
    """
    losses = losses if losses is not None else Losses()
    _make(kinds.required_directory(kind, directory))
    counts = Counts()

    def contents() -> bytes:
        return layer.finish().diff_id.encode()

    sink = kinds.sink(kind, directory, parents, policy=policy, losses=losses, contents=contents)
    apply(layer.changes(), sink, cancel=cancel, counts=counts)
    return Applied(layer.finish(), counts.changes, losses)


def apply_image_layer(
    layer: ImageLayer,
    directory: Path,
    *,
    other: ReaderProcess | None = None,
    kind: str = "directory",
    parents: Sequence[Path] = (),
    policy: Policy | None = None,
    losses: Losses | None = None,
    rules: NameRules | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Applied:
    """Apply a layer of an image, which must be what manifest and config promise; ``other`` reads it, where given.

    Raises as `apply_blob` and `apply_reading`.
    """
    if other is not None:
        following = other.next_layer(
            losses=losses, progress=None if progress is None else progress.advance, cancel=cancel
        )
        return apply_reading(
            following, directory, kind=kind, parents=parents, policy=policy, losses=losses, cancel=cancel
        )
    with layer.open() as blob:
        return apply_blob(
            blob,
            directory,
            kind=kind,
            parents=parents,
            policy=policy,
            losses=losses,
            compression=layer.compression,
            digest=layer.descriptor.digest,
            size=layer.descriptor.size,
            diff_id=layer.diff_id,
            rules=rules,
            progress=progress,
            cancel=cancel,
        )


@contextmanager
def start_blob_reader(
    blob: Path, *, digest: Digest | None = None, diff_id: Digest | None = None, rules: NameRules | None = None
) -> Iterator[ReaderProcess | None]:
    """Another process that reads the Windows layer ``blob``; None as `started` has it, and for what is no plain file.

    For callers that know of no other threads; see `lamella.layers.process_reader`.
    """
    from lamella.layers.process_reader import Blob, start_reader
    from lamella.layers.windows.names import NameRules

    def blobs(opened: ExitStack) -> list[Blob]:
        file = opened.enter_context(open_blob(blob))
        return [Blob(file, digest=digest, diff_id=diff_id, windows=rules or NameRules())]

    try:
        found = os.stat(blob)
        size = found.st_size if stat.S_ISREG(found.st_mode) else 0
    except OSError:  # which is said when it is read here
        size = 0
    with ExitStack() as stack:
        yield start_reader(stack, size, blobs)


def _make(directory: Path) -> None:
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise from_os(error, f"make directory {os.fspath(directory)!r}") from error
