# SPDX-License-Identifier: Apache-2.0
"""``manifest.json`` of a ``docker save`` archive (moby's image specification, version 1.2 and later)."""

from __future__ import annotations

from typing import Final

import msgspec

from lamella.errors import InvalidInput
from lamella.oci.documents import Document, convert, load

SAVED_FILE: Final = "manifest.json"


class SavedImage(Document, frozen=True, kw_only=True):
    """One image of the archive: its references and the names of its members."""

    config: str = msgspec.field(name="Config")
    repo_tags: list[str] = msgspec.field(name="RepoTags", default_factory=list)
    layers: list[str] = msgspec.field(name="Layers")
    """Layer members, base first."""


def decode_saved(raw: bytes, what: str = SAVED_FILE) -> list[SavedImage]:
    """Decode ``manifest.json``. Raises InvalidInput, Exhausted."""
    value = load(raw, what)
    if not isinstance(value, list):
        raise InvalidInput(f"{what}: expected a list of images")
    return [convert(SavedImage, one, f"{what}[{at}]") for at, one in enumerate(value)]
