# SPDX-License-Identifier: Apache-2.0
"""Media types of OCI images and Docker images (image manifest version 2, schema 2)."""

from __future__ import annotations

from typing import Final

from lamella.errors import Unsupported
from lamella.streams.compressions import COMPRESSIONS, NONE

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"

DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"

MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})

_OCI_FOREIGN: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER_FOREIGN: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"

_PLAIN_LAYERS: Final = {OCI_LAYER: "+", _OCI_FOREIGN: "+", DOCKER_LAYER: ".", _DOCKER_FOREIGN: "."}
"""Media types of uncompressed layers -> separator before the name of the compression."""


def _compressed(plain: str, compression: str) -> str:
    return plain if compression == NONE else f"{plain}{_PLAIN_LAYERS[plain]}{compression}"


_LAYERS: Final = {_compressed(plain, name): name for plain in _PLAIN_LAYERS for name in COMPRESSIONS.built_in}

FOREIGN_LAYERS: Final = frozenset(name for name in _LAYERS if name.startswith((_OCI_FOREIGN, _DOCKER_FOREIGN)))
"""Foreign layers: their blobs may be missing from the image and be available at the ``urls`` of their descriptors."""


def is_layer(media_type: str) -> bool:
    """Whether the media type is that of a tar layer."""
    return media_type in _LAYERS or _added_compression(media_type) is not None


def layer_compression(media_type: str) -> str:
    """The compression of a layer media type. Raises Unsupported for other types."""
    found = _LAYERS.get(media_type)
    if found is None:
        if media_type.endswith("+encrypted"):
            raise Unsupported(f"encrypted layer of type {media_type!r}", hint="decrypt the image first")
        found = _added_compression(media_type)
    if found is None:
        raise Unsupported(f"{media_type!r} is not the media type of a tar layer")
    return found


def _added_compression(media_type: str) -> str | None:
    """The compression of an installed package that the type names, if any."""
    for plain, joint in _PLAIN_LAYERS.items():
        name = media_type.removeprefix(plain + joint)
        if name != media_type and name in COMPRESSIONS:
            return name
    return None


def oci_layer(compression: str) -> str:
    """The OCI media type of a tar layer with this compression."""
    return _compressed(OCI_LAYER, compression)


def retyped_layer(media_type: str, *, docker: bool) -> str:
    """The media type of the same layer in the Docker or the OCI format. Raises Unsupported."""
    compression = layer_compression(media_type)
    if media_type.startswith("application/vnd.docker.") == docker:
        return media_type
    if media_type in FOREIGN_LAYERS:
        return _compressed(_DOCKER_FOREIGN if docker else _OCI_FOREIGN, compression)
    return _compressed(DOCKER_LAYER if docker else OCI_LAYER, compression)
