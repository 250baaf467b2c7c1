# SPDX-License-Identifier: Apache-2.0
"""Snapshots of Windows layers in composite images, each forked from its parent's; containerd's name is ``cimfs``.

All images lie in one directory, beside the places, since a fork needs the files of those that it comes from. A place
says which image is its own: its name is the GUID of its regions, so that all its files are known by it, and go with
the snapshot even if it was broken off. Works on every host; what is shown by a mount, and the disk that a container
writes to, are for Windows.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from lamella.changes.contracts import Sink
from lamella.changes.losses import Losses
from lamella.changes.tree import MemoryTree
from lamella.errors import Conflict, InvalidInput, LamellaError, NotFound, from_os
from lamella.layers.cim.image_files import CimLayer, OpenCim
from lamella.layers.cim.sink import CimSink
from lamella.layers.cim.tree import CimTree
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.store.contract import CimMount, Mount, SnapshotKind, Usage
from lamella.store.snapshots.copy_tree import measure
from lamella.store.snapshots.driver import OpenTree, SequentialDriver, Use

PARENT: Final = "parent"
"""The file in a place that says which place is that of its parent."""


class EmptyTree(MemoryTree):
    """The tree of a snapshot in which nothing is yet (`OpenTree`)."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to let go of."""


def note(place: Path, name: str, text: str) -> None:
    """Write a file of one line into a new place."""
    (place / name).write_text(text + "\n", "ascii")


def noted(place: Path, name: str) -> str | None:
    """What such a file says; None where it is not there. Raises InvalidInput where it is none of ours."""
    path = place / name
    try:
        text = path.read_text("ascii", "replace")
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise from_os(problem, f"read {os.fspath(path)!r}") from problem
    if not text.endswith("\n") or "/" in text or text.startswith(".") or len(text) > 64:
        raise InvalidInput(f"{os.fspath(path)!r} is damaged")
    return text[:-1]


def without_policy(policy: Policy | None) -> None:
    """Raise InvalidInput where somebody chooses owners for a layer of Windows."""
    if policy is not None:
        raise InvalidInput("owners and devices are chosen for POSIX layers; a Windows layer keeps what it has")


def apply_nothing(sink: Sink[Losses]) -> None:
    """The layer in which nothing changed."""
    try:
        sink.commit()
    except BaseException:
        sink.abort()
        raise


IMAGES: Final = "cim-layers"
"""The directory beside the places that has all images."""
IMAGE: Final = "image"
"""The file in a place that names its image."""


class CimDriver(SequentialDriver):
    """Each snapshot has an image that holds what it changes, and shows what its parents hold."""

    name = "cimfs"
    windows = True

    def __init__(self, home: Path) -> None:
        """``home`` is the directory of the places."""
        self._home = home
        self._images = home / IMAGES

    def make(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path], use: Use) -> None:  # noqa: ARG002
        """See `SnapshotDriver.make`."""
        self._images.mkdir(mode=0o700, exist_ok=True)
        if kind is SnapshotKind.ACTIVE:
            note(place, IMAGE, str(uuid.uuid4()))
            if len(parents):
                note(place, PARENT, parents.nearest_first()[0].name)

    def mounts(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        """See `SnapshotDriver.mounts`."""
        above = parents.nearest_first()
        image = None if kind is SnapshotKind.VIEW else self.layer(place).path
        images = tuple(self.layer(parent).path for parent in above)
        return (CimMount(place, image, above, images, readonly=kind is SnapshotKind.VIEW),)

    def seal(self, place: Path) -> None:
        """See `SnapshotDriver.seal`. A snapshot to which no layer was applied gets the image of one that changes nothing."""
        layer = self.layer(place)
        if layer.path.exists():
            return
        parent = noted(place, PARENT)
        stack = None if parent is None else LayerStack([self.layer(self._home / parent)])
        apply_nothing(CimSink(layer, parents=stack, windows=stack is not None, guid=_guid(layer)))

    def release(self, place: Path) -> None:
        """See `SnapshotDriver.release`: the image goes with its place."""
        try:
            layer = self.layer(place)
        except LamellaError:  # a view, or what never came to be
            return
        files = list(self._files(layer))
        for path in sorted(files, key=lambda path: path != layer.path):  # without its name the rest is nothing
            path.unlink(missing_ok=True)

    def usage(self, place: Path, kind: SnapshotKind, beneath: Usage | None = None) -> Usage:  # noqa: ARG002
        """See `SnapshotDriver.usage`."""
        used = measure(place).usage
        if kind is SnapshotKind.VIEW:
            return used
        size, count = used.size, used.inodes
        for path in self._files(self.layer(place)):
            try:
                size += path.stat().st_blocks * 512
                count += 1
            except FileNotFoundError:
                pass
        return Usage(size, count)

    def beneath(self, place: Path) -> Usage | None:  # noqa: ARG002
        """See `SnapshotDriver.beneath`: an image is a few files."""
        return None

    def sink(
        self, place: Path, parents: LayerStack[Path] | None, policy: Policy | None, losses: Losses | None
    ) -> Sink[Losses]:
        """See `SnapshotDriver.sink`."""
        assert parents is not None  # noqa: S101  # not `side_by_side`
        without_policy(policy)
        layer = self.layer(place)
        if layer.path.exists():
            raise Conflict(f"the snapshot in {os.fspath(place)!r} has its layer already")
        stack = LayerStack(self.layer(parent) for parent in parents.base_first()) if len(parents) else None
        return CimSink(layer, parents=stack, guid=_guid(layer), losses=losses)

    def tree(self, place: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> OpenTree:
        """See `SnapshotDriver.tree`."""
        shown = parents.nearest_first()[0] if len(parents) else None
        if kind is not SnapshotKind.VIEW and self.layer(place).path.exists():
            shown = place
        return EmptyTree() if shown is None else CimTree(self.layer(shown))

    def lacking(self, place: Path, kind: SnapshotKind, *, parents: bool) -> str:  # noqa: ARG002  # a view has none
        """See `SnapshotDriver.lacking`."""
        if kind is SnapshotKind.VIEW:
            return ""
        try:
            image = self.layer(place).path
        except LamellaError:
            return "it is not said which image is its own"
        there = kind is not SnapshotKind.COMMITTED or image.exists()
        return "" if there else f"its image {image.name!r} is missing"

    def layer(self, place: Path) -> CimLayer:
        """The image of the snapshot in ``place``. Raises NotFound for a view, that has none."""
        name = noted(place, IMAGE)
        if name is None:
            raise NotFound(f"the snapshot in {os.fspath(place)!r} has no image")
        return CimLayer(self._images / f"{name}.cim", place)

    def _files(self, layer: CimLayer) -> Iterator[Path]:
        """All files that an image has, or had when its writing was broken off, but for those in its place."""
        own = {layer.name.lower()}
        try:
            with OpenCim(layer) as image:  # which Windows may have written, under a GUID of its own
                own.add(str(image.reader.filesystem.own.guid))
        except LamellaError:
            pass
        starts = (f"{layer.name}.cim", f".{layer.name}.", *(f"{kind}_{guid}_" for kind in _KINDS for guid in own))
        for path in self._images.iterdir() if self._images.is_dir() else ():
            if path.name.lower().startswith(starts):
                yield path


_KINDS: Final = ("region", "objectid")


def _guid(layer: CimLayer) -> uuid.UUID:
    return uuid.UUID(layer.name)
