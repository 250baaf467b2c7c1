# SPDX-License-Identifier: Apache-2.0
"""Print a layer, a directory or an image as canonical text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lamella.changes.dump import dump
from lamella.changes.tree import walk

if TYPE_CHECKING:
    from lamella.oci.platform import Platform


def dump_lines(
    place: str | os.PathLike[str] | BinaryIO,
    *,
    kind: str = "directory",
    inline: int = 0,
    holes: bool = False,
    platform: str | Platform | None = None,
) -> Iterator[str]:
    """The lines of `lamella.changes.dump` for ``place``.

    ``place`` is an open blob, the path of a blob or of a directory (of the kind ``kind``), or a name for `open_tree`.
    Raises NotFound, InvalidInput, and what reading the place raises.
    """
    from lamella.operations.trees.open import names_a_tree, open_tree

    if not isinstance(place, (str, os.PathLike)):
        yield from _dump_blob(place, inline, holes)
    elif isinstance(place, str) and names_a_tree(place):
        with open_tree(place, platform=platform) as tree:
            yield from dump(walk(tree), inline=inline, extents=holes)
    elif os.path.isdir(place):
        from lamella.operations.layers.diff import DiffOptions, open_changes

        with open_changes(None, place, DiffOptions(kind=kind)) as (changes, _):
            yield from dump(changes, inline=inline, extents=holes)
    else:
        yield from _dump_blob(Path(place), inline, holes)


def _dump_blob(blob: Path | BinaryIO, inline: int, holes: bool) -> Iterator[str]:
    from lamella.layers.tar.source import tar_changes
    from lamella.streams.blob_reader import BlobReader

    with BlobReader(blob, hash_blob=False, hash_stream=False) as reader:
        yield from dump(tar_changes(reader.next_buffer, end=reader.finish), inline=inline, extents=holes)
