# SPDX-License-Identifier: Apache-2.0
"""``lamella convert``."""

from __future__ import annotations

from pathlib import Path

import click

from lamella.cli.choices import kind_option, new_compression_options
from lamella.cli.console import Console
from lamella.cli.documents import layer_document, layer_summary, losses_document
from lamella.cli.options import platform_option, replace_option, strict_option
from lamella.cli.verb import ImageVerb


@click.command("convert", cls=ImageVerb)
@click.argument("source", metavar="IMAGE|PLACE")
@click.argument("target", metavar="IMAGE|PLACE")
@kind_option(
    lambda row: row.keeps_documents,
    "--to",
    others=("tar",),
    about="Write the layers of a Windows image to the directory PLACE, or read them there with tar.",
)
@click.option(
    "--parent",
    metavar="CIM",
    type=click.Path(path_type=Path),
    help="With --to, for a single layer: the composite image below it.",
)
@new_compression_options
@click.option("--again", is_flag=True, help="Compress those too that are compressed this way already.")
@click.option("--format", "format_", type=click.Choice(["oci", "docker"]), help="Media types of the documents.")
@click.option("--all", "all_platforms", is_flag=True, help="Convert an index with the images of all platforms.")
@click.option(
    "--recipes",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write what gives the old blobs back, a file for each.",
)
@platform_option
@replace_option
@strict_option
@click.pass_obj
def command(
    console: Console,
    source: str,
    target: str,
    kind: str | None,
    parent: Path | None,
    compress: str | None,
    level: int | None,
    again: bool,
    format_: str | None,
    all_platforms: bool,
    platform: str | None,
    replace: bool,
    recipes: Path | None,
    strict: bool,
) -> None:
    """Copy an image with its layers compressed or kept another way.

    The tars in the layers stay, and with them the diff ids and the config; what is compressed this way already is not
    written again. With --format, the manifest is written in the other of the two formats.

    --to cim makes a new directory with a composite image for each layer of a Windows image, 0.cim for the base, and
    with the image's documents; --to tar makes the image of it again. With DIR/NAME.cim for PLACE they convert a single
    layer, from a blob and to one. --to blockcim takes Windows, and is no way back: 0/layer.vhd/layer.cim is the base's.
    """
    if kind is not None:
        other = (again, format_, all_platforms, recipes)
        if any(other) or (kind != "tar" and (compress or replace)):
            raise click.UsageError("--to converts layers as they are; give the other options in a step of its own")
        from lamella.cli.windows.convert_cim import from_cim, to_cim

        if kind != "tar":
            to_cim(console, source, target, kind, parent, platform, strict)
        else:
            from_cim(console, source, target, parent, compress, level, replace, strict)
        return
    if parent is not None:
        raise click.UsageError("--parent is for --to")
    from lamella.changes.losses import Losses
    from lamella.operations.inspect import describe_descriptor
    from lamella.operations.surgery.convert import convert

    if compress is None and format_ is None:
        raise click.UsageError("say what to convert to with --compress, --format or --to")
    losses = Losses(refuse=strict)
    done = convert(
        source,
        target,
        compression=compress,
        level=level,
        again=again,
        format=format_,
        platform=platform,
        all_platforms=all_platforms,
        replace=replace,
        recipes=recipes,
        losses=losses,
        progress=console.progress(),
        cancel=console.cancellation(),
    )
    console.losses(losses)
    if console.json:
        document = {"image": target, **describe_descriptor(done.descriptor), "images": done.images}
        document |= {"layers": [layer_document(layer) for layer in done.layers], "kept": done.kept}
        console.document({**document, **losses_document(losses)})
        return
    console.summary(f"{target}: {done.descriptor.digest}")
    for layer in done.layers:
        layer_summary(console, layer)
    if done.kept:
        console.summary(f"{done.kept} {'layer' if done.kept == 1 else 'layers'} kept")
