# SPDX-License-Identifier: Apache-2.0
"""Descriptors: media type, size and digest of a blob (image-spec, descriptor.md)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from lamella.digests import Digest
from lamella.oci.documents import Document
from lamella.oci.platform import Platform

Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""Size of the blob in bytes."""


class Descriptor(Document, frozen=True, kw_only=True):
    """Names a blob by digest and states its size and type. ``urls`` and ``data`` are kept but never trusted."""

    media_type: Annotated[str, msgspec.Meta(min_length=1)] = msgspec.field(name="mediaType")
    digest: Digest
    size: Size
    urls: list[str] = msgspec.field(default_factory=list)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    data: str = ""
    platform: Platform | None = None
    artifact_type: str = msgspec.field(name="artifactType", default="")

    def __str__(self) -> str:
        return str(self.digest)


def bare(descriptor: Descriptor) -> Descriptor:
    """``descriptor`` reduced to media type, digest and size, without platform, annotations and the like."""
    return Descriptor(media_type=descriptor.media_type, digest=descriptor.digest, size=descriptor.size)
