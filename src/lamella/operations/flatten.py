# SPDX-License-Identifier: Apache-2.0
"""An image with all of its layers merged into one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from lamella.changes.tree import walk
from lamella.images.forms import open_writer
from lamella.images.image import open_image
from lamella.images.naming import ImageName, parse_image_name
from lamella.oci.config import History
from lamella.oci.platform import Platform
from lamella.operations.pack import Packed, write_image
from lamella.operations.trees import image_tree

if TYPE_CHECKING:
    from lamella.changes.losses import Losses
    from lamella.progress import Cancellation, Progress


def flatten(
    source: str | ImageName,
    target: str | ImageName,
    *,
    platform: str | Platform | None = None,
    compression: str = "gzip",
    level: int | None = None,
    threads: int | None = None,
    replace: bool = False,
    losses: Losses | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Packed:
    """Write the image ``source`` as ``target`` with one layer, which has the merged view and nothing that it hides.

    The config stays, but for layers and history; so do annotations of the manifest, and times to the nanosecond. See
    `open_writer` for ``replace``. Raises as unpacking ``source`` does, and AlreadyExists.
    """
    target = parse_image_name(target) if isinstance(target, str) else target
    with (
        open_image(source, platform) as image,
        image_tree(image, progress=progress, cancel=cancel) as tree,
        open_writer(target, replace=replace) as writer,
    ):
        count = len(image.layers)
        made = History(
            created=image.config.created,
            created_by="lamella flatten",
            comment=f"{count} {'layer' if count == 1 else 'layers'} merged",
        )
        return write_image(
            writer,
            target.tag,
            msgspec.structs.replace(image.config, history=[made]),
            walk(tree),
            tree.lookup,
            annotations=dict(image.manifest.annotations),
            compression=compression,
            level=level,
            threads=threads,
            subsecond=True,
            losses=losses,
            progress=progress,
            cancel=cancel,
        )
