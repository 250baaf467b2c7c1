# SPDX-License-Identifier: Apache-2.0
"""An image with one more layer on top."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from lamella.images.forms import open_writer
from lamella.images.image import Image, ImageLayer, open_image
from lamella.images.naming import ImageName, parse_image_name
from lamella.layers.tarball import tar_changes
from lamella.oci.config import History, ImageConfig, RootFs
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import encode
from lamella.oci.manifest import new_manifest
from lamella.oci.mediatypes import DOCKER_LAYER, FOREIGN_LAYERS, OCI_CONFIG, OCI_MANIFEST, oci_layer
from lamella.oci.platform import Platform
from lamella.operations.copy import relayed
from lamella.operations.pack import creation_time
from lamella.streams.reading import BlobFacts, BlobReader, open_blob

if TYPE_CHECKING:
    import os

    from lamella.oci.mediatypes import Compression
    from lamella.progress import Cancellation, Progress


@dataclass(slots=True, frozen=True)
class Appended:
    """What came of an image with a further layer."""

    descriptor: Descriptor
    """Of the manifest, as the place lists it."""
    layer: Descriptor
    facts: BlobFacts
    """Of the new layer."""


def append(
    source: str | ImageName,
    blob: str | os.PathLike[str],
    target: str | ImageName,
    *,
    platform: str | Platform | None = None,
    replace: bool = False,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Appended:
    """Write the image ``source`` with the layer ``blob`` on top as ``target``, which may be the same image.

    The blob is read whole first, to find its digests and to see that it is a layer; it is stored as it is. The image is
    dated by SOURCE_DATE_EPOCH, or 1970. See `open_writer` for ``replace``. Raises FormatError, Integrity, NotFound,
    AlreadyExists, Exhausted, Cancelled and the like.
    """
    target = parse_image_name(target) if isinstance(target, str) else target
    path = Path(blob)
    with open_image(source, platform) as image:
        with BlobReader(path, cancel=cancel) as reader:
            for _ in tar_changes(reader.next_buffer, end=reader.finish):
                pass
            facts = reader.finish()
        layer = Descriptor(
            media_type=oci_layer(cast("Compression", facts.compression)), digest=facts.digest, size=facts.size
        )
        with open_writer(target, replace=replace) as writer:
            below = [_of_oci(one) for one in image.layers]
            missing = [one for one in image.layers if not writer.has_blob(one.descriptor)]
            if progress is not None:
                progress.start("copy", sum(one.descriptor.size for one in missing) + layer.size)
            try:
                for one in missing:
                    with one.open() as file:
                        writer.put_blob(one.descriptor, relayed(file, progress, cancel))
                if not writer.has_blob(layer):
                    with open_blob(path) as file:
                        writer.put_blob(layer, relayed(file, progress, cancel))
            finally:
                if progress is not None:
                    progress.finish()
            config = writer.put_document(OCI_CONFIG, encode(_extended(image, facts)))
            manifest = new_manifest(config, [*below, layer], dict(image.manifest.annotations))
            entry = writer.commit(target.tag, writer.put_document(OCI_MANIFEST, encode(manifest)))
            return Appended(entry, layer, facts)


def _of_oci(layer: ImageLayer) -> Descriptor:
    """The descriptor as an OCI manifest has it: Docker's media types are not for those."""
    media_type = layer.descriptor.media_type
    if not media_type.startswith(DOCKER_LAYER) or media_type in FOREIGN_LAYERS:
        return layer.descriptor
    return msgspec.structs.replace(layer.descriptor, media_type=oci_layer(layer.compression))


def _extended(image: Image, facts: BlobFacts) -> ImageConfig:
    config, created = image.config, creation_time()
    history = config.history
    # A history that does not account for the layers below would account for this one wrongly.
    if sum(not one.empty_layer for one in history) == len(image.layers):
        history = [*history, History(created=created, created_by="lamella append")]
    diff_ids = [*config.rootfs.diff_ids, facts.diff_id]
    return msgspec.structs.replace(config, created=created, rootfs=RootFs(diff_ids=diff_ids), history=history)
