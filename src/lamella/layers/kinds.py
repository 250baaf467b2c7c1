# SPDX-License-Identifier: Apache-2.0
"""The kinds of place that a layer can live in: one row of a table each, loaded when it is used, and not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

from msgspec import Struct

from lamella.changes.contracts import Sink, Source, Tree
from lamella.changes.losses import Losses
from lamella.errors import InvalidInput

if TYPE_CHECKING:
    from lamella.changes.model import Buffer, Entry
    from lamella.digests import Digest
    from lamella.host.windows.system import WindowsSystem
    from lamella.layers.policy import Policy
    from lamella.layers.windows.names import NameRules
    from lamella.paths import LayerPath
    from lamella.streams.blob_reader import BlobReader

Lookup: TypeAlias = "Callable[[LayerPath], Entry | None]"
"""Tells of the target of a hard link that a source gives."""
Owners: TypeAlias = Literal["actual", "recorded"] | None
"""Whose files a source says that there are; None is what this user goes by."""
MakeSink: TypeAlias = "Callable[[Path, Sequence[Path], SinkOptions], Sink[Losses]]"
TakeTar: TypeAlias = "Callable[[BlobReader, Sink[Losses], NameRules | None, Losses | None], Source]"
MakeSource: TypeAlias = "Callable[[ExitStack, Path, SourceOptions], tuple[Source, Lookup | None]]"
"""What is open goes to the stack."""


class SinkOptions(Struct, frozen=True):
    """How a layer is applied, beyond where."""

    policy: Policy | None = None
    losses: Losses | None = None
    contents: Callable[[], bytes] | None = None
    """Gives, once all changes have come, bytes that tell this layer from any other: those of its diff id, say."""
    rules: NameRules | None = None
    """Which odd names a Windows layer may have."""
    system: WindowsSystem | None = None
    """The Windows that makes its layers; None for the one that this process runs on, if it does."""


class SourceOptions(Struct, frozen=True):
    """How a layer is read, beyond where."""

    lower: Path | None = None
    """The place of the same kind that it is compared with."""
    parents: Sequence[Path] = ()
    """The places below a layer that is read against them, nearest first."""
    owners: Owners = None
    exact: bool = False
    """Whether all contents are compared."""
    system: WindowsSystem | None = None
    """See `SinkOptions`."""
    losses: Losses | None = None
    """Told of what is there and no layer can hold."""


class OpenTree(Tree, Protocol):
    """A tree that holds something open."""

    def close(self) -> None:
        """Let go of it."""
        ...


class KeptTar(Protocol):
    """The very tar that a place was made of, kept apart from content."""

    diff_id: Digest
    """What the tar must have; known when all pieces have been given."""
    entries: int
    """Changes that went by."""

    def pieces(self) -> Iterator[Buffer]:
        """All bytes of the tar, once. Raises FormatError, Conflict where a file is not what it was."""
        ...


def _posix_changes(reader: BlobReader, sink: Sink[Losses], rules: NameRules | None, losses: Losses | None) -> Source:
    from lamella.layers.tar.source import tar_changes

    del sink, rules
    return tar_changes(reader.next_buffer, end=reader.finish, losses=losses)


def _windows_changes(reader: BlobReader, sink: Sink[Losses], rules: NameRules | None, losses: Losses | None) -> Source:
    from lamella.layers.windows.tar_source import windows_tar_changes

    del sink, losses
    return windows_tar_changes(reader.next_buffer, end=reader.finish, rules=rules)


class LayerKind(Struct, frozen=True):
    """What can be done with one kind of place. Each function loads what it takes when it is called."""

    sink: MakeSink
    source: MakeSource | None = None
    tree: Callable[[Path], OpenTree] | None = None
    """What a place holds, on its own."""
    changes: TakeTar = _posix_changes
    """The tar of a layer as the sink takes it."""
    windows: bool = False
    """Whether entries have a Windows facet, so that tars are of that dialect and owners are not chosen."""
    is_file: bool = False
    """Whether the place is a file, in a directory that must be there."""
    has_parents: bool = True
    read_above: bool = False
    """Whether ``source`` takes the parents that a layer is read against."""
    lower: str = ""
    """Why a source is given alone, where it is; else what lies below is another place of the kind."""
    tar: Callable[[Source], KeptTar | None] | None = None
    """From what `source` gave, the tar that the place was made of, where that is kept."""
    needs: Callable[[Path], Path] | None = None
    """Gives the directory that must be there; where it is not given, that follows from ``is_file``."""


def kind_of(name: str) -> LayerKind:
    """The kind called ``name``. Raises InvalidInput."""
    try:
        return KINDS[name]
    except KeyError:
        raise InvalidInput(f"no kind of layer is called {name!r}; there are {', '.join(KINDS)}") from None


def sink(
    kind: str,
    place: Path,
    parents: Sequence[Path] = (),
    *,
    policy: Policy | None = None,
    losses: Losses | None = None,
    contents: Callable[[], bytes] | None = None,
    rules: NameRules | None = None,
    system: WindowsSystem | None = None,
) -> Sink[Losses]:
    """The sink that applies a layer to the directory ``place`` as ``kind`` has it.

    ``parents`` are places of the same kind, nearest first. None means that they are not known for ``"overlay"``; of
    the other kinds that keep layers apart, that the layer is a base layer. See `SinkOptions` for the rest. Raises
    InvalidInput for an unknown kind, and for parents where the kind has none; Unsupported where this host cannot write
    the kind.
    """
    row = kind_of(kind)
    if parents and not row.has_parents:
        raise InvalidInput("a plain directory has what is below in it; it takes no parents")
    if policy is not None and row.windows:
        raise InvalidInput("owners and devices are chosen for POSIX layers; a Windows layer keeps what it has")
    return row.sink(place, parents, SinkOptions(policy, losses, contents, rules, system))


def tar_changes(
    kind: str,
    reader: BlobReader,
    sink: Sink[Losses],
    rules: NameRules | None = None,
    losses: Losses | None = None,
) -> Source:
    """The layer that ``reader`` gives, as the ``sink`` of that kind takes it; ``rules`` are for a Windows layer.

    ``losses`` are told of what reading such a layer as one of Linux loses.
    """
    return kind_of(kind).changes(reader, sink, rules, losses)


def directory_of(kind: str, place: Path) -> Path:
    """What must be there before a layer goes to ``place``. Raises Unsupported where this host cannot write the kind."""
    row = kind_of(kind)
    if row.needs is not None:
        return row.needs(place)
    return place.parent if row.is_file else place


@contextmanager
def source(
    kind: str,
    place: Path,
    lower: Path | None = None,
    *,
    parents: Sequence[Path] = (),
    owners: Owners = None,
    exact: bool = False,
    system: WindowsSystem | None = None,
    losses: Losses | None = None,
) -> Iterator[tuple[Source, Lookup | None]]:
    """The changes that ``place`` states, against ``lower`` where the kind takes that; good until the block ends.

    ``parents``, the nearest first, are for a layer that is read against those; with them comes what tells of the
    targets of hard links. ``system`` is as for `SinkOptions`. ``losses`` are told of what is there and no layer can
    hold, while changes are taken. Raises InvalidInput for an unknown kind, for a ``lower``, parents or owners that the
    kind does not take, and what reading the place raises.
    """
    row = kind_of(kind)
    if row.source is None:
        raise InvalidInput(f"layers of the kind {kind!r} are not read here; {', '.join(SOURCES)} are")
    if lower is not None and row.lower:
        raise InvalidInput(row.lower)
    if owners is not None and row.windows:
        raise InvalidInput("owners are chosen for POSIX layers; a Windows layer keeps what it has")
    if parents and not row.read_above:
        raise InvalidInput("only the folder of a Windows layer is read against its parents")
    with ExitStack() as stack:
        yield row.source(stack, place, SourceOptions(lower, parents, owners, exact, system, losses))


def kept_tar(kind: str, changes: Source) -> KeptTar | None:
    """The very tar that a place was made of, which `source` opened; None where it is not kept, as with most kinds."""
    keeps = kind_of(kind).tar
    return None if keeps is None else keeps(changes)


def tree(kind: str, place: Path) -> OpenTree:
    """What ``place`` holds, as a tree to be closed. Raises InvalidInput where the kind has none."""
    make = kind_of(kind).tree
    if make is None:
        raise InvalidInput(f"places of the kind {kind!r} are not looked into by themselves; {', '.join(TREES)} are")
    return make(place)


# One kind after the other ------------------------------------------------------------------------------------------


def _directory_sink(place: Path, parents: Sequence[Path], options: SinkOptions) -> Sink[Losses]:
    from lamella.layers.directory.sink import DirectorySink

    del parents
    return DirectorySink(place, policy=options.policy, losses=options.losses)


def _directory_source(stack: ExitStack, place: Path, options: SourceOptions) -> tuple[Source, Lookup | None]:
    from lamella.changes.diff import diff
    from lamella.layers.directory.tree import DirectoryTree, lost_sockets

    lower, owners = options.lower, options.owners
    below = None if lower is None else stack.enter_context(DirectoryTree(lower, owners=owners))
    upper = stack.enter_context(DirectoryTree(place, owners=owners))
    upper.left_out = lost_sockets(options.losses, below)
    return upper.changes() if below is None else diff(below, upper, exact=options.exact), upper.lookup


def _directory_tree(place: Path) -> OpenTree:
    from lamella.layers.directory.tree import DirectoryTree

    return DirectoryTree(place)


def _overlay_sink(place: Path, parents: Sequence[Path], options: SinkOptions) -> Sink[Losses]:
    from lamella.layers.overlay.layer import OverlayLayer, OverlaySink
    from lamella.layers.stack import LayerStack

    stack = LayerStack.from_nearest(OverlayLayer(parent) for parent in parents) if parents else None
    return OverlaySink(OverlayLayer(place), parents=stack, policy=options.policy, losses=options.losses)


def _overlay_source(stack: ExitStack, place: Path, options: SourceOptions) -> tuple[Source, Lookup | None]:
    from lamella.layers.directory.tree import lost_sockets
    from lamella.layers.overlay.layer import OverlayLayer
    from lamella.layers.overlay.tree import OverlayChanges

    left_out = lost_sockets(options.losses)
    stated = stack.enter_context(OverlayChanges(OverlayLayer(place), owners=options.owners, left_out=left_out))
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
    from lamella.layers.windows.folder.layout import WindowsLayer
    from lamella.layers.windows.sink import WindowsSink

    stack = LayerStack.from_nearest(WindowsLayer(parent) for parent in parents) if parents else None
    layer, rules, system = WindowsLayer(place), options.rules, options.system
    return WindowsSink(layer, parents=stack, rules=rules, losses=options.losses, system=system)


def _windows_needs(place: Path) -> Path:
    return place.absolute().parent


def _folder_changes(reader: BlobReader, sink: Sink[Losses], rules: NameRules | None, losses: Losses | None) -> Source:
    from lamella.layers.windows.folder.tar_split import taken_tar
    from lamella.layers.windows.sink import WindowsSink

    del losses
    assert isinstance(sink, WindowsSink)  # noqa: S101
    return taken_tar(reader, sink, rules)


def _windows_source(stack: ExitStack, place: Path, options: SourceOptions) -> tuple[Source, Lookup | None]:
    from lamella.layers.stack import LayerStack
    from lamella.layers.windows.choose import opened_source
    from lamella.layers.windows.folder.layout import WindowsLayer

    parents = options.parents
    below = LayerStack.from_nearest(WindowsLayer(parent) for parent in parents) if parents else None
    stated = stack.enter_context(opened_source(WindowsLayer(place), below, options.system))
    return stated, stated.lookup


def _windows_tree(place: Path) -> OpenTree:
    from lamella.layers.windows.choose import WindowsLayerTree
    from lamella.layers.windows.folder.layout import WindowsLayer

    return WindowsLayerTree(WindowsLayer(place))


def _windows_tar(changes: Source) -> KeptTar | None:
    from lamella.layers.windows.folder.source import WindowsChanges

    return changes.tar() if isinstance(changes, WindowsChanges) else None


def _cim_sink(place: Path, parents: Sequence[Path], options: SinkOptions) -> Sink[Losses]:
    from lamella.layers.cim.image_files import CimLayer
    from lamella.layers.cim.native import fork_writer
    from lamella.layers.cim.sink import CimSink
    from lamella.layers.stack import LayerStack

    layer, above = CimLayer(place), [CimLayer(parent) for parent in parents]
    writer = fork_writer(layer, above[0] if above else None, options.system)
    stack = LayerStack.from_nearest(above) if above else None
    return CimSink(layer, parents=stack, contents=options.contents, losses=options.losses, writer=writer)


def _cim_source(stack: ExitStack, place: Path, options: SourceOptions) -> tuple[Source, Lookup | None]:
    from lamella.layers.cim.source import cim_changes, opened
    from lamella.layers.cim.tree import CimTree

    image, below = stack.enter_context(opened(place, options.lower))
    return cim_changes(image, below), CimTree(image).lookup


def _cim_tree(place: Path) -> OpenTree:
    from lamella.layers.cim.image_files import CimLayer
    from lamella.layers.cim.tree import CimTree

    return CimTree(CimLayer(place))


def _blockcim_sink(place: Path, parents: Sequence[Path], options: SinkOptions) -> Sink[Losses]:
    from lamella.layers.cim.block.layer import BlockCimLayer
    from lamella.layers.cim.block.sink import BlockCimSink
    from lamella.layers.stack import LayerStack

    stack = LayerStack.from_nearest(BlockCimLayer.parse(parent) for parent in parents) if parents else None
    return BlockCimSink(BlockCimLayer.parse(place), parents=stack, losses=options.losses)


def _blockcim_needs(place: Path) -> Path:
    from lamella.layers.cim.block.layer import BlockCimLayer, system_calls

    layer = BlockCimLayer.parse(place)
    system_calls()
    return layer.folder


KINDS: Final[dict[str, LayerKind]] = {
    "directory": LayerKind(_directory_sink, _directory_source, _directory_tree, has_parents=False),
    "overlay": LayerKind(
        _overlay_sink,
        _overlay_source,
        lower="an overlay's upper directory says itself what changed: it is given alone",
    ),
    "erofs": LayerKind(
        _erofs_sink,
        _erofs_source,
        _erofs_tree,
        is_file=True,
        lower="the image of a layer says itself what changed: it is given alone",
    ),
    "windows": LayerKind(
        _windows_sink,
        _windows_source,
        _windows_tree,
        changes=_folder_changes,
        needs=_windows_needs,
        read_above=True,
        windows=True,
        tar=_windows_tar,
        lower="a Windows layer says itself what changed: it is given alone",
    ),
    "cim": LayerKind(_cim_sink, _cim_source, _cim_tree, changes=_windows_changes, windows=True, is_file=True),
    "blockcim": LayerKind(_blockcim_sink, changes=_windows_changes, windows=True, needs=_blockcim_needs),
}
"""Every kind, by name."""

SOURCES: Final = tuple(name for name, row in KINDS.items() if row.source is not None)
TREES: Final = tuple(name for name, row in KINDS.items() if row.tree is not None)
