# SPDX-License-Identifier: Apache-2.0
"""Merge consecutive layers of an image into one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace as replaced

from lamella.changes.diff import diff
from lamella.changes.job import Job
from lamella.errors import InvalidInput
from lamella.images.resolve import ImageLayer, PlatformImage, open_platform_image
from lamella.images.transports import ImageName, open_writer, parse_image_name
from lamella.layers.windows.names import AS_WINDOWS
from lamella.oci.config import History
from lamella.oci.platform import Platform
from lamella.operations.layers.read import is_windows, lower_and_upper
from lamella.operations.layers.write import DEFAULT_OPTIONS, LayerOptions, Written
from lamella.operations.pack import Packed
from lamella.operations.surgery.draft import BlobTarget, Draft, DraftLayer, StoredLayer, draft_of, write_draft
from lamella.operations.surgery.mutate import creation_time
from lamella.operations.surgery.new_layers import NewLayer, Opened
from lamella.times import source_date_epoch


class FlattenOptions(LayerOptions, frozen=True, kw_only=True):
    """Which image to take, and how to write the merged layer; times keep their fractions of seconds."""

    platform: str | Platform | None = None
    """The image to take from an index; None for the platform of this machine."""
    replace: bool = False
    """As for `open_writer`."""
    dirty: bool = False
    """Merge registry hives without their last changes if these are in no transaction log."""


DEFAULT_FLATTEN: Final = FlattenOptions()


def flatten(
    source: str | ImageName,
    target: str | ImageName,
    layers: range | str | None = None,
    options: FlattenOptions = DEFAULT_FLATTEN,
    *,
    job: Job | None = None,
) -> Packed:
    """Write the image ``source`` as ``target`` with one layer, which has the merged view and no hidden files.

    ``layers`` merges only those, a range of numbers that count from 0 at the base, or a text as for `parse_layers`; the
    unpacked image stays the same. The config stays, except for layers and history; so do the annotations of the
    manifest and nanoseconds in times. The date is SOURCE_DATE_EPOCH, or stays. The layers below the merged ones are
    read too. Of a Windows image, the deltas of the registry are merged as well; see `merged_windows_layers`.

    Raises InvalidInput (no such layers), AlreadyExists, and what unpacking ``source`` raises.
    """
    job = job or Job()
    target = parse_image_name(target) if isinstance(target, str) else target
    with open_platform_image(source, options.platform) as image:
        draft = merge_layers(image, layers, options, dirty=options.dirty)
        with open_writer(target, replace=options.replace) as writer:
            finished = write_draft(draft, writer, tag=target.tag, job=job)
    made = finished.new_layers[0]
    return Packed(finished.descriptor, made.descriptor, Written(made.facts, made.entries or 0, job.losses))


def merge_layers(
    image: PlatformImage,
    layers: range | str | None = None,
    options: LayerOptions = DEFAULT_OPTIONS,
    *,
    dirty: bool = False,
) -> Draft:
    """``image`` with some or all of its layers merged into one.

    ``dirty`` is that of `FlattenOptions`. Raises InvalidInput.
    """
    count = len(image.layers)
    if isinstance(layers, str):
        layers = parse_layers(layers, count)
    chosen = range(count) if layers is None else layers
    if (
        chosen.step != 1
        or (chosen and not 0 <= chosen.start < chosen.stop <= count)
        or (layers is not None and not chosen)
    ):
        raise InvalidInput(f"no layers {chosen.start}..{chosen.stop - 1} to merge", hint=_layer_numbers(count))
    draft = draft_of(image)
    options = replaced(options, subsecond=True, windows=is_windows(image), rules=AS_WINDOWS)
    merged = _MergedLayers(image.layers[: chosen.stop], chosen.start, options, dirty)
    kept: tuple[DraftLayer, ...] = (*image.layers[: chosen.start], merged, *image.layers[chosen.stop :])
    created = draft.config.created if source_date_epoch() is None else creation_time()
    config = msgspec.structs.replace(draft.config, history=_history(draft, chosen, created), created=created)
    return replaced(draft, config=config, layers=kept)


def parse_layers(text: str, count: int) -> range:
    """Parse a range of ``count`` layers: ``2..5`` with both ends, ``2..``, ``..5``, or a single ``3``.

    Numbers count from 0 at the base, as ``lamella inspect`` shows them. Raises InvalidInput.
    """
    match = re.fullmatch(r"([0-9]{1,6})|([0-9]{1,6})?\.\.([0-9]{1,6})?", text)
    if match is None:
        raise InvalidInput(f"malformed layers {text[:60]!r}", hint="write them as in 2..5, 2.. or ..5")
    first = int(match[1] or match[2] or 0)
    last = int(match[1] or match[3] or count - 1)
    if not first <= last < count:
        raise InvalidInput(f"no layers {text} to merge", hint=_layer_numbers(count))
    return range(first, last + 1)


def _layer_numbers(count: int) -> str:
    return f"the image has {count} {'layer' if count == 1 else 'layers'}, numbered from 0 at the base"


def _history(draft: Draft, chosen: range, created: str) -> list[History]:
    """The history with one step for the merged layers, at the position of the last; steps without a layer stay."""
    count = len(chosen)
    made = History(
        created=created,
        created_by="lamella flatten",
        comment=f"{count} {'layer' if count == 1 else 'layers'} merged",
    )
    if count == len(draft.layers):
        return [made]
    if not draft.history_matches:
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
    """The changes of ``layers`` but the first ``below``, merged into one layer on top of these."""

    layers: tuple[ImageLayer, ...]
    below: int
    options: LayerOptions
    dirty: bool
    """As for `FlattenOptions`."""

    def store(self, target: BlobTarget, job: Job) -> StoredLayer:
        @contextmanager
        def opened(_: object) -> Iterator[Opened]:
            if self.options.windows:
                from lamella.operations.windows.layers import merged_windows_layers

                with merged_windows_layers(self.layers, self.below, job, dirty=self.dirty) as merged:
                    yield merged, None
                return
            with lower_and_upper(self.layers, self.below, job) as (lower, upper):
                yield diff(lower, upper, exact=True), upper.lookup

        return NewLayer(opened, self.options).store(target, job)
