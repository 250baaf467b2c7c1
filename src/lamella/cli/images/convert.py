# SPDX-License-Identifier: Apache-2.0
"""``lamella convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lamella.cli.choices import kind_option, new_compression_options
from lamella.cli.console import Console, counted, human_size
from lamella.cli.documents import (
    applied_document,
    finished_document,
    layer_document,
    losses_document,
    print_layer,
    unpacked_document,
    written_document,
)
from lamella.cli.options import PATH, collect, platform_option, replace_option, strict_option
from lamella.cli.verb import ImageVerb

if TYPE_CHECKING:
    from lamella.operations.surgery.convert import ConvertOptions


@click.command("convert", cls=ImageVerb, example="lamella convert --compress zstd oci:app:1.0 oci:app:zstd")
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
    type=PATH,
    help="With --to, for a single layer: the composite image below it.",
)
@collect(
    "options",
    "operations.surgery.convert:ConvertOptions",
    new_compression_options,
    click.option("--again", is_flag=True, help="Also recompress layers that have this compression already."),
    click.option("--format", type=click.Choice(["oci", "docker"]), help="Format of the manifest."),
    click.option("--all", "all_platforms", is_flag=True, help="Convert an index with the images of all platforms."),
    click.option(
        "--recipes",
        metavar="DIR",
        type=PATH,
        help="Write a recipe of each old blob to DIR, which restores it from the new one.",
    ),
    platform_option,
    replace_option,
)
@strict_option
@click.pass_obj
def command(
    console: Console,
    source: str,
    target: str,
    kind: str | None,
    parent: Path | None,
    options: ConvertOptions,
    strict: bool,
) -> None:
    """Copy an image with its layers in another form.

    The tars of the layers stay, and with them diff ids and config; layers that have the compression already are not
    written again. --format writes the manifest in the other of the two formats.

    --to cim makes a new directory with a composite image for each layer of a Windows image, 0.cim for the base, and the
    documents of the image; --to tar makes the image from it again. With DIR/NAME.cim as PLACE they convert a single
    layer, from a blob and to one. --to blockcim needs Windows and cannot be converted back: the base is
    0/layer.vhd/layer.cim.
    """
    if kind is not None:
        others = (options.again, options.format, options.all_platforms, options.recipes)
        if any(others) or (kind != "tar" and (options.compression or options.replace)):
            raise click.UsageError("--to keeps the tars of layers; give the other options in a second step")
        if kind != "tar":
            _convert_to_cim(console, source, target, kind, parent, options, strict)
        else:
            _convert_from_cim(console, source, target, parent, options, strict)
        return
    if parent is not None:
        raise click.UsageError("--parent needs --to")
    from lamella.operations.inspect import describe_descriptor
    from lamella.operations.surgery.convert import convert

    if options.compression is None and options.format is None:
        raise click.UsageError("give --compress, --format or --to")
    job = console.job(strict=strict)
    done = convert(source, target, options, job=job)
    console.losses(job.losses)
    if console.json:
        document = {"image": target, **describe_descriptor(done.descriptor), "images": done.images}
        document |= {"layers": [layer_document(layer) for layer in done.layers], "kept": done.kept}
        console.document({**document, **losses_document(job.losses)})
        return
    console.summary(f"{target}: {done.descriptor.digest}")
    for layer in done.layers:
        print_layer(console, layer)
    if done.kept:
        console.summary(f"{counted(done.kept, 'layer', 'layers')} kept")


def _convert_to_cim(
    console: Console,
    source: str,
    target: str,
    kind: str,
    parent: Path | None,
    options: ConvertOptions,
    strict: bool,
) -> None:
    """Make composite images of the layers of an image, or one of a blob if ``target`` names one."""
    from lamella.images.resolve import open_platform_image
    from lamella.layers.cim.image import is_cim_path
    from lamella.layers.windows.names import AS_WINDOWS
    from lamella.operations.layers.apply import ApplyOptions, apply_blob
    from lamella.operations.trees.open import names_an_image
    from lamella.operations.unpack import UnpackOptions, unpack

    job = console.job(strict=strict)
    place = Path(target.removeprefix("cim:"))
    if is_cim_path(target):
        if names_an_image(source):
            raise click.UsageError("DIR/NAME.cim is for a single layer; name a new directory for those of an image")
        parents = () if parent is None else (parent,)
        applied = apply_blob(
            Path(source.removeprefix("blob:")), place, ApplyOptions(kind, parents, rules=AS_WINDOWS), job=job
        )
        console.losses(job.losses)
        if console.json:
            console.document({**applied_document(applied), **losses_document(job.losses)})
        else:
            console.summary(f"{place}: {counted(applied.entries, 'entry', 'entries')}, diff id {applied.facts.diff_id}")
        return
    _refuse_parent(parent)
    with open_platform_image(source, options.platform) as image:
        unpacked = unpack(image, place, UnpackOptions(kind, rules=AS_WINDOWS), job=job)
        console.losses(job.losses)
        if console.json:
            console.document(unpacked_document(image, unpacked))
            return
    entries = sum(layer.entries for layer in unpacked.layers)
    console.summary(f"{place}: {counted(entries, 'entry', 'entries')} in {len(unpacked.layers)} composite images")


def _convert_from_cim(
    console: Console, source: str, target: str, parent: Path | None, options: ConvertOptions, strict: bool
) -> None:
    """Make an image of a directory of composite images, or a blob of one if ``source`` names one."""
    from lamella.layers.cim.image import is_cim_path
    from lamella.operations.layers.diff import DiffOptions, diff
    from lamella.operations.windows.convert_cim import cims_to_image

    job = console.job(strict=strict)
    place = Path(source.removeprefix("cim:"))
    if is_cim_path(source):
        blob = Path(target.removeprefix("blob:"))
        layer = DiffOptions(kind="cim", compression=options.compression or "gzip", level=options.level)
        written = diff(parent, place, blob, layer, job=job)
        console.losses(job.losses)
        if console.json:
            console.document({**written_document(written), **losses_document(job.losses)})
        else:
            facts = written.facts
            entries = counted(written.entries, "entry", "entries")
            console.summary(f"{blob}: {entries}, {human_size(facts.size)}, diff id {facts.diff_id}")
        return
    _refuse_parent(parent)
    done = cims_to_image(
        place, target, compression=options.compression, level=options.level, replace=options.replace, job=job
    )
    console.losses(job.losses)
    if console.json:
        document = {**finished_document(target, done.finished), "kept": done.kept}
        console.document({**document, **losses_document(job.losses)})
        return
    console.summary(f"{target}: {done.finished.descriptor.digest}")
    for made in done.finished.new_layers:
        print_layer(console, made)
    console.summary(f"{done.kept} of {len(done.finished.new_layers)} layers have the diff id that they had before")


def _refuse_parent(parent: Path | None) -> None:
    if parent is not None:
        raise click.UsageError("--parent is for a single layer, DIR/NAME.cim")
