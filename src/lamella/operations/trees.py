# SPDX-License-Identifier: Apache-2.0
"""Whatever can be looked into, as a tree: an image's merged view, a single layer, a directory on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lamella.changes.contracts import Tree

if TYPE_CHECKING:
    from lamella.oci.platform import Platform
    from lamella.progress import Cancellation, Progress

DIRECTORY = "dir:"
BLOB = "blob:"


@contextmanager
def open_tree(
    place: str,
    *,
    platform: str | Platform | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Iterator[Tree]:
    """The tree that ``place`` names, good until the block ends: ``dir:PATH``, ``blob:FILE`` or the name of an image.

    Raises InvalidInput, NotFound and what reading the place raises.
    """
    if place.startswith(DIRECTORY):
        from lamella.layers.directory_tree import DirectoryTree

        with DirectoryTree(place[len(DIRECTORY) :]) as tree:
            yield tree
        return
    raise NotImplementedError
