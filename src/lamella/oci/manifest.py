# SPDX-License-Identifier: Apache-2.0
"""OCI image manifests and Docker version 2 schema 2 manifests (image-spec, manifest.md)."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from lamella.errors import Exhausted, InvalidInput, Unsupported
from lamella.oci.descriptor import Descriptor
from lamella.oci.documents import Document, convert, load
from lamella.oci.mediatypes import MANIFESTS, OCI_MANIFEST

MAX_LAYERS: Final = 1024
"""Maximum number of layers; Linux overlays stack at most 500, and builders stop at 127."""

SchemaVersion = Annotated[int, msgspec.Meta(ge=2, le=2)]


class Manifest(Document, frozen=True, kw_only=True):
    """One image for one platform: config and layers, base first."""

    schema_version: SchemaVersion = msgspec.field(name="schemaVersion")
    media_type: str = msgspec.field(name="mediaType", default="")
    artifact_type: str = msgspec.field(name="artifactType", default="")
    config: Descriptor
    layers: list[Descriptor]
    subject: Descriptor | None = None
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


def new_manifest(config: Descriptor, layers: list[Descriptor], annotations: dict[str, str] | None = None) -> Manifest:
    """Make an OCI manifest; layers are base first."""
    return Manifest(
        schema_version=2, media_type=OCI_MANIFEST, config=config, layers=layers, annotations=annotations or {}
    )


def decode_manifest(raw: bytes, media_type: str | None = None, what: str = "manifest") -> Manifest:
    """Decode a manifest; ``media_type`` is that of its descriptor.

    Raises InvalidInput, also if the document could be read as an index, or states a media type that differs from its
    descriptor; Exhausted for too many layers.
    """
    document = load(raw, what)
    check_kind(document, media_type, MANIFESTS, ("manifests", "fslayers"), "an index or an old manifest", what)
    manifest = convert(Manifest, document, what)
    if len(manifest.layers) > MAX_LAYERS:
        raise Exhausted(f"{what}: {len(manifest.layers)} layers exceed the limit of {MAX_LAYERS} for an image")
    return manifest


def check_kind(
    document: object,
    declared: str | None,
    allowed: frozenset[str],
    foreign: tuple[str, ...],
    confusion: str,
    what: str,
) -> None:
    """Refuse a document that two readers could decode as different kinds (CVE-2021-41190).

    ``declared`` is the media type of the descriptor; ``foreign`` holds case-folded field names of other kinds.
    Raises InvalidInput; Unsupported if ``declared`` is another kind of document.
    """
    if not isinstance(document, dict):
        return
    if declared is not None and declared not in allowed:
        raise Unsupported(f"{what}: media type {declared[:200]!r} is not one of {', '.join(sorted(allowed))}")
    own = document.get("mediaType")
    if own is not None and own not in ((declared,) if declared else tuple(allowed)):
        expected = declared or " or ".join(sorted(allowed))
        raise InvalidInput(f"{what}: mediaType: expected {expected}, got {str(own)[:200]!r}")
    for key in document:
        if key.casefold() in foreign:
            raise InvalidInput(f"{what}: {key}: a field of {confusion}, so the kind of the document is ambiguous")
