# SPDX-License-Identifier: Apache-2.0
"""``lamella convert --to cim``, and back with ``--to tar``."""

from __future__ import annotations

from pathlib import Path

import click

from lamella.cli.console import Console, counted, human_size
from lamella.cli.documents import (
    applied_document,
    finished_document,
    layer_summary,
    losses_document,
    unpacked_document,
    written_document,
)


def to_cim(
    console: Console,
    source: str,
    target: str,
    kind: str,
    parent: Path | None,
    platform: str | None,
    strict: bool,
) -> None:
    """Make composite images of an image's layers, or one of a blob where ``target`` names one."""
    from lamella.changes.losses import Losses
    from lamella.images.resolve import open_platform_image
    from lamella.layers.cim.image_files import is_cim_path
    from lamella.layers.windows.names import AS_WINDOWS
    from lamella.operations.layers.apply import apply_blob
    from lamella.operations.trees.open import names_an_image
    from lamella.operations.unpack import unpack

    losses = Losses(refuse=strict)
    progress, cancel = console.progress(), console.cancellation()
    place = Path(target.removeprefix("cim:"))
    if is_cim_path(target):
        if names_an_image(source):
            raise click.UsageError("DIR/NAME.cim is for a single layer; name a new directory for those of an image")
        below = () if parent is None else (parent,)
        blob = Path(source.removeprefix("blob:"))
        applied = apply_blob(
            blob, place, kind=kind, parents=below, losses=losses, rules=AS_WINDOWS, progress=progress, cancel=cancel
        )
        console.losses(losses)
        if console.json:
            console.document({**applied_document(applied), **losses_document(losses)})
        else:
            console.summary(f"{place}: {counted(applied.entries, 'entry', 'entries')}, diff id {applied.facts.diff_id}")
        return
    _refuse_parent(parent)
    with open_platform_image(source, platform) as image:
        unpacked = unpack(image, place, kind=kind, losses=losses, rules=AS_WINDOWS, progress=progress, cancel=cancel)
        console.losses(losses)
        if console.json:
            console.document(unpacked_document(image, unpacked))
            return
    entries = sum(layer.entries for layer in unpacked.layers)
    console.summary(f"{place}: {counted(entries, 'entry', 'entries')} in {len(unpacked.layers)} composite images")


def from_cim(
    console: Console,
    source: str,
    target: str,
    parent: Path | None,
    compress: str | None,
    level: int | None,
    replace: bool,
    strict: bool,
) -> None:
    """Make an image of a directory of composite images, or a blob of one where ``source`` names one."""
    from lamella.changes.losses import Losses
    from lamella.layers.cim.image_files import is_cim_path
    from lamella.operations.layers.diff import diff
    from lamella.operations.windows.convert_cim import cims_to_image

    losses = Losses(refuse=strict)
    progress, cancel = console.progress(), console.cancellation()
    place = Path(source.removeprefix("cim:"))
    if is_cim_path(source):
        blob = Path(target.removeprefix("blob:"))
        written = diff(
            parent,
            place,
            blob,
            kind="cim",
            compression=compress or "gzip",
            level=level,
            losses=losses,
            progress=progress,
            cancel=cancel,
        )
        console.losses(losses)
        if console.json:
            console.document({**written_document(written), **losses_document(losses)})
        else:
            facts = written.facts
            entries = counted(written.entries, "entry", "entries")
            console.summary(f"{blob}: {entries}, {human_size(facts.size)}, diff id {facts.diff_id}")
        return
    _refuse_parent(parent)
    done = cims_to_image(
        place,
        target,
        compression=compress,
        level=level,
        replace=replace,
        losses=losses,
        progress=progress,
        cancel=cancel,
    )
    console.losses(losses)
    if console.json:
        document = {**finished_document(target, done.finished), "kept": done.kept}
        console.document({**document, **losses_document(losses)})
        return
    console.summary(f"{target}: {done.finished.descriptor.digest}")
    for layer in done.finished.made:
        layer_summary(console, layer)
    console.summary(f"{done.kept} of {len(done.finished.made)} layers have the diff id that they had before")


def _refuse_parent(parent: Path | None) -> None:
    if parent is not None:
        raise click.UsageError("--parent is for a single layer, DIR/NAME.cim")
