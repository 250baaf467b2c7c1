# SPDX-License-Identifier: Apache-2.0
"""A Windows image onto a directory: as the plain tree that its containers have for drive C, or layer by layer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from lamella.changes.apply import Tally, apply
from lamella.changes.losses import Losses
from lamella.errors import from_os
from lamella.layers.directory.sink import DirectorySink
from lamella.layers.kinds import directory_of
from lamella.layers.policy import Devices, Owners, Policy
from lamella.layers.windows.casefold import Spelling, view_changes
from lamella.layers.windows.folder.layout import FILES
from lamella.layers.windows.transforms import inside
from lamella.operations.layers.apply import Applied, apply_image_layer
from lamella.operations.layers.read import checked_reader
from lamella.paths import LayerPath

if TYPE_CHECKING:
    from lamella.images.image import Image, ImageLayer
    from lamella.layers.process_reader import Apart
    from lamella.layers.windows.names import NameRules
    from lamella.progress import Cancellation, Progress

MANIFEST: Final = "manifest.json"
CONFIG: Final = "config.json"
"""The documents of an image whose layers are composite images."""
BLOCK: Final = "layer.vhd"
IMAGE: Final = "layer.cim"
"""The file of a block image, and the image in it."""

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
    rules: NameRules | None,
    progress: Progress | None,
    cancel: Cancellation | None,
) -> Iterator[Applied]:
    """Make a folder in ``directory`` for each of ``layers``, called by its number."""
    below: list[Path] = []
    for number, layer in enumerate(layers):
        folder = directory / str(number)
        yield apply_image_layer(
            layer,
            folder,
            kind="windows",
            parents=below,
            losses=losses,
            rules=rules,
            progress=progress,
            cancel=cancel,
        )
        below.insert(0, folder)


def images_applied(
    image: Image,
    directory: Path,
    kind: Literal["cim", "blockcim"],
    losses: Losses,
    rules: NameRules | None,
    progress: Progress | None,
    cancel: Cancellation | None,
    other: Apart | None = None,
) -> Iterator[Applied]:
    """Make a composite image in ``directory`` for each layer of ``image``, forked from the one before it.

    Its documents lie beside them, so that `windows.convert_cim` can make the image again. Of the kind
    ``"blockcim"`` each is a file in a folder of its own, as containerd has them. ``other`` reads the layers as those of
    Windows, where it is given.
    """
    below: list[Path] = []
    directory_of(kind, directory / _place_of(kind, 0))  # before anything is written, where this host cannot
    documents = {MANIFEST: image.descriptor, CONFIG: image.manifest.config}
    for name, descriptor in documents.items():
        try:
            (directory / name).write_bytes(image.reader.read_document(descriptor))
        except OSError as problem:
            raise from_os(problem, f"write {os.fspath(directory / name)!r}") from problem
    for number, layer in enumerate(image.layers):
        path = directory / _place_of(kind, number)
        yield apply_image_layer(
            layer,
            path,
            other=other,
            kind=kind,
            parents=below,
            losses=losses,
            rules=rules,
            progress=progress,
            cancel=cancel,
        )
        below.insert(0, path)


def _place_of(kind: Literal["cim", "blockcim"], number: int) -> str:
    return f"{number}.cim" if kind == "cim" else f"{number}/{BLOCK}/{IMAGE}"
