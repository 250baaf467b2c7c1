# SPDX-License-Identifier: Apache-2.0
"""Media types of images: the OCI image specification's and Docker's (image manifest version 2, schema 2)."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from lamella.errors import Unsupported

Compression: TypeAlias = Literal["none", "gzip", "zstd"]

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

FOREIGN_LAYERS: Final = frozenset(
    {
        _OCI_FOREIGN,
        _OCI_FOREIGN + "+gzip",
        _OCI_FOREIGN + "+zstd",
        _DOCKER_FOREIGN,
        _DOCKER_FOREIGN + ".gzip",
        _DOCKER_FOREIGN + ".zstd",
    }
)
"""Layers whose bytes need not be where the image is, but at the ``urls`` of their descriptor."""

_LAYERS: Final[dict[str, Compression]] = {
    OCI_LAYER: "none",
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    DOCKER_LAYER: "none",
    DOCKER_LAYER_GZIP: "gzip",
    DOCKER_LAYER_ZSTD: "zstd",
    **{
        kind: "gzip" if kind.endswith("gzip") else "zstd" if kind.endswith("zstd") else "none"
        for kind in FOREIGN_LAYERS
    },
}

_OCI_LAYER_OF: Final[dict[Compression, str]] = {"none": OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}
_DOCKER_SUFFIX: Final[dict[Compression, str]] = {"none": "", "gzip": ".gzip", "zstd": ".zstd"}


def is_layer(media_type: str) -> bool:
    """Whether blobs of this type are tar layers."""
    return media_type in _LAYERS


def layer_compression(media_type: str) -> Compression:
    """How a layer of this type is compressed. Raises Unsupported for what is not a tar layer."""
    found = _LAYERS.get(media_type)
    if found is None:
        if media_type.endswith("+encrypted"):
            raise Unsupported(f"encrypted layer of type {media_type!r}", hint="decrypt the image first")
        raise Unsupported(f"{media_type!r} is not the media type of a tar layer")
    return found


def oci_layer(compression: Compression) -> str:
    """The OCI media type of a tar layer compressed like this."""
    return _OCI_LAYER_OF[compression]


def retyped_layer(media_type: str, *, docker: bool) -> str:
    """The media type that the same layer has in an image of Docker's format, or of OCI's. Raises Unsupported."""
    compression = layer_compression(media_type)
    if media_type.startswith("application/vnd.docker.") == docker:
        return media_type
    if docker:
        return (_DOCKER_FOREIGN if media_type in FOREIGN_LAYERS else DOCKER_LAYER) + _DOCKER_SUFFIX[compression]
    if media_type in FOREIGN_LAYERS:
        return _OCI_FOREIGN + ("" if compression == "none" else f"+{compression}")
    return oci_layer(compression)
