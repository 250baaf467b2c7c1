# SPDX-License-Identifier: Apache-2.0
"""Which places are composite images, told by how they are written; nothing is loaded for that."""

from __future__ import annotations

import os
from pathlib import Path


def cim_place(place: str | os.PathLike[str]) -> Path | None:
    """The path of the image that ``place`` names: as ``cim:DIR/NAME.cim``, or as what ends so and is no directory."""
    text = os.fspath(place)
    if text.startswith("cim:"):
        return Path(text[4:])
    return Path(text) if text.lower().endswith(".cim") and not os.path.isdir(text) else None
