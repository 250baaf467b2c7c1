# SPDX-License-Identifier: Apache-2.0
"""A Windows image onto a directory: as the plain tree that its containers have for drive C, or layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lamella.changes.apply import Tally, apply
from lamella.changes.losses import Losses
from lamella.layers.directory import DirectorySink
from lamella.layers.facets import inside
from lamella.layers.policy import Devices, Owners, Policy
from lamella.layers.windows.place import FILES
from lamella.layers.windows_view import Spelling, view_changes
from lamella.operations.apply import Applied, apply_blob
from lamella.operations.layer_reading import checked_reader
from lamella.operations.windows import apply_layer
from lamella.paths import LayerPath

if TYPE_CHECKING:
    from lamella.images.image import ImageLayer
    from lamella.progress import Cancellation, Progress

_POLICY: Final = Policy(Owners.IGNORE, Devices.SKIP)
"""A Windows layer knows neither owners nor devices as POSIX has them."""


def files_applied(
    layers: Sequence[ImageLayer],
    directory: Path,
    policy: Policy | None,
    losses: Losses,
    progress: Progress | None,
    cancel: Cancellation | None,
) -> Iterator[Applied]:
    """Apply what each of ``layers`` has in `Files` to ``directory``. The names are those of the lowest layer."""
    spelling = Spelling()
    for layer in layers:
        tally = Tally()
        with checked_reader(layer, progress, cancel) as reader:
            sink = DirectorySink(directory, policy=policy or _POLICY, losses=losses)
            changes = view_changes(reader.next_buffer, spelling, end=reader.finish, losses=losses)
            apply(inside(changes, LayerPath(FILES), losses=losses), sink, cancel=cancel, tally=tally)
            yield Applied(reader.finish(), tally.changes, losses)


def layers_applied(
    layers: Sequence[ImageLayer],
    directory: Path,
    losses: Losses,
    progress: Progress | None,
    cancel: Cancellation | None,
) -> Iterator[Applied]:
    """Make a folder in ``directory`` for each of ``layers``, called by its number."""
    below: list[Path] = []
    for number, layer in enumerate(layers):
        folder = directory / str(number)
        with layer.open() as blob:
            yield apply_layer(
                blob,
                folder,
                parents=below,
                losses=losses,
                compression=layer.compression,
                digest=layer.descriptor.digest,
                size=layer.descriptor.size,
                diff_id=layer.diff_id,
                progress=progress,
                cancel=cancel,
            ).applied
        below.insert(0, folder)


def cims_applied(
    layers: Sequence[ImageLayer],
    directory: Path,
    losses: Losses,
    progress: Progress | None,
    cancel: Cancellation | None,
) -> Iterator[Applied]:
    """Make a composite image in ``directory`` for each of ``layers``, each forked from the one before it."""
    below: list[Path] = []
    for number, layer in enumerate(layers):
        path = directory / f"{number}.cim"
        with layer.open() as blob:
            yield apply_blob(
                blob,
                path,
                kind="cim",
                parents=below,
                losses=losses,
                compression=layer.compression,
                digest=layer.descriptor.digest,
                size=layer.descriptor.size,
                diff_id=layer.diff_id,
                progress=progress,
                cancel=cancel,
            )
        below.insert(0, path)
