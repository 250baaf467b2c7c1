# SPDX-License-Identifier: Apache-2.0
"""Where a block image is, what lies beside it, and that Windows alone knows what is in it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Final

from msgspec import Struct

from lamella.changes.contracts import Mine
from lamella.changes.limits import Implied
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Content, Entry, Kind, implied_directory
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
    """What holds a block image. All images that are merged are held by the same."""

    FILE = "file"
    DEVICE = "device"


class BlockCimLayer(Struct, frozen=True):
    """The layer in the image ``name`` that the file or device ``block`` holds."""

    block: Path
    name: str
    kind: BlockKind = BlockKind.FILE

    @classmethod
    def parse(cls, place: Path) -> BlockCimLayer:
        """The image at a path like ``DIR/layer.vhd/layer.cim``: the file first, then the name. Raises InvalidInput."""
        if place.suffix.lower() != ".cim" or not place.stem or len(place.parts) < 2:
            raise InvalidInput(
                f"{str(place)!r} is not the path of a block image", hint="give a path like DIR/layer.vhd/layer.cim"
            )
        return cls(place.parent, place.name)

    @property
    def folder(self) -> Path:
        """Where the files are that the host needs outside of the image, and the root hash of a sealed one."""
        return self.block.parent

    def root_hash(self, *, merged: bool = False) -> bytes | None:
        """The root hash that was kept when the image was sealed; None where it was not. Raises InvalidInput."""
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
    """What a block image is to have besides its files."""

    integrity: bool = False
    """It is sealed, and its root hash kept in a file beside the block, so that mounting it can check what is read."""
    footer: bool = False
    """The block ends like a fixed virtual disk, so that virtual machines can attach it."""


def system_calls() -> Cimfs:
    """Windows' calls. Raises Unsupported on any other host, where block images can be neither written nor read."""
    system = this_system()
    if system is not None:
        return system.images
    raise Unsupported(
        "block images (block CIMs) can be written and read by Windows alone: their layout is not published",
        hint='keep the layer in a forked image (kind "cim", of which the layout is known), or in a folder ("windows")',
    )


_NAMESPACE: Final = uuid.UUID("6827367b-c388-4e9b-961c-6d2c936c0000")
_FLAGS: Final = {BlockKind.FILE: MountFlag.SINGLE_FILE, BlockKind.DEVICE: MountFlag.BLOCK_DEVICE}


def volume_of(container: str) -> uuid.UUID:
    """The GUID of the volume for a container, the one that hcsshim gives it."""
    return uuid.uuid5(_NAMESPACE, container)


def volume_path(volume: uuid.UUID) -> str:
    """The root of a volume; the files of a container are in its directory ``Files``."""
    return f"\\\\?\\Volume{{{volume}}}\\"


@contextmanager
def mounted(calls: Cimfs, layer: CimLayer, container: str) -> Iterator[str]:
    """The root of the volume that a forked image is, for as long as the block lasts. Raises Unsupported, NotFound."""
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
    """The root of the volume that block images come to, one as it is, several by how they were ``merged``.

    What was sealed is checked as it is read. Raises InvalidInput, Unsupported, NotFound.
    """
    images = layers.nearest_first()
    if (len(images) > 1) is not (merged is not None):
        raise InvalidInput(f"{len(images)} block images: several take a merged one, and one takes none")
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
    """The new image of ``layer`` (`CimWriter`): equal layers give equal bytes, and what fails leaves no file."""

    def __init__(self, calls: Cimfs, layer: BlockCimLayer, options: BlockOptions, *, checksum: str = CHECKSUM) -> None:
        """Begin the image. Raises AlreadyExists, Unsupported (this Windows writes no block images)."""
        calls.check_writing_blocks(verified=options.integrity)
        self._layer = layer
        self._options = options
        self._checksum = layer.folder / checksum
        self._block = host_path(layer.block)
        self._kept: list[Path] = []
        """What goes when this is given up."""
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
        """See `CimWriter.commit`: then it is sealed, gets its footer, and its root hash is kept."""
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
    """Write to ``target`` how the images of ``sources`` lie on each other; they are needed when it is mounted.

    A single layer is mounted as it is. Raises InvalidInput (fewer than two, or of different kinds), AlreadyExists,
    Unsupported; what fails leaves no file.
    """
    images = sources.nearest_first()
    if len(images) < 2:
        raise InvalidInput(f"{len(images)} block images; two or more can be merged")
    for image in images:
        if image.kind is not target.kind:
            raise InvalidInput(
                f"{str(image.block)!r} is a {image.kind.value}, and what it is merged into a {target.kind.value}"
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
    """Let a file end like a fixed disk whose content is all that was in it."""
    with block.open("ab") as file:
        size = os.fstat(file.fileno()).st_size
        file.write(VhdFooter(size, os.urandom(16)).encode())


_UTILITY: Final = "UtilityVM"
_FLATTEN: Final = "flatten the image, or keep it in forked images"


class BlockCimSink(CimImport):
    """Applies a layer to the new image ``layer``, that will be merged with those of ``parents`` when it is mounted.

    The image holds what the layer states and nothing of its parents, which nobody but Windows can look into. So a
    whiteout becomes a tombstone, and a hard link, once all files are there, a link in the image or one across images.
    Two things have no form there, and are refused: an opaque directory, and a directory put where one is removed.

    Everything is written by Windows' own calls; elsewhere making one raises Unsupported.
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
    ) -> None:
        """Begin the image. Raises Unsupported, InvalidInput (parents of another kind), AlreadyExists."""
        calls = calls if calls is not None else system_calls()
        if layer.kind is not BlockKind.FILE:
            raise Unsupported("layers are imported into block images in files, not on devices")
        below = parents.nearest_first() if parents is not None else ()
        for parent in below:
            if parent.kind is not layer.kind:
                raise InvalidInput(
                    f"the parent {str(parent.block)!r} is a {parent.kind.value}, and the layer a {layer.kind.value}"
                )
        self._layered = bool(below)
        self._kinds: dict[str, Kind] = {}
        """What the layer has put or linked, by path in upper case."""
        self._hidden: set[str] = set()
        """What it has removed from its parents."""
        self._warned = False
        self._implied = Implied()
        super().__init__(
            BlockWriter(calls, layer, options or BlockOptions()),
            HostFiles(layer.folder, own=False),
            below[0].folder if below else None,
            windows=windows,
            losses=losses,
        )

    @property
    def view(self) -> None:
        """See `Sink.view`: nobody can look into the parents."""

    @property
    def layered(self) -> bool:
        return self._layered

    def put(self, entry: Entry, content: Content | None) -> None:
        """See `Sink.put`. Raises MissingFacet, InvalidInput, Unsupported (a directory in place of a removed one)."""
        path = entry.path
        if entry.windows is None:
            if entry != implied_directory(path):
                raise MissingFacet(path, "Windows")
            self._imply(path)
            return
        if not path:
            self._losses.record(Loss(ROOT, "metadata of the root", "a block image has no place for it"))
            return
        metadata = self.metadata(entry, entry.windows)
        self._enter(path, entry.kind)
        self.forget(path)
        if self.is_of_host(entry):
            self.put_of_host(entry, content, metadata)
        else:
            self.put_file(entry, content, metadata)

    def link(self, path: LayerPath, target: LayerPath) -> None:
        """See `Sink.link`. Whether the target is of this layer is known at the end."""
        self.check_link(path)
        if path.upper() in self._kinds:
            raise InvalidInput(f"hard link {path!r}: the layer has put something there")
        self._enter(path, Kind.FILE)
        self.queue_link(path, target)

    def make_link(self, link: QueuedLink) -> None:
        """See `CimImport.make_link`: within the image if the target is in it by then, else across images."""
        kind = self._kinds.get(link.target.upper())
        if kind is Kind.DIRECTORY:
            raise InvalidInput(f"hard link {link.path!r}: its target {link.target!r} is a directory")
        if kind is not None:
            self._writer.link(link.path, link.target)
        elif not self._layered:
            raise InvalidInput(f"hard link {link.path!r}: its target {link.target!r} is not there")
        else:
            self._writer.merge_link(link.path, link.target)

    def whiteout(self, path: LayerPath) -> None:
        """See `Sink.whiteout`. A file that the layer puts hides what is below by itself."""
        key = path.upper()
        if self._kinds.get(key) is Kind.DIRECTORY:
            raise _no_opaque(path)
        if key not in self._kinds and key not in self._hidden:
            self._hidden.add(key)
            self._writer.tombstone(path)

    def opaque(self, path: LayerPath, mine: Mine) -> bool | None:  # noqa: ARG002  # nothing can be hidden so
        raise _no_opaque(path)

    def _enter(self, path: LayerPath, kind: Kind) -> None:
        """Note a file, once what it lies in is there."""
        key = path.upper()
        known = self._kinds.get(key)
        if known is not None and (known is Kind.DIRECTORY or kind is Kind.DIRECTORY) and known is not kind:
            raise InvalidInput(f"{path!r} is both a directory and none")
        if known is None:
            if kind is Kind.DIRECTORY and key in self._hidden:
                raise _no_opaque(path)
            parent = split(path)[0]
            if parent and self._kinds.get(parent.upper()) is not Kind.DIRECTORY:
                self._imply(parent)
            self._kinds[key] = kind
        if self._layered and not self._warned and path.partition("/")[0] == _UTILITY:
            self._warned = True
            why = "a block image's is not merged with that of its parents"
            self._losses.record(Loss(LayerPath(_UTILITY), "utility VM of the layers below", why))

    def _imply(self, path: LayerPath) -> None:
        """Directories that the layer does not state, since all that a file lies in must be in the image."""
        missing = []
        while path and self._kinds.get(path.upper()) is not Kind.DIRECTORY:
            missing.append(path)
            if self._layered:
                why = "the layer does not state the directory, and the image needs it"
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
        f"{path!r} is a directory of which nothing that lies below is to be seen; a block image cannot say that",
        hint=_FLATTEN,
    )
