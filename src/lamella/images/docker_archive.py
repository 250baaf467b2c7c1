# SPDX-License-Identifier: Apache-2.0
"""Archives of ``docker save``, of any Docker since 1.10, read as OCI images.

The archive has a config and tars, but no manifest with digests; the reader makes one. It describes a plain tar by its
diff id, which is checked when the layer is read, and hashes only compressed layers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO
from typing import BinaryIO, Final

from lamella.digests import Digest
from lamella.errors import DigestMismatch, InvalidInput, LamellaError, NotFound, SizeMismatch
from lamella.images.archive import Archive
from lamella.images.contract import ImageReader, StoredImage
from lamella.images.layout import read_small
from lamella.oci.config import decode_config
from lamella.oci.descriptor import Descriptor
from lamella.oci.docker import SAVED_FILE, SavedImage, decode_saved
from lamella.oci.documents import MAX_DOCUMENT, encode
from lamella.oci.manifest import MAX_LAYERS, new_manifest
from lamella.oci.mediatypes import OCI_CONFIG, OCI_MANIFEST, oci_layer
from lamella.oci.reference import parse_reference
from lamella.paths import LayerPath, parse_path
from lamella.streams.compressions import MAGIC_SIZE, NONE, compression_of

_BY_DIGEST: Final = re.compile(r"blobs/sha256/([0-9a-f]{64})")


class DockerArchiveReader(ImageReader):
    """The images of a ``docker save`` archive, described as OCI manifests."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self.where = archive.where
        self.plain_files = archive.plain_files
        self._documents: dict[Digest, bytes] = {}
        self._members: dict[Digest, LayerPath] = {}
        self._compressed: dict[LayerPath, Descriptor] = {}
        try:
            raw = read_small(archive, SAVED_FILE, MAX_DOCUMENT)
        except NotFound as problem:
            hint = f"it looks like oci-archive:{self.where.partition(':')[2]}" if "index.json" in archive else None
            raise InvalidInput(f"{problem}, so this is not an archive of 'docker save'", hint=hint) from None
        saved = decode_saved(raw, f"{self.where}: {SAVED_FILE}")
        self._images = [self._describe(image, f"{self.where}: {SAVED_FILE}[{at}]") for at, image in enumerate(saved)]

    def images(self) -> Sequence[StoredImage]:
        return self._images

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        raw = self._documents.get(descriptor.digest)
        if raw is not None:
            file, size = BytesIO(raw), len(raw)
        else:
            path = self._members.get(descriptor.digest)
            if path is None:
                raise NotFound(f"{self.where}: {descriptor.digest} is not there")
            file, size = self._archive.open(path)  # type: ignore[assignment]
        if size != descriptor.size:
            file.close()
            raise SizeMismatch(f"{self.where}: {descriptor.digest}", expected=descriptor.size, actual=size)
        return file

    def close(self) -> None:
        super().close()
        self._archive.close()

    def _describe(self, image: SavedImage, what: str) -> StoredImage:
        raw = read_small(self._archive, self._parse_member(image.config, what), MAX_DOCUMENT)
        config = Descriptor(media_type=OCI_CONFIG, digest=Digest.of(raw), size=len(raw))
        named = _BY_DIGEST.fullmatch(image.config)
        if named and named[1] != config.digest.hex:
            raise DigestMismatch(f"{self.where}: {image.config}", expected=f"sha256:{named[1]}", actual=config.digest)
        self._documents[config.digest] = raw
        diff_ids = decode_config(raw, f"{self.where}: {image.config}").rootfs.diff_ids
        if len(image.layers) != len(diff_ids) or len(diff_ids) > MAX_LAYERS:
            raise InvalidInput(f"{what}: {len(image.layers)} layers, but the config has {len(diff_ids)} diff ids")
        layers = [
            self._layer(self._parse_member(name, what), diff_id)
            for name, diff_id in zip(image.layers, diff_ids, strict=True)
        ]
        manifest = encode(new_manifest(config, layers))
        descriptor = Descriptor(media_type=OCI_MANIFEST, digest=Digest.of(manifest), size=len(manifest))
        self._documents[descriptor.digest] = manifest
        return StoredImage(tuple(dict.fromkeys(_full_reference(tag) for tag in image.repo_tags)), descriptor)

    def _layer(self, path: LayerPath, diff_id: Digest) -> Descriptor:
        known = self._compressed.get(path)
        if known is not None:
            return known
        file, size = self._archive.open(path)
        with file:
            start = file.read(MAGIC_SIZE)
        compression = compression_of(start)
        digest = diff_id if compression == NONE else self._archive.sha256(path)
        layer = Descriptor(media_type=oci_layer(compression), digest=digest, size=size)
        if compression != NONE:
            self._compressed[path] = layer
        self._members.setdefault(digest, path)
        return layer

    def _parse_member(self, name: str, what: str) -> LayerPath:
        try:
            return parse_path(name)
        except InvalidInput as problem:
            raise InvalidInput(f"{what}: {problem}") from None


def open_docker_archive(path: str) -> DockerArchiveReader:
    """Open the archive at ``path``. Raises InvalidInput, NotFound, Unsupported, Integrity, Exhausted."""
    archive = Archive(path, f"docker-archive:{path}")
    try:
        return DockerArchiveReader(archive)
    except BaseException:
        archive.close()
        raise


def _full_reference(tag: str) -> str:
    """The reference in full; text that is no reference stays as it is."""
    try:
        return str(parse_reference(tag).with_default_tag())
    except LamellaError:
        return tag
