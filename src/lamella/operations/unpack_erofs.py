# SPDX-License-Identifier: Apache-2.0
"""An image as one EROFS image: a root file system in a single file, which the kernel mounts as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.changes.apply import Tally, apply
from lamella.changes.losses import Losses
from lamella.layers.erofs.files import ErofsLayer
from lamella.layers.erofs.sink import ErofsSink
from lamella.operations.apply import Applied
from lamella.operations.layer_reading import changes_of_blob, checked_reader

if TYPE_CHECKING:
    from lamella.images.image import ImageLayer
    from lamella.progress import Cancellation, Progress


def erofs_applied(
    layers: Sequence[ImageLayer],
    path: Path,
    losses: Losses,
    progress: Progress | None,
    cancel: Cancellation | None,
) -> Iterator[Applied]:
    """Apply ``layers`` to one new image at ``path``, which is there when the last has been checked, and not before.

    What upper layers hide of lower ones takes room in the image, though nothing leads there.
    """
    sink = ErofsSink(ErofsLayer(path), losses=losses)
    try:
        for number, layer in enumerate(layers, 1):
            tally = Tally()
            sink.more = number < len(layers)
            with checked_reader(layer, progress, cancel) as reader:
                apply(changes_of_blob(reader), sink, cancel=cancel, tally=tally)
                yield Applied(reader.finish(), tally.changes, losses)
        if not layers:
            sink.commit()
    except BaseException:
        sink.abort()
        raise
