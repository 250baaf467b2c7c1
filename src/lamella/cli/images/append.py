# SPDX-License-Identifier: Apache-2.0
"""``lamella append``."""

from __future__ import annotations

from pathlib import Path

import click

from lamella.cli.choices import compression_options
from lamella.cli.console import Console
from lamella.cli.documents import finished_document, finished_summary, losses_document
from lamella.cli.options import (
    awkward_names_option,
    name_rules,
    platform_option,
    read_owner_option,
    replace_option,
    strict_option,
    subsecond_option,
    template,
    template_options,
)
from lamella.cli.verb import ImageVerb


@click.command("append", cls=ImageVerb)
@click.argument("source", metavar="IMAGE")
@click.argument("layers", metavar="LAYER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("target", metavar="IMAGE")
@click.option("--created-by", metavar="TEXT", help="What the history says of the layers.")
@platform_option
@compression_options
@subsecond_option
@read_owner_option
@click.option("--windows", is_flag=True, help="Make sure that the image is for Windows, and its new layers too.")
@template_options
@awkward_names_option
@replace_option
@strict_option
@click.pass_obj
def command(
    console: Console,
    source: str,
    layers: tuple[Path, ...],
    target: str,
    created_by: str | None,
    platform: str | None,
    compress: str,
    level: int | None,
    subsecond: bool,
    owner: str | None,
    windows: bool,
    file_security: str | None,
    directory_security: str | None,
    attributes: tuple[str, ...],
    awkward_names: bool,
    replace: bool,
    strict: bool,
) -> None:
    """Copy an image with further layers on top.

    LAYER is a blob, as 'lamella diff -o' writes it, which is stored as it is, a composite image, cim:DIR/NAME.cim,
    whose changes become a layer, or a directory, whose files do; directories in it get the metadata that they have
    there, the root keeps its own. The last IMAGE may be the first one, whose tag then names the new image. It is dated
    by SOURCE_DATE_EPOCH, or 1970 where that is not set.

    Upon a Windows image a directory becomes a Windows layer, of which it is drive C: links have backslashes, files are
    for everybody to read and run unless --file-security says otherwise.
    """
    from lamella.changes.losses import Losses
    from lamella.layers.policy import Owners
    from lamella.operations.surgery.append import BY, append

    losses = Losses(refuse=strict)
    appended = append(
        source,
        layers,
        target,
        created_by=BY if created_by is None else created_by,
        platform=platform,
        compression=compress,
        level=level,
        subsecond=subsecond,
        owners=None if owner is None else Owners(owner),
        windows=windows or None,
        template=template(file_security, directory_security, attributes),
        rules=name_rules(awkward_names),
        replace=replace,
        losses=losses,
        progress=console.progress(),
        cancel=console.cancellation(),
    )
    console.losses(losses)
    if console.json:
        console.document({**finished_document(target, appended), **losses_document(losses)})
    else:
        finished_summary(console, target, appended)
