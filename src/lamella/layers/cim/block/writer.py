# SPDX-License-Identifier: Apache-2.0
"""Block images begun, finished, sealed and merged by Windows' calls; and what lies at their end, or beside them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from lamella.errors import AlreadyExists, InvalidInput, from_os
from lamella.formats.vhd import VhdFooter
from lamella.host.windows.cimfs import Cimfs, Create, MergeFlag
from lamella.layers.cim.block.layer import CHECKSUM, MERGED_CHECKSUM, BlockCimLayer, BlockKind, BlockOptions
from lamella.layers.cim.native import SystemWriter, host_path
from lamella.layers.stack import LayerStack

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
        """See `CimWriter.abort`."""
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
