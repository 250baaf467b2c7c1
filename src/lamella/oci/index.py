# SPDX-License-Identifier: Apache-2.0
"""Image indexes and Docker's manifest lists (image-spec, image-index.md)."""

from __future__ import annotations

from typing import Final

import msgspec

from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import Document, convert, load
from lamella.oci.manifest import SchemaVersion, check_kind
from lamella.oci.mediatypes import INDEXES, MANIFESTS, OCI_INDEX

ATTESTATION: Final = "vnd.docker.reference.type"
"""Annotation by which BuildKit marks manifests that are about an image rather than one."""


class Index(Document, frozen=True, kw_only=True):
    """Manifests, each for a platform, or further indexes."""

    schema_version: SchemaVersion = msgspec.field(name="schemaVersion")
    media_type: str = msgspec.field(name="mediaType", default="")
    artifact_type: str = msgspec.field(name="artifactType", default="")
    manifests: list[Descriptor]
    subject: Descriptor | None = None
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


def new_index(manifests: list[Descriptor]) -> Index:
    """An OCI index of these manifests."""
    return Index(schema_version=2, media_type=OCI_INDEX, manifests=manifests)


def decode_index(raw: bytes, media_type: str | None = None, what: str = "index") -> Index:
    """The index in ``raw``, which its descriptor calls ``media_type``.

    Raises InvalidInput also where the document could be taken for a manifest, or says another media type than its
    descriptor.
    """
    document = load(raw, what)
    check_kind(document, media_type, INDEXES, ("config", "layers", "fslayers"), "a manifest", what)
    return convert(Index, document, what)


def is_image_entry(entry: Descriptor) -> bool:
    """Whether an entry of an index stands for images, rather than for a signature, an attestation or the like."""
    if entry.media_type in INDEXES:
        return True
    if entry.media_type not in MANIFESTS or entry.artifact_type or ATTESTATION in entry.annotations:
        return False
    platform = entry.platform
    return platform is None or (platform.os, platform.architecture) != ("unknown", "unknown")
