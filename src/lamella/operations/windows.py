# SPDX-License-Identifier: Apache-2.0
"""Windows layers applied and compared as containerd does on Windows: there by its calls, elsewhere over folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lamella.changes.apply import Tally, apply
from lamella.changes.losses import Losses
from lamella.changes.model import Change
from lamella.errors import InvalidInput, from_os
from lamella.layers.stack import LayerStack
from lamella.layers.windows import WindowsLayer
from lamella.layers.windows.folder import FolderWriter
from lamella.layers.windows.framing import FramingWriter
from lamella.layers.windows.opened import opened_writer
from lamella.layers.windows.place import FRAMING
from lamella.layers.windows.sink import WindowsSink
from lamella.layers.windows_tar import windows_tar_changes
from lamella.operations.apply import Applied
from lamella.streams.reading import BlobLimits, BlobReader

if TYPE_CHECKING:
    from lamella.digests import Digest
    from lamella.host.windows.system import WindowsSystem
    from lamella.layers.policy import Policy
    from lamella.layers.windows.writer import LayerWriter
    from lamella.layers.windows_names import NameRules
    from lamella.progress import Cancellation, Progress


@dataclass(slots=True, frozen=True)
class Imported:
    """What came of a layer."""

    applied: Applied
    size: int
    """Bytes of its files, as hcsshim counts them: without alternate streams, each file once."""


def apply_layer(
    blob: str | os.PathLike[str] | BinaryIO,
    folder: Path,
    *,
    parents: Sequence[Path] | LayerStack[WindowsLayer] = (),
    policy: Policy | None = None,
    rules: NameRules | None = None,
    losses: Losses | None = None,
    compression: str | None = None,
    digest: Digest | None = None,
    size: int | None = None,
    diff_id: Digest | None = None,
    limits: BlobLimits | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
    system: WindowsSystem | None = None,
) -> Imported:
    """Make ``folder`` the Windows layer whose tar is ``blob``; a failure leaves nothing there.

    Paths of ``parents`` come nearest first; without any it is a base layer. What else can be given must hold, as for
    `apply_blob`. On Windows (``system``, which is this host unless given) its own calls make the layer; elsewhere the
    folder keeps all that it has.

    Raises Conflict (the folder is there), NotFound (a parent is not, or a link's target), InvalidInput, UnsafePath,
    FormatError, Integrity, Exhausted, Cancelled; on Windows Denied (a privilege), Unsupported (no Containers feature).
    """
    if policy is not None:
        raise InvalidInput("owners and devices are chosen for POSIX layers; a Windows layer keeps what it has")
    losses = losses if losses is not None else Losses()
    stack = parents if isinstance(parents, LayerStack) else LayerStack.from_nearest(map(WindowsLayer, parents))
    if system is None:  # a system that is given has a volume of its own
        try:
            os.makedirs(folder.absolute().parent, exist_ok=True)
        except OSError as error:
            raise from_os(error, f"make directory {os.fspath(folder.parent)!r}") from error
    layer, below = WindowsLayer(folder), stack if len(stack) else None
    tally = Tally()
    with (
        BlobReader(
            Path(blob) if isinstance(blob, (str, os.PathLike)) else blob,
            compression=compression,
            digest=digest,
            size=size,
            diff_id=diff_id,
            limits=limits,
            progress=None if progress is None else progress.advance,
            cancel=cancel,
        ) as reader,
        opened_writer(layer, below, system) as writer,
    ):
        sink = WindowsSink(layer, parents=below, rules=rules, losses=losses, writer=writer)
        apply(_changes(reader, writer, sink, rules), sink, cancel=cancel, tally=tally)
        return Imported(Applied(reader.finish(), tally.changes, losses), sink.size)


def _changes(reader: BlobReader, writer: LayerWriter, sink: WindowsSink, rules: NameRules | None) -> Iterator[Change]:
    """The changes of the blob; a folder gets the framing of its tar beside what ``sink`` makes of them."""
    if not isinstance(writer, FolderWriter):
        yield from windows_tar_changes(reader.next_buffer, end=reader.finish, rules=rules, linked=sink.link_facet)
        return
    with writer.beside(FRAMING) as file:
        framing = FramingWriter(reader.next_buffer, file.write)
        changes = windows_tar_changes(framing.next_buffer, rules=rules, linked=sink.link_facet)
        yield from framing.noted(changes)
        framing.finish(reader.finish().diff_id)


@dataclass(slots=True, frozen=True)
class WindowsMount:
    """A layer as containerd mounts it: writable, or to be looked at."""

    layer: WindowsLayer | None
    """None for what shows nothing: a view of no layer."""
    parents: LayerStack[WindowsLayer]

    @classmethod
    def of(cls, source: WindowsLayer, parents: LayerStack[WindowsLayer], *, read_only: bool) -> WindowsMount:
        """What a mount of type ``windows-layer`` means: a read-only one shows its parents, and is a dummy itself."""
        if not read_only:
            return cls(source, parents)
        nearest = parents.nearest_first()
        if not nearest:
            return cls(None, parents)
        return cls(nearest[0], LayerStack.from_nearest(nearest[1:]))


def layer_to_diff(lower: WindowsMount, upper: WindowsMount) -> tuple[WindowsLayer, LayerStack[WindowsLayer]]:
    """The layer that tells how ``upper`` differs from ``lower``, with its parents.

    A Windows layer says itself what changed, against its parents alone, so ``lower`` must be the nearest of them, with
    the same parents in turn. Raises InvalidInput where it is not.
    """
    if upper.layer is None:
        raise InvalidInput("the upper mount shows no layer")
    above = upper.parents.nearest_first()
    if lower.layer is None:
        if above:
            raise InvalidInput("the upper layer has parents, and is to be compared with nothing")
        return upper.layer, upper.parents
    if not above:
        raise InvalidInput("the upper layer has no parents, and is to be compared with a layer")
    if above[0] != lower.layer:
        raise InvalidInput(
            f"{os.fspath(lower.layer.path)!r} is not the nearest parent of {os.fspath(upper.layer.path)!r}",
            hint="a Windows layer can be compared with its parent alone",
        )
    if above[1:] != lower.parents.nearest_first():
        raise InvalidInput("the two layers do not have the same layers below")
    return upper.layer, upper.parents
