# SPDX-License-Identifier: Apache-2.0
"""Block images (block CIMs): composite images inside a file or device.

Their format is not published, so only the calls of Windows can write, read, seal and merge them.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Final

from msgspec import Struct

from lamella.changes.limits import Implied
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Content, Entry, Kind, implied_directory
from lamella.changes.whiteouts import PutRecord
from lamella.errors import AlreadyExists, InvalidInput, MissingFacet, Unsupported, from_os
from lamella.formats.vhd import VhdFooter
from lamella.host.windows.cimfs import HASH_SIZE, Cimfs, Create, MergeFlag, MountFlag
from lamella.host.windows.system import this_system
from lamella.layers.cim.host_files import HostFiles
from lamella.layers.cim.image import CimLayer
from lamella.layers.cim.import_rules import PLAIN_DIRECTORY, CimImport, QueuedLink
from lamella.layers.cim.native import SystemWriter, host_path
from lamella.layers.stack import LayerStack
from lamella.paths import ROOT, LayerPath, split

CHECKSUM: Final = "integrity_checksum"
MERGED_CHECKSUM: Final = "merged_integrity_checksum"
_HEX: Final = frozenset("0123456789abcdef")


class BlockKind(Enum):
    """What holds a block image. Images that are merged must have the same kind."""

    FILE = "file"
    DEVICE = "device"


class BlockCimLayer(Struct, frozen=True):
    """The layer in the image ``name`` inside the file or device ``block``."""

    block: Path
    name: str
    kind: BlockKind = BlockKind.FILE

    @classmethod
    def parse(cls, place: Path) -> BlockCimLayer:
        """The image at a path like ``DIR/layer.vhd/layer.cim``: the file, then the name. Raises InvalidInput."""
        if place.suffix.lower() != ".cim" or not place.stem or len(place.parts) < 2:
            raise InvalidInput(
                f"{str(place)!r} is not the path of a block image", hint="give a path like DIR/layer.vhd/layer.cim"
            )
        return cls(place.parent, place.name)

    @property
    def folder(self) -> Path:
        """The folder for files that the host needs outside of the image, and for the root hash of a sealed image."""
        return self.block.parent

    def root_hash(self, *, merged: bool = False) -> bytes | None:
        """The root hash of a sealed image; None if it was not sealed. Raises InvalidInput."""
        path = self.folder / (MERGED_CHECKSUM if merged else CHECKSUM)
        try:
            text = path.read_text("ascii", "replace")
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise from_os(problem, f"read {str(path)!r}") from problem
        if len(text) != 2 * HASH_SIZE or not _HEX.issuperset(text):
            raise InvalidInput(f"{str(path)!r} does not hold {2 * HASH_SIZE} hexadecimal digits")
        return bytes.fromhex(text)


class BlockOptions(Struct, frozen=True):
    """Options of a new block image."""

    integrity: bool = False
    """Seal the image, and keep its root hash in a file beside the block, so that mounts verify reads."""
    footer: bool = False
    """End the block with the footer of a fixed virtual disk, so that virtual machines can attach it."""


def system_calls() -> Cimfs:
    """The calls of Windows. Raises Unsupported on any other host."""
    system = this_system()
    if system is not None:
        return system.images
    raise Unsupported(
        "only Windows can write and read block images (block CIMs): their format is not published",
        hint='use the kind "cim", whose format is known, or "windows"',
    )


_NAMESPACE: Final = uuid.UUID("6827367b-c388-4e9b-961c-6d2c936c0000")
_FLAGS: Final = {BlockKind.FILE: MountFlag.SINGLE_FILE, BlockKind.DEVICE: MountFlag.BLOCK_DEVICE}


def volume_of(container: str) -> uuid.UUID:
    """The GUID of the volume of a container, equal to hcsshim's."""
    return uuid.uuid5(_NAMESPACE, container)


def volume_path(volume: uuid.UUID) -> str:
    """The root of a volume; the files of a container are in its directory ``Files``."""
    return f"\\\\?\\Volume{{{volume}}}\\"


@contextmanager
def mounted(calls: Cimfs, layer: CimLayer, container: str) -> Iterator[str]:
    """Mount a forked image for the block; the value is the root of its volume. Raises Unsupported, NotFound."""
    calls.check_layers()
    volume = volume_of(container)
    calls.mount(host_path(layer.directory), layer.path.name, MountFlag(0), volume)
    try:
        yield volume_path(volume)
    finally:
        calls.dismount(volume)


@contextmanager
def mounted_blocks(
    calls: Cimfs, layers: LayerStack[BlockCimLayer], container: str, *, merged: BlockCimLayer | None = None
) -> Iterator[str]:
    """Mount block images for the block; the value is the root of their volume. Several images need a ``merged`` one.

    Reads of sealed images are verified. Raises InvalidInput, Unsupported, NotFound.
    """
    images = layers.nearest_first()
    if (len(images) > 1) is not (merged is not None):
        raise InvalidInput(f"{len(images)} block images: several need a merged image, a single one must have none")
    top = merged or images[0]
    root_hash = top.root_hash(merged=merged is not None)
    calls.check_mounting_blocks(verified=root_hash is not None)
    volume, flags = volume_of(container), _FLAGS[top.kind]
    if merged is not None:
        all_images = [(host_path(image.block), image.name) for image in (merged, *images)]
        calls.merge_mount(all_images, flags, volume, root_hash=root_hash)
    elif root_hash is not None:
        calls.mount_verified(host_path(top.block), top.name, flags, volume, root_hash)
    else:
        calls.mount(host_path(top.block), top.name, flags, volume)
    try:
        yield volume_path(volume)
    finally:
        calls.dismount(volume)


_CREATE: Final = {BlockKind.FILE: Create.SINGLE_FILE, BlockKind.DEVICE: Create.BLOCK_DEVICE}
_MERGE: Final = {BlockKind.FILE: MergeFlag.SINGLE_FILE, BlockKind.DEVICE: MergeFlag.BLOCK_DEVICE}


class BlockWriter(SystemWriter):
    """Writes the new image of ``layer`` (`CimWriter`). Equal layers give equal bytes; a failure leaves no file."""

    def __init__(self, calls: Cimfs, layer: BlockCimLayer, options: BlockOptions, *, checksum: str = CHECKSUM) -> None:
        """Start the image. Raises AlreadyExists, Unsupported (this Windows cannot write block images)."""
        calls.check_writing_blocks(verified=options.integrity)
        self._layer = layer
        self._options = options
        self._checksum = layer.folder / checksum
        self._block = host_path(layer.block)
        self._kept: list[Path] = []
        """Files that are removed on a failure."""
        if layer.kind is BlockKind.FILE:
            for path in (layer.block, self._checksum):
                if os.path.lexists(path):
                    raise AlreadyExists(f"{str(path)!r} exists")
            self._kept.append(layer.block)
        flags = _CREATE[layer.kind] | Create.CONSISTENT
        if options.integrity:
            flags |= Create.VERIFIED
        try:
            image = calls.create_in_block(self._block, flags, None, layer.name)
        except BaseException:
            self._remove()
            raise
        super().__init__(calls, image)

    def commit(self) -> None:
        """Seal the image, append the footer, and write the root hash, as the options say."""
        super().commit()
        sealed = self._calls.seal(self._block) if self._options.integrity else None
        try:
            if self._options.footer:
                _append_footer(self._layer.block)
            if sealed is not None:
                self._kept.append(self._checksum)
                with self._checksum.open("x", encoding="ascii", newline="") as file:
                    file.write(sealed.root_hash.hex())
        except OSError as problem:
            raise from_os(problem, f"finish {self._block!r}") from problem

    def abort(self) -> None:
        super().abort()
        self._remove()

    def _remove(self) -> None:
        for path in self._kept:
            path.unlink(missing_ok=True)
        self._kept.clear()


def merge(sources: LayerStack[BlockCimLayer], target: BlockCimLayer, options: BlockOptions, *, calls: Cimfs) -> None:
    """Write to ``target`` how the images of ``sources`` merge; the images are still needed to mount it.

    A single layer is mounted without. Raises InvalidInput (fewer than two, or different kinds), AlreadyExists,
    Unsupported; a failure leaves no file.
    """
    images = sources.nearest_first()
    if len(images) < 2:
        raise InvalidInput(f"{len(images)} block images: a merge needs at least two")
    for image in images:
        if image.kind is not target.kind:
            raise InvalidInput(
                f"{str(image.block)!r} is a {image.kind.value}, but the merged image a {target.kind.value}"
            )
    flags = _MERGE[target.kind]
    if options.integrity:
        flags |= MergeFlag.VERIFIED
    writer = BlockWriter(calls, target, options, checksum=MERGED_CHECKSUM)
    try:
        for image in images:
            calls.add_to_merged(writer.image, f"{host_path(image.block)}\\{image.name}", flags)
        writer.commit()
    except BaseException:
        writer.abort()
        raise


def _append_footer(block: Path) -> None:
    """Append the footer of a fixed disk that has the size of the file."""
    with block.open("ab") as file:
        size = os.fstat(file.fileno()).st_size
        file.write(VhdFooter(size, os.urandom(16)).encode())


_UTILITY: Final = "UtilityVM"
_FLATTEN: Final = "flatten the image, or use forked images (kind cim)"


class BlockCimSink(CimImport):
    """Applies a layer to the new image ``layer``, which is merged with those of ``parents`` when it is mounted.

    The image holds only the layer itself, since only Windows can read the parents. A whiteout becomes a tombstone; a
    hard link becomes, at the end, a link in the image or one across images. An opaque directory, and a directory that
    replaces a removed one, cannot be expressed, and are refused.

    Only the calls of Windows write block images; other hosts raise Unsupported.
    """

    def __init__(
        self,
        layer: BlockCimLayer,
        *,
        parents: LayerStack[BlockCimLayer] | None = None,
        options: BlockOptions | None = None,
        windows: bool = True,
        losses: Losses | None = None,
        calls: Cimfs | None = None,
        dirty: bool = False,
    ) -> None:
        """Start the image. Raises Unsupported, InvalidInput (parents of another kind), AlreadyExists."""
        calls = calls if calls is not None else system_calls()
        if layer.kind is not BlockKind.FILE:
            raise Unsupported("layers are imported into block images in files only, not on devices")
        below = parents.nearest_first() if parents is not None else ()
        for parent in below:
            if parent.kind is not layer.kind:
                raise InvalidInput(
                    f"the parent {str(parent.block)!r} is a {parent.kind.value}, but the layer a {layer.kind.value}"
                )
        self._layered = bool(below)
        self._kinds: dict[str, Kind] = {}
        """The kind of each file of the layer, by path in upper case."""
        self._hidden: set[str] = set()
        """The tombstones, in upper case."""
        self._warned = False
        self._implied = Implied()
        super().__init__(
            BlockWriter(calls, layer, options or BlockOptions()),
            HostFiles(layer.folder, own=False),
            below[0].folder if below else None,
            windows=windows,
            losses=losses,
            dirty=dirty,
        )

    @property
    def view(self) -> None:
        """None: only Windows can read the parents."""

    @property
    def layered(self) -> bool:
        return self._layered

    def put(self, entry: Entry, content: Content | None) -> None:
        """Raises MissingFacet, InvalidInput, Unsupported (a directory that replaces a removed one), SizeMismatch."""
        path = entry.path
        if entry.windows is None:
            if entry != implied_directory(path):
                raise MissingFacet(path, "Windows")
            self._imply(path)
            return
        if not path:
            self._losses.record(Loss(ROOT, "metadata of the root", "a block image cannot hold it"))
            return
        metadata = self.metadata(entry, entry.windows)
        self._enter(path, entry.kind)
        self.drop_queued(path)
        if self.is_host_file(entry):
            self.put_host_file(entry, content, metadata)
        else:
            self.put_file(entry, content, metadata)

    def link(self, path: LayerPath, target: LayerPath) -> None:
        """The end decides whether the target is in this layer. Raises InvalidInput."""
        self.check_link(path)
        if path.upper() in self._kinds:
            raise InvalidInput(f"hard link {path!r}: the layer already has a file there")
        self._enter(path, Kind.FILE)
        self.queue_link(path, target)

    def make_link(self, link: QueuedLink) -> None:
        """A link in the image if it has the target, otherwise one across images."""
        kind = self._kinds.get(link.target.upper())
        if kind is Kind.DIRECTORY:
            raise InvalidInput(f"hard link {link.path!r}: its target {link.target!r} is a directory")
        if kind is not None:
            self._writer.link(link.path, link.target)
        elif not self._layered:
            raise InvalidInput(f"hard link {link.path!r}: its target {link.target!r} does not exist")
        else:
            self._writer.merge_link(link.path, link.target)

    def whiteout(self, path: LayerPath) -> None:
        """A file of the layer itself already hides the one below."""
        key = path.upper()
        if self._kinds.get(key) is Kind.DIRECTORY:
            raise _no_opaque(path)
        if key not in self._kinds and key not in self._hidden:
            self._hidden.add(key)
            self._writer.tombstone(path)

    def opaque(self, path: LayerPath, record: PutRecord) -> bool | None:  # noqa: ARG002
        raise _no_opaque(path)

    def _enter(self, path: LayerPath, kind: Kind) -> None:
        """Record a file, after its parent directory."""
        key = path.upper()
        known = self._kinds.get(key)
        if known is not None and (known is Kind.DIRECTORY or kind is Kind.DIRECTORY) and known is not kind:
            raise InvalidInput(f"the layer has {path!r} both as a directory and as another file")
        if known is None:
            if kind is Kind.DIRECTORY and key in self._hidden:
                raise _no_opaque(path)
            parent = split(path)[0]
            if parent and self._kinds.get(parent.upper()) is not Kind.DIRECTORY:
                self._imply(parent)
            self._kinds[key] = kind
        if self._layered and not self._warned and path.partition("/")[0] == _UTILITY:
            self._warned = True
            why = "a block image does not merge it"
            self._losses.record(Loss(LayerPath(_UTILITY), "utility VM of the layers below", why))

    def _imply(self, path: LayerPath) -> None:
        """Create implied parent directories, which the image must have."""
        missing = []
        while path and self._kinds.get(path.upper()) is not Kind.DIRECTORY:
            missing.append(path)
            if self._layered:
                why = "the layer has no entry for the directory"
                self._losses.record(Loss(path, "metadata of the directory below", why))
            path = split(path)[0]
        for number, path in enumerate(reversed(missing)):
            if number:
                self._implied.add(path)
            self._enter(path, Kind.DIRECTORY)
            self._writer.put(path, PLAIN_DIRECTORY, 0, None)

    def _finish_base(self) -> None:
        super()._finish_base()
        for path in self._queue:
            self._kinds.setdefault(path, Kind.FILE)


def _no_opaque(path: str) -> Unsupported:
    return Unsupported(
        f"{path!r}: a block image cannot hide the files of parents in a directory that it has itself",
        hint=_FLATTEN,
    )
