# SPDX-License-Identifier: Apache-2.0
"""Snapshots of Windows layers in composite images (CIMs), each forked from its parent's (containerd's ``cimfs``).

All images are in one directory beside those of the snapshots, since a forked image needs its parent's files. The
directory of a snapshot has a file that names its image. The name is the GUID of the image's regions, so that all files
of an image can be found and removed with the snapshot, even after an interrupted write. Works on every host; mounts,
and the disk that a container writes to, need Windows.
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
from lamella.layers.cim.image import CimLayer, OpenCim
from lamella.layers.cim.sink import CimSink
from lamella.layers.cim.tree import CimTree
from lamella.layers.policy import Policy
from lamella.layers.stack import LayerStack
from lamella.store.contract import CimMount, Mount, SnapshotKind, Usage
from lamella.store.snapshots.copy_tree import measure
from lamella.store.snapshots.driver import OpenTree, Purpose, SequentialDriver

PARENT: Final = "parent"
"""The file that names the directory of the parent."""


class EmptyTree(MemoryTree):
    """The tree of an empty snapshot (`OpenTree`)."""

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def write_note(directory: Path, name: str, text: str) -> None:
    """Write a file of one line into the new directory of a snapshot."""
    (directory / name).write_text(text + "\n", "ascii")


def read_note(directory: Path, name: str) -> str | None:
    """Return the line that `write_note` has written; None if the file is missing. Raises InvalidInput (damaged)."""
    path = directory / name
    try:
        text = path.read_text("ascii", "replace")
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise from_os(problem, f"read {os.fspath(path)!r}") from problem
    if not text.endswith("\n") or "/" in text or text.startswith(".") or len(text) > 64:
        raise InvalidInput(f"{os.fspath(path)!r} is damaged")
    return text[:-1]


def refuse_policy(policy: Policy | None) -> None:
    """Raise InvalidInput for a policy of owners and devices, which Windows layers do not have."""
    if policy is not None:
        raise InvalidInput("options for owners and devices are for POSIX layers; Windows layers have neither")


def commit_empty(sink: Sink[Losses]) -> None:
    """Commit a layer without changes."""
    try:
        sink.commit()
    except BaseException:
        sink.abort()
        raise


IMAGES: Final = "cim-layers"
"""The directory of all images, beside those of the snapshots."""
IMAGE: Final = "image"
"""The file that names the image of a snapshot."""


class CimDriver(SequentialDriver):
    """Keeps each layer in a CIM forked from its parent's."""

    name = "cimfs"

    def __init__(self, root: Path) -> None:
        """``root`` is the directory of all snapshots."""
        self._root = root
        self._images = root / IMAGES

    def create(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path], purpose: Purpose) -> None:  # noqa: ARG002
        self._images.mkdir(mode=0o700, exist_ok=True)
        if kind is SnapshotKind.ACTIVE:
            write_note(directory, IMAGE, str(uuid.uuid4()))
            if len(parents):
                write_note(directory, PARENT, parents.nearest_first()[0].name)

    def mounts(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> tuple[Mount, ...]:
        above = parents.nearest_first()
        view = kind is SnapshotKind.VIEW
        # containerd names an image for a view too, although it has none.
        image = self._images / f"{directory.name}.cim" if view else self.layer(directory).path
        images = tuple(self.layer(parent).path for parent in above)
        return (CimMount(directory, image, above, images, readonly=view),)

    def commit(self, directory: Path) -> None:
        # A snapshot without a layer gets the image of an empty one.
        layer = self.layer(directory)
        if layer.path.exists():
            return
        parent = read_note(directory, PARENT)
        stack = None if parent is None else LayerStack([self.layer(self._root / parent)])
        commit_empty(CimSink(layer, parents=stack, windows=stack is not None, guid=_guid(layer)))

    def release(self, directory: Path) -> None:
        try:
            layer = self.layer(directory)
        except LamellaError:  # a view, or an interrupted creation
            return
        files = list(self._files(layer))
        for path in sorted(
            files, key=lambda path: path != layer.path
        ):  # the .cim file first: without it the rest is unreachable
            path.unlink(missing_ok=True)

    def usage(self, directory: Path, kind: SnapshotKind, below_root: Usage | None = None) -> Usage:  # noqa: ARG002
        used = measure(directory).usage
        if kind is SnapshotKind.VIEW:
            return used
        size, count = used.size, used.inodes
        for path in self._files(self.layer(directory)):
            try:
                size += path.stat().st_blocks * 512
                count += 1
            except FileNotFoundError:
                pass
        return Usage(size, count)

    def sink(
        self, directory: Path, parents: LayerStack[Path] | None, policy: Policy | None, losses: Losses | None
    ) -> Sink[Losses]:
        assert parents is not None  # noqa: S101  # not `can_rebase`
        refuse_policy(policy)
        layer = self.layer(directory)
        if layer.path.exists():
            raise Conflict(f"the snapshot in {os.fspath(directory)!r} has its layer already")
        stack = LayerStack(self.layer(parent) for parent in parents.base_first()) if len(parents) else None
        return CimSink(layer, parents=stack, guid=_guid(layer), losses=losses)

    def tree(self, directory: Path, kind: SnapshotKind, parents: LayerStack[Path]) -> OpenTree:
        shown = parents.nearest_first()[0] if len(parents) else None
        if kind is not SnapshotKind.VIEW and self.layer(directory).path.exists():
            shown = directory
        return EmptyTree() if shown is None else CimTree(self.layer(shown))

    def find_missing(self, directory: Path, kind: SnapshotKind, *, has_parents: bool) -> str:  # noqa: ARG002
        if kind is SnapshotKind.VIEW:
            return ""
        try:
            image = self.layer(directory).path
        except LamellaError:
            return "the file that names its image is missing or damaged"
        there = kind is not SnapshotKind.COMMITTED or image.exists()
        return "" if there else f"its image {image.name!r} is missing"

    def layer(self, directory: Path) -> CimLayer:
        """Return the image of the snapshot in ``directory``. Raises NotFound (a view has no image)."""
        name = read_note(directory, IMAGE)
        if name is None:
            raise NotFound(f"the snapshot in {os.fspath(directory)!r} has no image")
        return CimLayer(self._images / f"{name}.cim", directory)

    def _files(self, layer: CimLayer) -> Iterator[Path]:
        """Yield the files of an image, complete or not, outside the directory of its snapshot."""
        own = {layer.name.lower()}
        try:
            with OpenCim(layer) as image:  # Windows gives the regions that it writes another GUID
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
