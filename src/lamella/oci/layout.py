# SPDX-License-Identifier: Apache-2.0
"""File names of an image layout, and its ``oci-layout`` document (image-spec, image-layout.md)."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from lamella.digests import Digest
from lamella.errors import InvalidInput, Unsupported
from lamella.oci.documents import Document, decode

LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
BLOBS: Final = "blobs"

LAYOUT_VERSION: Final = "1.0.0"

REF_NAME: Final = "org.opencontainers.image.ref.name"
"""Annotation of an index.json entry: its tag."""

CONTAINERD_NAME: Final = "io.containerd.image.name"
"""Annotation of an index.json entry by containerd and Docker: its full reference."""

_TAG: Final = re.compile(r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*")


class OciLayout(Document, frozen=True, kw_only=True):
    """The document in ``oci-layout``."""

    image_layout_version: str = msgspec.field(name="imageLayoutVersion")


def decode_layout(raw: bytes, what: str = LAYOUT_FILE) -> OciLayout:
    """Decode ``oci-layout``. Raises InvalidInput, Unsupported (a version other than 1.x)."""
    layout = decode(OciLayout, raw, what)
    if not re.fullmatch(r"1(\.[0-9]+)*", layout.image_layout_version):
        raise Unsupported(f"{what}: image layout version {layout.image_layout_version[:40]!r} is not 1.x")
    return layout


def parse_tag(text: str) -> str:
    """Check a tag before it is written as the ``ref.name`` annotation (annotations.md). Raises InvalidInput.

    Readers accept any existing name.
    """
    if len(text) > 1024 or not all(_TAG.fullmatch(part) for part in text.split("/")):
        raise InvalidInput(f"malformed tag {text[:200]!r}")
    return text


def blob_path(digest: Digest) -> str:
    """Path of a blob relative to the layout; safe, since a `Digest` is validated."""
    return f"{BLOBS}/{digest.algorithm}/{digest.hex}"
