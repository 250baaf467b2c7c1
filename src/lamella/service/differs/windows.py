# SPDX-License-Identifier: Apache-2.0
"""The differs of Windows layers: folders, CIMs and block CIMs. None mounts anything."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec import Struct

from lamella.changes.contracts import Source
from lamella.changes.losses import Losses
from lamella.errors import InvalidInput, Unsupported
from lamella.layers import kinds
from lamella.layers.stack import LayerStack
from lamella.layers.windows.layout import WindowsLayer
from lamella.layers.windows.names import AS_WINDOWS
from lamella.service.differs.contract import MakeLayer, Mounts, Target, WriteLayer
from lamella.store.contract import BlockCimMount, CimMount, WindowsLayerMount

if TYPE_CHECKING:
    from lamella.host.windows.system import WindowsSystem
    from lamella.operations.layers.write import Written
    from lamella.streams.blob_reader import BlobReader


class WindowsMount(Struct, frozen=True):
    """A Windows layer as a mount shows it."""

    layer: WindowsLayer | None
    """None for a view without layers."""
    parents: LayerStack[WindowsLayer]

    @classmethod
    def of(cls, source: WindowsLayer, parents: LayerStack[WindowsLayer], *, read_only: bool) -> WindowsMount:
        """The layer of a mount of type ``windows-layer``; a read-only mount shows its nearest parent."""
        if not read_only:
            return cls(source, parents)
        nearest = parents.nearest_first()
        if not nearest:
            return cls(None, parents)
        return cls(nearest[0], LayerStack.from_nearest(nearest[1:]))


def layer_to_diff(lower: WindowsMount, upper: WindowsMount) -> tuple[WindowsLayer, LayerStack[WindowsLayer]]:
    """The layer that leads from ``lower`` to ``upper``, and its parents.

    A Windows layer holds its changes to its parents, so ``lower`` must be the nearest parent and have the same parents.
    Raises InvalidInput if it is not.
    """
    if upper.layer is None:
        raise InvalidInput("the upper mount shows no layer")
    above = upper.parents.nearest_first()
    if lower.layer is None:
        if above:
            raise InvalidInput("the upper layer has parents, and the lower mount shows no layer")
        return upper.layer, upper.parents
    if not above:
        raise InvalidInput("the upper layer has no parents, and the lower mount shows a layer")
    if above[0] != lower.layer:
        raise InvalidInput(
            f"{os.fspath(lower.layer.path)!r} is not the nearest parent of {os.fspath(upper.layer.path)!r}",
            hint="a Windows layer can be compared with its parent only",
        )
    if above[1:] != lower.parents.nearest_first():
        raise InvalidInput("the two layers have different parents")
    return upper.layer, upper.parents


M = TypeVar("M", WindowsLayerMount, CimMount, BlockCimMount)


class WindowsDiffer:
    """Differ of layer folders (`Differ`); on Windows, by the system's own calls."""

    name: Final = "windows"
    layers: Final = ("windows",)

    def __init__(self, system: WindowsSystem | None = None) -> None:
        """``system`` is the Windows system with the folders; None for this host."""
        self._system = system

    def supports(self, mounts: Mounts) -> bool:
        return any(isinstance(mount, WindowsLayerMount) for mount in mounts)

    @contextmanager
    def open_target(self, mounts: Mounts, losses: Losses) -> Iterator[Target]:
        """The folder is empty, or has only the directory of a new snapshot (`Differ.open_target`)."""
        from lamella.layers.windows.backend import remove_empty_files_directory
        from lamella.layers.windows.sink import WindowsSink
        from lamella.layers.windows.tar_source import windows_tar_changes

        mount = _single(mounts, WindowsLayerMount)
        _check_writable(mount)
        layer = WindowsLayer(mount.folder)
        if not mount.parents:
            remove_empty_files_directory(layer, self._system)
        parents = LayerStack.from_nearest(map(WindowsLayer, mount.parents)) if mount.parents else None
        sink = WindowsSink(layer, parents=parents, rules=AS_WINDOWS, losses=losses, system=self._system)

        def changes(reader: BlobReader) -> Source:
            return windows_tar_changes(reader.next_buffer, end=reader.finish, rules=AS_WINDOWS, linked=sink.link_facet)

        yield Target(sink, mount.folder.parent, changes)

    def plan_diff(self, left: Mounts, right: Mounts) -> MakeLayer:
        """``left`` must be the parent of ``right`` (`Differ.plan_diff`)."""

        layer, parents = layer_to_diff(self._mounted(left), self._mounted(right))
        below = [parent.path for parent in parents.nearest_first()]
        return partial(_write_folder, layer.path, below, self._system)

    def _mounted(self, mounts: Mounts) -> WindowsMount:

        if not mounts:
            return WindowsMount(None, LayerStack(()))
        mount = _single(mounts, WindowsLayerMount)
        parents = LayerStack.from_nearest(map(WindowsLayer, mount.parents))
        return WindowsMount.of(WindowsLayer(mount.folder), parents, read_only=mount.readonly)


class CimDiffer:
    """Differ of CIMs forked from their parents (`Differ`)."""

    name: Final = "cimfs"
    layers: Final = ("cim",)

    def supports(self, mounts: Mounts) -> bool:
        return any(isinstance(mount, CimMount) for mount in mounts)

    @contextmanager
    def open_target(self, mounts: Mounts, losses: Losses) -> Iterator[Target]:
        from lamella.layers.cim.image import CimLayer
        from lamella.layers.cim.sink import CimSink

        mount = _single(mounts, CimMount)
        _check_writable(mount)
        if mount.image is None:
            raise InvalidInput("the mount names no image to write the layer to")
        if len(mount.images) != len(mount.parents):
            raise InvalidInput(f"the mount has {len(mount.images)} parent images and {len(mount.parents)} folders")
        pairs = zip(mount.images, mount.parents, strict=True)
        below = [CimLayer(image, folder) for image, folder in pairs]
        parents = LayerStack.from_nearest(below) if below else None
        layer = CimLayer(mount.image, mount.folder)
        sink = CimSink(layer, parents=parents, guid=_guid(layer.name), losses=losses)
        yield Target(sink, mount.image.parent, _windows_changes)

    def plan_diff(self, left: Mounts, right: Mounts) -> MakeLayer:
        """``left`` must be the parent of ``right`` (`Differ.plan_diff`)."""
        image, parents = self._image_of(right)
        if image is None:
            raise InvalidInput("the right mount shows no layer")
        lower, below = self._image_of(left)
        if image == lower:
            return _write_nothing
        if parents != ((lower, *below) if lower is not None else ()):
            raise InvalidInput(
                f"the left mount does not show the parent of {os.fspath(image)!r}",
                hint="an image can be compared only with the image it is forked from",
            )
        return partial(_write_image, image, lower)

    def _image_of(self, mounts: Mounts) -> tuple[Path | None, tuple[Path, ...]]:
        """The image that a mount shows, and its parents."""
        if not mounts:
            return None, ()
        mount = _single(mounts, CimMount)
        if mount.image is not None and os.path.lexists(mount.image):
            return mount.image, mount.images
        return (mount.images[0], mount.images[1:]) if mount.images else (None, ())


class BlockCimDiffer:
    """Differ of block CIMs (`Differ`)."""

    name: Final = "blockcim"
    layers: Final = ("blockcim",)

    def supports(self, mounts: Mounts) -> bool:
        return any(isinstance(mount, BlockCimMount) for mount in mounts)

    @contextmanager
    def open_target(self, mounts: Mounts, losses: Losses) -> Iterator[Target]:
        """Raises Unsupported on hosts other than Windows (`Differ.open_target`)."""
        from lamella.layers.cim.block import BlockCimLayer, BlockCimSink, BlockKind, BlockOptions

        mount = _single(mounts, BlockCimMount)
        kind = BlockKind(mount.kind)
        below = [BlockCimLayer(image.parent, image.name, kind) for image in mount.images]
        parents = LayerStack.from_nearest(below) if below else None
        layer = BlockCimLayer(mount.source.parent, mount.source.name, kind)
        options = BlockOptions(mount.integrity, mount.footer)
        sink = BlockCimSink(layer, parents=parents, options=options, losses=losses)
        yield Target(sink, layer.folder, _windows_changes)

    def plan_diff(self, left: Mounts, right: Mounts) -> MakeLayer:  # noqa: ARG002
        raise Unsupported("block CIMs cannot be compared: only Windows reads them")


def _single(mounts: Mounts, kind: type[M]) -> M:
    match mounts:
        case (mount,) if isinstance(mount, kind):
            return mount
        case _:
            raise InvalidInput(f"{len(mounts)} mounts were given; a Windows layer is one mount")


def _check_writable(mount: WindowsLayerMount | CimMount) -> None:
    if mount.readonly:
        raise InvalidInput("a layer cannot be applied to a read-only mount")


def _windows_changes(reader: BlobReader) -> Source:
    from lamella.layers.windows.tar_source import windows_tar_changes

    return windows_tar_changes(reader.next_buffer, end=reader.finish, rules=AS_WINDOWS)


def _guid(name: str) -> uuid.UUID:
    """The GUID of an image's regions: its name if that is a GUID, else a new one, so that images share no files."""
    try:
        return uuid.UUID(name)
    except ValueError:
        return uuid.uuid4()


def _write_folder(layer: Path, parents: Sequence[Path], system: WindowsSystem | None, write: WriteLayer) -> Written:
    with kinds.source("windows", layer, kinds.SourceOptions(parents=parents, system=system)) as (changes, lookup):
        return write(changes, lookup, windows=True)


def _write_image(image: Path, parent: Path | None, write: WriteLayer) -> Written:
    with kinds.source("cim", image, kinds.SourceOptions(parent)) as (changes, lookup):
        return write(changes, lookup, windows=True)


def _write_nothing(write: WriteLayer) -> Written:
    return write((), lambda _: None, windows=True)
