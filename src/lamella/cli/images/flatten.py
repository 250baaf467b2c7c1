# SPDX-License-Identifier: Apache-2.0
"""``lamella flatten``."""

from __future__ import annotations

import click

from lamella.cli.choices import compression_options
from lamella.cli.console import Console
from lamella.cli.documents import packed_document, packed_summary
from lamella.cli.options import platform_option, replace_option, strict_option
from lamella.cli.verb import ImageVerb


@click.command("flatten", cls=ImageVerb)
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="IMAGE")
@click.option("--layers", metavar="A..B", help="Merge these only; they count from 0 at the base.")
@platform_option
@compression_options
@replace_option
@strict_option
@click.pass_obj
def command(
    console: Console,
    source: str,
    target: str,
    layers: str | None,
    platform: str | None,
    compress: str,
    level: int | None,
    replace: bool,
    strict: bool,
) -> None:
    """Copy an image with its layers merged into one.

    The first IMAGE goes to the second. What upper layers hide or remove is in no layer any more; the config stays.
    With --layers 2..5, the layers with these numbers are merged, both ends included, and the others stay; 2.. and ..5
    leave an end open. 'lamella inspect' shows the numbers.
    """
    from lamella.changes.losses import Losses
    from lamella.operations.surgery.flatten import flatten

    losses = Losses(refuse=strict)
    packed = flatten(
        source,
        target,
        layers=layers,
        platform=platform,
        compression=compress,
        level=level,
        replace=replace,
        losses=losses,
        progress=console.progress(),
        cancel=console.cancellation(),
    )
    console.losses(losses)
    if console.json:
        console.document(packed_document(target, packed))
    else:
        packed_summary(console, target, packed)
