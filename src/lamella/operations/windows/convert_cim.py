# SPDX-License-Identifier: Apache-2.0
"""Converts a directory of composite images, one for each layer, to an image whose layers are tars."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct
from msgspec.structs import replace as replace_fields

from lamella.changes.job import Job
from lamella.digests import Digest
from lamella.errors import NotFound, Unsupported, from_os
from lamella.images.contract import ImageReader, StoredImage
from lamella.images.resolve import PlatformImage, resolve_image
from lamella.images.transports import ImageName, Syntax, open_writer, parse_image_name
from lamella.layers.kinds import LAYER_KINDS
from lamella.layers.windows.names import AS_WINDOWS
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import decode
from lamella.oci.manifest import Manifest
from lamella.oci.mediatypes import OCI_MANIFEST
from lamella.operations.atomic_file import refuse_within
from lamella.operations.layers.diff import DiffOptions, open_changes
from lamella.operations.layers.write import LayerOptions
from lamella.operations.surgery.draft import Draft, WrittenImage, draft_of, write_draft
from lamella.operations.surgery.new_layers import NewLayer
from lamella.operations.unpack import CONFIG, MANIFEST


class Tarred(Struct, frozen=True):
    """The result of `cims_to_image`."""

    finished: WrittenImage
    kept: int
    """Layers with the diff id that they had before they became composite images."""


def cims_to_image(
    directory: Path,
    target: str | ImageName,
    *,
    compression: str | None = None,
    level: int | None = None,
    replace: bool = False,
    job: Job | None = None,
) -> Tarred:
    """Write the image ``target`` from a ``directory`` that `unpack` made with the kind ``"cim"``.

    ``compression`` defaults to that of the former layers. The changes come from the file tables of each image and its
    parent; a layer keeps its diff id if its tar was in the order of a walk, as Windows' tools write it. Raises
    NotFound, InvalidInput, AlreadyExists, FormatError, Exhausted, Unsupported (block images).
    """
    target = parse_image_name(target) if isinstance(target, str) else target
    if (directory / LAYER_KINDS["blockcim"].layer_place.format(0)).parent.exists():
        raise Unsupported(
            f"{os.fspath(directory)!r} holds block images, which only Windows can read",
            hint="use the image that they were made from",
        )
    with CimDirectory(directory) as reader:
        image = resolve_image(reader)
        if target.syntax is Syntax.PATH:
            refuse_within(directory, target.path, "the image")
        with open_writer(target, replace=replace) as writer:
            draft = _draft(image, directory, compression, level)
            finished = write_draft(draft, writer, tag=target.tag, job=job)
    kept = sum(made.facts.diff_id == old.diff_id for made, old in zip(finished.new_layers, image.layers, strict=True))
    return Tarred(finished, kept)


def _draft(image: PlatformImage, directory: Path, compression: str | None, level: int | None) -> Draft:
    """The image with each layer read from its composite image."""
    layers, place = [], LAYER_KINDS["cim"].layer_place
    for number, layer in enumerate(image.layers):
        parent = directory / place.format(number - 1) if number else None
        options = LayerOptions(compression or layer.compression, level, windows=True, rules=AS_WINDOWS)
        opened = partial(open_changes, parent, directory / place.format(number), DiffOptions(kind="cim"))
        layers.append(NewLayer(opened, options))
    return replace_fields(draft_of(image), layers=tuple(layers))


class CimDirectory(ImageReader):
    """Reads the manifest and config of an image whose layers are composite images in ``directory``."""

    def __init__(self, directory: Path) -> None:
        """Read the manifest. Raises NotFound, InvalidInput."""
        self.where = os.fspath(directory)
        self._paths: dict[Digest, Path] = {}
        raw = self._read(directory / MANIFEST)
        manifest = decode(Manifest, raw, f"the manifest in {self.where!r}")
        media_type = manifest.media_type or OCI_MANIFEST
        self._image = Descriptor(media_type=media_type, digest=Digest.of(raw), size=len(raw))
        self._paths = {self._image.digest: directory / MANIFEST, manifest.config.digest: directory / CONFIG}

    def images(self) -> Sequence[StoredImage]:
        return [StoredImage((), self._image)]

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """Only manifest and config exist as blobs."""
        path = self._paths.get(descriptor.digest)
        if path is None:
            raise NotFound(f"{self.where}: no blob {descriptor.digest}; the layers are composite images")
        try:
            return path.open("rb")
        except OSError as problem:
            raise from_os(problem, f"read {os.fspath(path)!r}") from problem

    def close(self) -> None: ...

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise NotFound(
                f"{os.fspath(path)!r} does not exist",
                hint="give a directory made by 'lamella convert --to cim' or 'lamella unpack --as cim'",
            ) from None
        except OSError as problem:
            raise from_os(problem, f"read {os.fspath(path)!r}") from problem
