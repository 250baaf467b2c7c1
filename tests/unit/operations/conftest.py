# SPDX-License-Identifier: Apache-2.0
"""What the tests of surgery share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamella.digests import Digest
from lamella.images.resolve import open_platform_image
from lamella.operations.trees.open import open_tree
from lamella.testing.reading import text

Rewrite = Callable[[str, Callable[[Any, Any], None]], None]


@pytest.fixture
def view() -> Callable[[str], list[str]]:
    """Return a function that gives the merged view of an image as text."""

    def of(name: str) -> list[str]:
        with open_tree(name) as tree:
            return list(text(tree))

    return of


@pytest.fixture
def rewrite() -> Rewrite:
    """Return a function that lets another change manifest and config of the only image of a layout."""

    def change_of(name: str, change: Callable[[Any, Any], None]) -> None:
        root = Path(name.split(":")[1])
        blobs = root / "blobs/sha256"
        index = json.loads((root / "index.json").read_text())
        manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
        config = json.loads((blobs / manifest["config"]["digest"][7:]).read_text())
        change(manifest, config)
        index["manifests"][0]["mediaType"] = manifest["mediaType"]
        for holder, key, value in (manifest, "config", config), (index["manifests"], 0, manifest):
            raw = json.dumps(value).encode()
            holder[key] |= {"digest": str(Digest.of(raw)), "size": len(raw)}
            (blobs / Digest.of(raw).hex).write_bytes(raw)
        (root / "index.json").write_text(json.dumps(index))

    return change_of


@pytest.fixture
def spoil_layers() -> Callable[[str], None]:
    """Return a function that makes the layers of an image zeros, so that nobody can read them unnoticed."""

    def spoil(name: str) -> None:
        with open_platform_image(name) as image:
            for layer in image.layers:
                blob = Path(name.split(":")[1], "blobs/sha256", layer.descriptor.digest.hex)
                blob.write_bytes(bytes(layer.descriptor.size))

    return spoil
