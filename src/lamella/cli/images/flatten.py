# SPDX-License-Identifier: Apache-2.0
"""``lamella flatten``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lamella.cli.choices import compression_options
from lamella.cli.console import Console
from lamella.cli.documents import packed_document, print_packed
from lamella.cli.options import collect, platform_option, replace_option, strict_option
from lamella.cli.verb import ImageVerb

if TYPE_CHECKING:
    from lamella.operations.surgery.flatten import FlattenOptions


@click.command("flatten", cls=ImageVerb)
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="IMAGE")
@click.option("--layers", metavar="A..B", help="Merge only these layers, numbered from 0 at the base.")
@collect(
    "options",
    "operations.surgery.flatten:FlattenOptions",
    platform_option,
    compression_options,
    replace_option,
)
@strict_option
@click.pass_obj
def command(
    console: Console, source: str, target: str, layers: str | None, options: FlattenOptions, strict: bool
) -> None:
    """Copy an image with its layers merged into one.

    The first IMAGE is copied to the second. Files that upper layers hide or remove are in no layer of the copy; the
    config stays. --layers 2..5 merges the layers with these numbers, both ends included, and keeps the others; 2.. and
    ..5 leave an end open. 'lamella inspect' shows the numbers.
    """
    from lamella.operations.surgery.flatten import flatten

    job = console.job(strict=strict)
    packed = flatten(source, target, layers, options, job=job)
    console.losses(job.losses)
    if console.json:
        console.document(packed_document(target, packed))
    else:
        print_packed(console, target, packed)
