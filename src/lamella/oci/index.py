# SPDX-License-Identifier: Apache-2.0
"""OCI image indexes and Docker manifest lists (image-spec, image-index.md)."""

from __future__ import annotations

from typing import Final

import msgspec

from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import Document, convert, load
from lamella.oci.manifest import SchemaVersion, check_kind
from lamella.oci.mediatypes import INDEXES, MANIFESTS, OCI_INDEX

ATTESTATION: Final = "vnd.docker.reference.type"
"""Annotation by which BuildKit marks attestation manifests."""


class Index(Document, frozen=True, kw_only=True):
    """A list of manifests, one for each platform, or of further indexes."""

    schema_version: SchemaVersion = msgspec.field(name="schemaVersion")
    media_type: str = msgspec.field(name="mediaType", default="")
    artifact_type: str = msgspec.field(name="artifactType", default="")
    manifests: list[Descriptor]
    subject: Descriptor | None = None
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


def new_index(manifests: list[Descriptor]) -> Index:
    """Make an OCI index."""
    return Index(schema_version=2, media_type=OCI_INDEX, manifests=manifests)


def decode_index(raw: bytes, media_type: str | None = None, what: str = "index") -> Index:
    """Decode an index; ``media_type`` is that of its descriptor.

    Raises InvalidInput, also if the document could be read as a manifest, or states a media type that differs from its
    descriptor.
    """
    document = load(raw, what)
    check_kind(document, media_type, INDEXES, ("config", "layers", "fslayers"), "a manifest", what)
    return convert(Index, document, what)


def is_image_entry(entry: Descriptor) -> bool:
    """Whether an index entry is an image or index, and not a signature, attestation or other artifact."""
    if entry.media_type in INDEXES:
        return True
    if entry.media_type not in MANIFESTS or entry.artifact_type or ATTESTATION in entry.annotations:
        return False
    platform = entry.platform
    return platform is None or (platform.os, platform.architecture) != ("unknown", "unknown")
