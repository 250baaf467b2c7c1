# SPDX-License-Identifier: Apache-2.0
"""An image with further layers on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from lamella.errors import InvalidInput
from lamella.images.resolve import open_platform_image
from lamella.images.transports import ImageName, open_writer, parse_image_name
from lamella.oci.config import History
from lamella.oci.platform import Platform
from lamella.operations.layers.read import is_windows
from lamella.operations.layers.write import LayerOptions
from lamella.operations.surgery.draft import Draft, Finished, LayerSource, draft_of, write_draft
from lamella.operations.surgery.mutate import creation_time
from lamella.operations.surgery.new_layers import LayerLike, TarredLayer, new_layers, refuse_own_source

if TYPE_CHECKING:
    from lamella.changes.losses import Losses
    from lamella.layers.policy import Owners
    from lamella.layers.windows.names import NameRules
    from lamella.layers.windows.transforms import WindowsTemplate
    from lamella.progress import Cancellation, Progress

BY: Final = "lamella append"


def append(
    source: str | ImageName,
    layers: LayerLike | Sequence[LayerLike],
    target: str | ImageName,
    *,
    created_by: str = BY,
    platform: str | Platform | None = None,
    compression: str = "gzip",
    level: int | None = None,
    threads: int | None = None,
    subsecond: bool = False,
    owners: Owners | None = None,
    windows: bool | None = None,
    template: WindowsTemplate | None = None,
    rules: NameRules | None = None,
    replace: bool = False,
    losses: Losses | None = None,
    progress: Progress | None = None,
    cancel: Cancellation | None = None,
) -> Finished:
    """Write the image ``source`` with ``layers`` on top as ``target``, which may be the same image.

    A layer is a directory, a blob, which is stored as it is, or a mapping of paths to files (see `FileLike`), in
    whatever order: the same files give the same layer. Of ``source`` only the documents are read, unless the target
    lacks its layers. The image is dated by SOURCE_DATE_EPOCH, or 1970; ``created_by`` is for the history. See `diff`
    for the other options of layers and `open_writer` for ``replace``. Upon an image for Windows, files and directories
    become Windows layers whose `Files` have them, as `container_layer` does; ``windows`` makes sure of that. So does
    ``template``, which says what security descriptors and attributes they get. ``rules`` are for the names in them; a
    file whose name they refuse is lost.

    Raises FormatError, Integrity, NotFound, AlreadyExists, Exhausted, Cancelled and the like.
    """
    target = parse_image_name(target) if isinstance(target, str) else target
    with open_platform_image(source, platform) as image:
        if windows is None and (template is not None or rules is not None):
            windows = True
        if windows is not None and windows is not is_windows(image):
            raise InvalidInput(f"the image is for {image.config.os}, and so must its layers be")
        made = new_layers(
            layers, LayerOptions(compression, level, threads, subsecond, owners, losses, template=template, rules=rules)
        )
        refuse_own_source(made, target)
        with open_writer(target, replace=replace) as writer:
            draft = appended(draft_of(image), made, created_by=created_by)
            return write_draft(draft, writer, tag=target.tag, progress=progress, cancel=cancel)


def appended(draft: Draft, layers: Sequence[LayerSource], *, created_by: str = BY) -> Draft:
    """``draft`` with ``layers`` on top, and a step of the history for each."""
    created = creation_time()
    system = draft.config.os
    base = not draft.layers
    layers = [
        layer.for_system(system, base=base and not number) if isinstance(layer, TarredLayer) else layer
        for number, layer in enumerate(layers)
    ]
    history = draft.config.history
    # A history that does not account for the layers below would account for these wrongly.
    if draft.accounted:
        history = [*history, *(History(created=created, created_by=created_by) for _ in layers)]
    config = msgspec.structs.replace(draft.config, created=created, history=history)
    return replace(draft, config=config, layers=(*draft.layers, *layers))
