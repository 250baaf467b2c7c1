# SPDX-License-Identifier: Apache-2.0
"""Add layers on top of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from lamella.changes.job import Job
from lamella.errors import InvalidInput
from lamella.images.resolve import open_platform_image
from lamella.images.transports import ImageName, open_writer, parse_image_name
from lamella.oci.config import History
from lamella.oci.platform import Platform
from lamella.operations.layers.read import is_windows
from lamella.operations.layers.write import LayerOptions
from lamella.operations.surgery.draft import Draft, LayerSource, WrittenImage, draft_of, write_draft
from lamella.operations.surgery.mutate import creation_time
from lamella.operations.surgery.new_layers import LayerLike, NewLayer, new_layers, refuse_own_source

CREATED_BY: Final = "lamella append"


class AppendOptions(LayerOptions, frozen=True, kw_only=True):
    """How to add layers to an image, and how to write them."""

    created_by: str = CREATED_BY
    """Recorded in the history, one step for each layer."""
    platform: str | Platform | None = None
    """The image to take from an index; None for the platform of this machine."""
    replace: bool = False
    """As for `open_writer`."""


DEFAULT_OPTIONS: Final = AppendOptions()


def append(
    source: str | ImageName,
    layers: LayerLike | Sequence[LayerLike],
    target: str | ImageName,
    options: AppendOptions = DEFAULT_OPTIONS,
    *,
    job: Job | None = None,
) -> WrittenImage:
    """Write the image ``source`` with ``layers`` on top as ``target``, which may be the same image.

    A layer is a directory, a layer blob, which is stored unchanged, or a mapping of paths to files (`FileLike`): the
    same files give the same layer in any order. Only the documents of ``source`` are read, unless the target lacks its
    layers. The image is dated by SOURCE_DATE_EPOCH, or 1970 without it.

    On an image for Windows, files and directories become Windows layers that have them in `Files`, as `container_layer`
    does; ``options.windows`` and the options for Windows require such an image.

    Raises FormatError, Integrity, NotFound, AlreadyExists, Exhausted, Cancelled and other errors of reading and
    writing.
    """
    target = parse_image_name(target) if isinstance(target, str) else target
    with open_platform_image(source, options.platform) as image:
        windows = options.windows
        if windows is None and (options.template is not None or options.rules is not None):
            windows = True
        if windows is not None and windows is not is_windows(image):
            raise InvalidInput(f"the image is for {image.config.os}, and its layers must be too")
        new = new_layers(layers, options)
        refuse_own_source(new, target)
        with open_writer(target, replace=options.replace) as writer:
            draft = add_layers(draft_of(image), new, created_by=options.created_by)
            return write_draft(draft, writer, tag=target.tag, job=job)


def add_layers(draft: Draft, layers: Sequence[LayerSource], *, created_by: str = CREATED_BY) -> Draft:
    """``draft`` with ``layers`` on top, and a step of the history for each."""
    created = creation_time()
    system = draft.config.os
    base = not draft.layers
    layers = [
        layer.for_system(system, base=base and not number) if isinstance(layer, NewLayer) else layer
        for number, layer in enumerate(layers)
    ]
    history = draft.config.history
    # Further steps would be assigned to the wrong layers if the present ones do not match theirs.
    if draft.history_matches:
        history = [*history, *(History(created=created, created_by=created_by) for _ in layers)]
    config = msgspec.structs.replace(draft.config, created=created, history=history)
    return replace(draft, config=config, layers=(*draft.layers, *layers))
