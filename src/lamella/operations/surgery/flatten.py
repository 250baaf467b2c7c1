# SPDX-License-Identifier: Apache-2.0
"""An image with layers that follow each other merged into one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from msgspec.structs import replace as replaced

from lamella.changes.diff import diff
from lamella.changes.losses import Losses
from lamella.errors import InvalidInput
from lamella.images.resolve import ImageLayer, PlatformImage, open_platform_image
from lamella.images.transports import ImageName, open_writer, parse_image_name
from lamella.layers.windows.names import AS_WINDOWS
from lamella.oci.config import History
from lamella.oci.platform import Platform
from lamella.operations.layers.read import is_windows, lower_and_upper
from lamella.operations.layers.write import DEFAULT_OPTIONS, LayerOptions, Written
from lamella.operations.pack import Packed
from lamella.operations.surgery.draft import BlobTaker, Draft, DraftLayer, StoredLayer, draft_of, write_draft
from lamella.operations.surgery.mutate import creation_time
from lamella.operations.surgery.new_layers import Opened, TarredLayer
from lamella.times import source_date_epoch

if TYPE_CHECKING:
    from lamella.progress import Cancellation, Progress


def flatten(
    source: str | ImageName,
    target: str | ImageName,
    *,
    layers: range | str | None = None,
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

    With ``layers``, only those are merged, and the image stays the same to whoever unpacks it: a range of numbers that
    count from 0 at the base, or a text as for `parse_layers`. The config stays, but for layers and history; so do
    annotations of the manifest, and times to the nanosecond. The date is SOURCE_DATE_EPOCH, or stays. Layers below the
    merged ones are read too, those above them are not. A Windows image has the deltas of its registry merged too; see
    `merged_windows_layers`. See `open_writer` for ``replace``. Raises as unpacking ``source`` does, InvalidInput (no
    such layers), AlreadyExists.
    """
    target = parse_image_name(target) if isinstance(target, str) else target
    losses = losses if losses is not None else Losses()
    options = LayerOptions(compression, level, threads, True, None, losses)
    with open_platform_image(source, platform) as image:
        draft = flattened(image, layers, options)
        with open_writer(target, replace=replace) as writer:
            finished = write_draft(draft, writer, tag=target.tag, progress=progress, cancel=cancel)
    made = finished.made[0]
    return Packed(finished.descriptor, made.descriptor, Written(made.facts, made.entries or 0, losses))


def flattened(
    image: PlatformImage, layers: range | str | None = None, options: LayerOptions = DEFAULT_OPTIONS
) -> Draft:
    """``image`` with some of its layers, or all, merged into one. Raises InvalidInput."""
    count = len(image.layers)
    if isinstance(layers, str):
        layers = parse_layers(layers, count)
    chosen = range(count) if layers is None else layers
    if (
        chosen.step != 1
        or (chosen and not 0 <= chosen.start < chosen.stop <= count)
        or (layers is not None and not chosen)
    ):
        raise InvalidInput(f"there are no layers {chosen.start}..{chosen.stop - 1} to merge", hint=_numbers(count))
    draft = draft_of(image)
    options = replaced(options, subsecond=True, windows=is_windows(image), rules=AS_WINDOWS)
    merged = _MergedLayers(image.layers[: chosen.stop], chosen.start, options)
    kept: tuple[DraftLayer, ...] = (*image.layers[: chosen.start], merged, *image.layers[chosen.stop :])
    created = draft.config.created if source_date_epoch() is None else creation_time()
    config = msgspec.structs.replace(draft.config, history=_history(draft, chosen, created), created=created)
    return replaced(draft, config=config, layers=kept)


def parse_layers(text: str, count: int) -> range:
    """The layers that ``text`` names, of ``count``: ``2..5`` with both ends, ``2..``, ``..5``, or a single ``3``.

    Numbers count from 0 at the base, as ``lamella inspect`` shows them. Raises InvalidInput.
    """
    match = re.fullmatch(r"([0-9]{1,6})|([0-9]{1,6})?\.\.([0-9]{1,6})?", text)
    if match is None:
        raise InvalidInput(f"malformed layers {text[:60]!r}", hint="write them as in 2..5, 2.. or ..5")
    first = int(match[1] or match[2] or 0)
    last = int(match[1] or match[3] or count - 1)
    if not first <= last < count:
        raise InvalidInput(f"there are no layers {text} to merge", hint=_numbers(count))
    return range(first, last + 1)


def _numbers(count: int) -> str:
    return f"the image has {count} {'layer' if count == 1 else 'layers'}, which count from 0 at the base"


def _history(draft: Draft, chosen: range, created: str) -> list[History]:
    """The history with one step for all merged layers, in the place of the last; steps without a layer stay."""
    count = len(chosen)
    made = History(
        created=created,
        created_by="lamella flatten",
        comment=f"{count} {'layer' if count == 1 else 'layers'} merged",
    )
    if count == len(draft.layers):
        return [made]
    if not draft.accounted:
        return list(draft.config.history)
    result: list[History] = []
    number = 0
    for step in draft.config.history:
        if step.empty_layer or number not in chosen:
            result.append(step)
        elif number == chosen.stop - 1:
            result.append(made)
        number += not step.empty_layer
    return result


class _MergedLayers(Struct, frozen=True):
    """The last of some layers as one: all that they change in what the first ``below`` come to."""

    layers: tuple[ImageLayer, ...]
    below: int
    options: LayerOptions

    def store(
        self, place: BlobTaker, *, progress: Progress | None = None, cancel: Cancellation | None = None
    ) -> StoredLayer:
        """See `LayerSource.store`."""

        @contextmanager
        def opened() -> Iterator[Opened]:
            if self.options.windows:
                from lamella.operations.windows.flatten import merged_windows_layers

                with merged_windows_layers(self.layers, self.below, progress=progress, cancel=cancel) as merged:
                    yield merged, None
                return
            with lower_and_upper(self.layers, self.below, progress=progress, cancel=cancel) as (lower, upper):
                yield diff(lower, upper, exact=True), upper.lookup

        return TarredLayer(opened, self.options).store(place, progress=progress, cancel=cancel)
