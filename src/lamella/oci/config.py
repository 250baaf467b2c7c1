# SPDX-License-Identifier: Apache-2.0
"""OCI and Docker image configs (image-spec, config.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from lamella.digests import Digest
from lamella.errors import InvalidInput
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import Document, decode
from lamella.oci.manifest import Manifest
from lamella.oci.platform import Platform


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """The chain id of each layer, base first; that of the base is its diff id."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain


class ContainerConfig(Document, frozen=True, kw_only=True):
    """How a container starts: the specification's fields with lower-case names."""

    user: str = msgspec.field(name="User", default="")
    exposed_ports: dict[str, dict[str, Any] | None] = msgspec.field(name="ExposedPorts", default_factory=dict)
    env: list[str] = msgspec.field(name="Env", default_factory=list)
    entrypoint: list[str] = msgspec.field(name="Entrypoint", default_factory=list)
    cmd: list[str] = msgspec.field(name="Cmd", default_factory=list)
    volumes: dict[str, dict[str, Any] | None] = msgspec.field(name="Volumes", default_factory=dict)
    working_dir: str = msgspec.field(name="WorkingDir", default="")
    labels: dict[str, str] = msgspec.field(name="Labels", default_factory=dict)
    stop_signal: str = msgspec.field(name="StopSignal", default="")
    args_escaped: bool = msgspec.field(name="ArgsEscaped", default=False)


class RootFs(Document, frozen=True, kw_only=True):
    """The diff ids of the layers, base first."""

    type: Literal["layers"] = "layers"
    diff_ids: list[Digest]


class History(Document, frozen=True, kw_only=True):
    """One build step of the image; a step with ``empty_layer`` made no layer."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class ImageConfig(Document, frozen=True, kw_only=True):
    """The config of an image. Times are RFC 3339 strings, kept as written."""

    created: str = ""
    author: str = ""
    architecture: str
    os: str
    os_version: str = msgspec.field(name="os.version", default="")
    os_features: list[str] = msgspec.field(name="os.features", default_factory=list)
    variant: str = ""
    config: ContainerConfig = msgspec.field(default_factory=ContainerConfig)
    rootfs: RootFs
    history: list[History] = msgspec.field(default_factory=list)

    @property
    def platform(self) -> Platform:
        """The platform of the image."""
        return Platform(
            architecture=self.architecture,
            os=self.os,
            os_version=self.os_version,
            os_features=self.os_features,
            variant=self.variant,
        )


def decode_config(raw: bytes, what: str = "image config") -> ImageConfig:
    """Decode an image config. Raises InvalidInput, Unsupported, Exhausted."""
    return decode(ImageConfig, raw, what)


def pair_layers(manifest: Manifest, config: ImageConfig, what: str = "image") -> list[tuple[Descriptor, Digest]]:
    """Pair the layer descriptors with their diff ids, base first. Raises InvalidInput if the counts differ."""
    layers, diff_ids = manifest.layers, config.rootfs.diff_ids
    if len(layers) != len(diff_ids):
        raise InvalidInput(
            f"{what}: the manifest has {len(layers)} layers, but the config has {len(diff_ids)} diff ids"
        )
    return list(zip(layers, diff_ids, strict=True))
