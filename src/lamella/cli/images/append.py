# SPDX-License-Identifier: Apache-2.0
"""``lamella append``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lamella.cli.choices import compression_options
from lamella.cli.console import Console
from lamella.cli.documents import finished_document, losses_document, print_finished
from lamella.cli.options import (
    collect,
    name_rules_option,
    platform_option,
    read_owner_option,
    replace_option,
    strict_option,
    subsecond_option,
    template_options,
)
from lamella.cli.verb import ImageVerb

if TYPE_CHECKING:
    from lamella.operations.surgery.append import AppendOptions


@click.command("append", cls=ImageVerb)
@click.argument("source", metavar="IMAGE")
@click.argument("layers", metavar="LAYER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("target", metavar="IMAGE")
@collect(
    "options",
    "operations.surgery.append:AppendOptions",
    click.option("--created-by", metavar="TEXT", help="The text of the new steps in the history."),
    platform_option,
    compression_options,
    subsecond_option,
    read_owner_option,
    click.option("--windows", is_flag=True, default=None, help="Fail unless the image is for Windows."),
    template_options,
    name_rules_option,
    replace_option,
)
@strict_option
@click.pass_obj
def command(
    console: Console, source: str, layers: tuple[Path, ...], target: str, options: AppendOptions, strict: bool
) -> None:
    """Copy an image with further layers on top.

    LAYER is a layer blob, as 'lamella diff -o' writes it, which is stored unchanged; or a composite image,
    cim:DIR/NAME.cim, whose changes become a layer; or a directory, whose files do. Directories in it get their metadata
    there, the root of the image keeps its own. The last IMAGE may be the first one, whose tag then names the new image.
    The image is dated by SOURCE_DATE_EPOCH, or 1970 without it.

    On a Windows image, a directory becomes a Windows layer with its files on drive C: links get backslashes, and
    everyone may read and execute the files, unless --file-security says otherwise.
    """
    from lamella.operations.surgery.append import append

    job = console.job(strict=strict)
    finished = append(source, layers, target, options, job=job)
    console.losses(job.losses)
    if console.json:
        console.document({**finished_document(target, finished), **losses_document(job.losses)})
    else:
        print_finished(console, target, finished)
