# SPDX-License-Identifier: Apache-2.0
"""The kinds of layer: one row for each, with everything in which a kind differs from the others.

Importing the table loads no kind. Each function of a row imports what it needs when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, runtime_checkable

from msgspec import Struct

from lamella.changes.contracts import Sink, Source, Tree
from lamella.changes.losses import Losses
from lamella.errors import InvalidInput
from lamella.extensions import Table

if TYPE_CHECKING:
    from lamella.changes.model import Buffer, Entry
    from lamella.digests import Digest
    from lamella.host.windows.system import WindowsSystem
    from lamella.layers.policy import Policy
    from lamella.layers.windows.names import NameRules
    from lamella.paths import LayerPath
    from lamella.streams.blob_reader import BlobReader

Lookup: TypeAlias = "Callable[[LayerPath], Entry | None]"
"""Returns the entry of a path; used for the targets of the hard links that a source gives."""
Owners: TypeAlias = Literal["actual", "recorded"] | None
"""Which owners a source reports: those of the files, those recorded in an attribute, or the default of this user."""
MakeSink: TypeAlias = "Callable[[Path, Sequence[Path], SinkOptions], Sink[Losses]]"
"""Takes the place, its parents, nearest first, and the options."""
MakeSource: TypeAlias = "Callable[[ExitStack, Path, SourceOptions], tuple[Source, Lookup | None]]"
"""Takes the place and the options; whatever it opens is closed with the stack."""
ReadTar: TypeAlias = "Callable[[BlobReader, Sink[Losses], NameRules | None, Losses | None], Source]"
"""Reads the tar of a layer in the dialect of the kind."""


class SinkOptions(Struct, frozen=True):
    """How a layer is applied."""

    policy: Policy | None = None
    losses: Losses | None = None
    contents: Callable[[], bytes] | None = None
    """Called after the last change; returns bytes that are unique to this layer, such as its diff id."""
    rules: NameRules | None = None
    """Which unusual names a Windows layer may have."""
    dirty: bool = False
    """Merge registry hives without their last changes if these are in no transaction log."""
    system: WindowsSystem | None = None
    """The Windows host that writes the layer; None for the current host."""


class SourceOptions(Struct, frozen=True):
    """How a layer is read."""

    lower: Path | None = None
    """The place of the same kind to compare with."""
    parents: Sequence[Path] = ()
    """The places of the parent layers, nearest first."""
    owners: Owners = None
    exact: bool = False
    """Whether the content of all files is compared."""
    system: WindowsSystem | None = None
    """The Windows host that reads the layer; None for the current host."""
    losses: Losses | None = None
    """Collects what is in the place and cannot be part of a layer."""


DEFAULT_SINK_OPTIONS: Final = SinkOptions()
DEFAULT_SOURCE_OPTIONS: Final = SourceOptions()


class OpenTree(Tree, Protocol):
    """A tree that holds files open until it is closed."""

    def close(self) -> None:
        """Close the files."""
        ...


class SeveralLayersSink(Sink[Losses], Protocol):
    """A sink that takes one layer after the other (`UnpackForm.IMAGE`)."""

    more: bool
    """Set before a layer is applied: another one follows, and `commit` ends the layer but not the image."""


@runtime_checkable
class SizedSink(Protocol):
    """A sink that counts what it writes."""

    @property
    def size(self) -> int:
        """Bytes of the files written so far."""
        ...


class RecordedTar(Protocol):
    """The tar that a place was made from, restored byte for byte."""

    diff_id: Digest
    """The digest that the tar must have; known after the last piece."""
    entries: int
    """Changes in the pieces so far."""

    def pieces(self) -> Iterator[Buffer]:
        """All bytes of the tar, once. Raises FormatError; Conflict if a file has changed since."""
        ...


class UnpackForm(Enum):
    """What `lamella.operations.unpack.unpack` makes of the layers of an image."""

    TREE = "tree"
    """One directory: each layer is applied over the ones below it."""
    IMAGE = "image"
    """One file that holds the merged layers. The sink is a `SeveralLayersSink`."""
    LAYERS = "layers"
    """One place for each layer, in a new directory."""


def _read_posix_tar(reader: BlobReader, sink: Sink[Losses], rules: NameRules | None, losses: Losses | None) -> Source:
    from lamella.layers.tar.source import tar_changes

    del sink, rules
    return tar_changes(reader.next_buffer, end=reader.finish, losses=losses)


def _read_windows_tar(reader: BlobReader, sink: Sink[Losses], rules: NameRules | None, losses: Losses | None) -> Source:
    from lamella.layers.windows.tar_source import windows_tar_changes

    del sink, losses
    return windows_tar_changes(reader.next_buffer, end=reader.finish, rules=rules)


class LayerKind(Struct, frozen=True):
    """Everything in which a kind of layer differs from the others."""

    summary: str
    """What a place of the kind is, for the help of ``--as``."""
    sink: MakeSink
    source: MakeSource | None = None
    """Gives the changes of a place; None if layers of the kind cannot be read."""
    tree: Callable[[Path], OpenTree] | None = None
    """Opens the files of one place as a tree; None if a place cannot be read on its own."""
    tree_form: str = ""
    """The prefix of the name of such a tree, as in ``dir:PATH``; the name of the kind if empty."""
    read_tar: ReadTar = _read_posix_tar
    windows: bool = False
    """Whether layers are those of Windows images: entries have a Windows facet, and tars have the Windows dialect."""
    chooses_owners: bool = False
    """Whether a policy for owners and devices applies to a sink."""
    is_file: bool = False
    """Whether the place is a file."""
    has_parents: bool = True
    """Whether a sink takes the places of the parent layers."""
    reads_parents: bool = False
    """Whether ``source`` takes the places of the parent layers."""
    changes_only: bool = False
    """Whether a place holds the changes of one layer, so that ``source`` takes no lower place."""
    recorded_tar: Callable[[Source], RecordedTar | None] | None = None
    """Returns the tar that the place was made from, if the result of ``source`` keeps it."""
    required_directory: Callable[[Path], Path] | None = None
    """Returns the directory that must exist before a layer is written; None: the place, or the parent of a file."""
    unpack: UnpackForm | None = None
    """What `unpack` makes of an image; None if it does not take the kind."""
    layer_place: str = "{}"
    """Where `UnpackForm.LAYERS` puts a layer in the new directory; the braces stand for its number, 0 at the base."""
    keeps_documents: bool = False
    """Whether `unpack` writes manifest and config beside the layers, so that the image can be made again."""
    other_process: bool = False
    """Whether another process may read the blob for the sink."""
    mount_type: str = ""
    """The type of containerd's mounts of the kind; empty if it has none."""


def sink(
    kind: str, place: Path, parents: Sequence[Path] = (), options: SinkOptions = DEFAULT_SINK_OPTIONS
) -> Sink[Losses]:
    """A sink that applies a layer to ``place`` in the form of ``kind``.

    ``parents`` are places of the same kind, nearest first. Without parents, ``"overlay"`` takes them as unknown, the
    other kinds write a base layer. Raises InvalidInput for an unknown kind, and for parents or a policy that the kind
    does not take; Unsupported if this host cannot write the kind.
    """
    row = LAYER_KINDS[kind]
    if parents and not row.has_parents:
        raise InvalidInput(f"a layer of the kind {kind!r} takes no parents: the place holds the layers below too")
    if options.policy is not None and row.windows:
        raise InvalidInput("owners and devices are chosen for POSIX layers; a Windows layer keeps its own metadata")
    return row.sink(place, parents, options)


def tar_changes(
    kind: str,
    reader: BlobReader,
    sink: Sink[Losses],
    rules: NameRules | None = None,
    losses: Losses | None = None,
) -> Source:
    """The changes of the blob that ``reader`` reads, in the dialect of ``kind``, for a ``sink`` of that kind.

    ``rules`` apply to Windows layers. ``losses`` collects what reading a Windows layer as a POSIX one loses.
    """
    return LAYER_KINDS[kind].read_tar(reader, sink, rules, losses)


def required_directory(kind: str, place: Path) -> Path:
    """The directory that must exist before a layer is written to ``place``.

    Raises Unsupported if this host cannot write the kind.
    """
    row = LAYER_KINDS[kind]
    if row.required_directory is not None:
        return row.required_directory(place)
    return place.parent if row.is_file else place


@contextmanager
def source(
    kind: str, place: Path, options: SourceOptions = DEFAULT_SOURCE_OPTIONS
) -> Iterator[tuple[Source, Lookup | None]]:
    """The changes in ``place``, or its differences from `SourceOptions.lower`; valid until the block ends.

    The second value looks up the targets of hard links. Raises InvalidInput for an unknown kind, for a lower place,
    parents or owners that the kind does not take, and what reading the place raises.
    """
    row = LAYER_KINDS[kind]
    if row.source is None:
        readable = ", ".join(LAYER_KINDS.select(lambda row: row.source))
        raise InvalidInput(f"layers of the kind {kind!r} cannot be read; these can: {readable}")
    if options.lower is not None and row.changes_only:
        raise InvalidInput(f"{row.summary} holds the changes of one layer; give it without a lower place")
    if options.owners is not None and row.windows:
        raise InvalidInput("owners are chosen for POSIX layers; a Windows layer keeps its own metadata")
    if options.parents and not row.reads_parents:
        raise InvalidInput(f"a layer of the kind {kind!r} is read without parents")
    with ExitStack() as stack:
        yield row.source(stack, place, options)


def recorded_tar(kind: str, changes: Source) -> RecordedTar | None:
    """The tar that a place was made from, given the result of `source`; None if the place does not keep it."""
    recorded = LAYER_KINDS[kind].recorded_tar
    return None if recorded is None else recorded(changes)


def tree(kind: str, place: Path) -> OpenTree:
    """The files in ``place``; the caller closes the tree. Raises InvalidInput if the kind has no trees."""
    make = LAYER_KINDS[kind].tree
    if make is None:
        readable = ", ".join(LAYER_KINDS.select(lambda row: row.tree))
        raise InvalidInput(f"a place of the kind {kind!r} cannot be read as a tree; these can: {readable}")
    return make(place)


def cim_place(place: str | os.PathLike[str]) -> Path | None:
    """The path of the composite image that ``place`` names, as ``cim:PATH`` or by the suffix; None for other places."""
    text = os.fspath(place)
    if text.startswith("cim:"):
        return Path(text[4:])
    return Path(text) if text.lower().endswith(".cim") and not os.path.isdir(text) else None


def kind_of_form(form: str, *, installed: bool = True) -> str | None:
    """The kind of layer whose trees are named ``form:PATH``; None if there is none.

    Kinds that other packages add are considered if ``installed`` is true.
    """
    found = _with_form(form, LAYER_KINDS.built_in)
    return _with_form(form, LAYER_KINDS.rows()) if found is None and installed else found


def _with_form(form: str, rows: dict[str, LayerKind]) -> str | None:
    return next((name for name, row in rows.items() if row.tree and form == (row.tree_form or name)), None)


# The rows


def _directory_sink(place: Path, parents: Sequence[Path], options: SinkOptions) -> Sink[Losses]:
    from lamella.layers.directory.sink import DirectorySink

    del parents
    return DirectorySink(place, policy=options.policy, losses=options.losses)


def _directory_source(stack: ExitStack, place: Path, options: SourceOptions) -> tuple[Source, Lookup | None]:
    from lamella.changes.diff import diff
    from lamella.layers.directory.tree import DirectoryTree, record_sockets

    lower, owners = options.lower, options.owners
    below = None if lower is None else stack.enter_context(DirectoryTree(lower, owners=owners))
    upper = stack.enter_context(DirectoryTree(place, owners=owners))
    upper.on_socket = record_sockets(options.losses, below)
    return upper.changes() if below is None else diff(below, upper, exact=options.exact), upper.lookup


def _directory_tree(place: Path) -> OpenTree:
    from lamella.layers.directory.tree import DirectoryTree

    return DirectoryTree(place)


def _overlay_sink(place: Path, parents: Sequence[Path], options: SinkOptions) -> Sink[Losses]:
    from lamella.layers.overlay.layer import OverlayLayer
    from lamella.layers.overlay.sink import OverlaySink
    from lamella.layers.stack import LayerStack

    stack = LayerStack.from_nearest(OverlayLayer(parent) for parent in parents) if parents else None
    return OverlaySink(OverlayLayer(place), parents=stack, policy=options.policy, losses=options.losses)


def _overlay_source(stack: ExitStack, place: Path, options: SourceOptions) -> tuple[Source, Lookup | None]:
    from lamella.layers.directory.tree import record_sockets
    from lamella.layers.overlay.layer import OverlayLayer
    from lamella.layers.overlay.tree import OverlayChanges

    on_socket = record_sockets(options.losses)
    stated = stack.enter_context(OverlayChanges(OverlayLayer(place), owners=options.owners, on_socket=on_socket))
    return stated, stated.lookup


def _erofs_sink(place: Path, parents: Sequence[Path], options: SinkOptions) -> Sink[Losses]:
    from lamella.layers.erofs.sink import ErofsSink
    from lamella.layers.erofs.tree import ErofsLayer
    from lamella.layers.stack import LayerStack

    stack = LayerStack.from_nearest(ErofsLayer(parent) for parent in parents) if parents else None
    return ErofsSink(ErofsLayer(place), parents=stack, losses=options.losses)


def _erofs_source(stack: ExitStack, place: Path, options: SourceOptions) -> tuple[Source, Lookup | None]:
    from lamella.layers.erofs.tree import ErofsChanges, ErofsLayer

    del options
    stated = stack.enter_context(ErofsChanges(ErofsLayer(place)))
    return stated, stated.lookup


def _erofs_tree(place: Path) -> OpenTree:
    from lamella.layers.erofs.tree import ErofsImage, ErofsLayer

    return ErofsImage(ErofsLayer(place))


def _windows_sink(place: Path, parents: Sequence[Path], options: SinkOptions) -> Sink[Losses]:
    from lamella.layers.stack import LayerStack
    from lamella.layers.windows.layout import WindowsLayer
    from lamella.layers.windows.sink import WindowsSink

    stack = LayerStack.from_nearest(WindowsLayer(parent) for parent in parents) if parents else None
    layer, rules, system = WindowsLayer(place), options.rules, options.system
    return WindowsSink(layer, parents=stack, rules=rules, losses=options.losses, system=system, dirty=options.dirty)


def _windows_directory(place: Path) -> Path:
    return place.absolute().parent


def _read_folder_tar(reader: BlobReader, sink: Sink[Losses], rules: NameRules | None, losses: Losses | None) -> Source:
    from lamella.layers.windows.sink import WindowsSink, recorded_tar_changes

    del losses
    assert isinstance(sink, WindowsSink)  # noqa: S101
    return recorded_tar_changes(reader, sink, rules)


def _windows_source(stack: ExitStack, place: Path, options: SourceOptions) -> tuple[Source, Lookup | None]:
    from lamella.layers.stack import LayerStack
    from lamella.layers.windows.backend import open_source
    from lamella.layers.windows.layout import WindowsLayer

    parents = options.parents
    below = LayerStack.from_nearest(WindowsLayer(parent) for parent in parents) if parents else None
    stated = stack.enter_context(open_source(WindowsLayer(place), below, options.system))
    return stated, stated.lookup


def _windows_tree(place: Path) -> OpenTree:
    from lamella.layers.windows.backend import WindowsLayerTree
    from lamella.layers.windows.layout import WindowsLayer

    return WindowsLayerTree(WindowsLayer(place))


def _recorded_windows_tar(changes: Source) -> RecordedTar | None:
    from lamella.layers.windows.folder.reader import FolderChanges

    return changes.tar() if isinstance(changes, FolderChanges) else None


def _cim_sink(place: Path, parents: Sequence[Path], options: SinkOptions) -> Sink[Losses]:
    from lamella.layers.cim.image import CimLayer
    from lamella.layers.cim.native import fork_writer
    from lamella.layers.cim.sink import CimSink
    from lamella.layers.stack import LayerStack

    layer, above = CimLayer(place), [CimLayer(parent) for parent in parents]
    writer = fork_writer(layer, above[0] if above else None, options.system)
    stack = LayerStack.from_nearest(above) if above else None
    contents, losses = options.contents, options.losses
    return CimSink(layer, parents=stack, contents=contents, losses=losses, writer=writer, dirty=options.dirty)


def _cim_source(stack: ExitStack, place: Path, options: SourceOptions) -> tuple[Source, Lookup | None]:
    from lamella.layers.cim.source import cim_changes, open_with_parent
    from lamella.layers.cim.tree import CimTree

    image, below = stack.enter_context(open_with_parent(place, options.lower))
    return cim_changes(image, below), CimTree(image).lookup


def _cim_tree(place: Path) -> OpenTree:
    from lamella.layers.cim.image import CimLayer
    from lamella.layers.cim.tree import CimTree

    return CimTree(CimLayer(place))


def _blockcim_sink(place: Path, parents: Sequence[Path], options: SinkOptions) -> Sink[Losses]:
    from lamella.layers.cim.block import BlockCimLayer, BlockCimSink
    from lamella.layers.stack import LayerStack

    stack = LayerStack.from_nearest(BlockCimLayer.parse(parent) for parent in parents) if parents else None
    return BlockCimSink(BlockCimLayer.parse(place), parents=stack, losses=options.losses, dirty=options.dirty)


def _blockcim_directory(place: Path) -> Path:
    from lamella.layers.cim.block import BlockCimLayer, system_calls

    layer = BlockCimLayer.parse(place)
    system_calls()
    return layer.folder


LAYER_KINDS: Final = Table(
    "kind of layer",
    "lamella.layers",
    LayerKind,
    {
        "directory": LayerKind(
            "a plain directory",
            _directory_sink,
            _directory_source,
            _directory_tree,
            tree_form="dir",
            chooses_owners=True,
            has_parents=False,
            unpack=UnpackForm.TREE,
            other_process=True,
            mount_type="bind",
        ),
        "overlay": LayerKind(
            "the upper directory of an overlay",
            _overlay_sink,
            _overlay_source,
            chooses_owners=True,
            changes_only=True,
            mount_type="overlay",
        ),
        "erofs": LayerKind(
            "an EROFS image",
            _erofs_sink,
            _erofs_source,
            _erofs_tree,
            is_file=True,
            changes_only=True,
            unpack=UnpackForm.IMAGE,
            mount_type="erofs",
        ),
        "windows": LayerKind(
            "the folder of a Windows layer",
            _windows_sink,
            _windows_source,
            _windows_tree,
            read_tar=_read_folder_tar,
            windows=True,
            reads_parents=True,
            changes_only=True,
            recorded_tar=_recorded_windows_tar,
            required_directory=_windows_directory,
            unpack=UnpackForm.LAYERS,
            mount_type="windows-layer",
        ),
        "cim": LayerKind(
            "a composite image, DIR/NAME.cim",
            _cim_sink,
            _cim_source,
            _cim_tree,
            read_tar=_read_windows_tar,
            windows=True,
            is_file=True,
            unpack=UnpackForm.LAYERS,
            layer_place="{}.cim",
            keeps_documents=True,
            other_process=True,
            mount_type="CimFS",
        ),
        "blockcim": LayerKind(
            "a composite image in a block file, DIR/layer.vhd/layer.cim (on Windows)",
            _blockcim_sink,
            read_tar=_read_windows_tar,
            windows=True,
            required_directory=_blockcim_directory,
            unpack=UnpackForm.LAYERS,
            layer_place="{}/layer.vhd/layer.cim",
            keeps_documents=True,
            mount_type="BlockCIM",
        ),
    },
)
"""All kinds of layer, by the names that ``--as`` and `sink` take."""
