# SPDX-License-Identifier: Apache-2.0
"""``lamella pack``."""

from __future__ import annotations

from pathlib import Path

import click

from lamella.cli.choices import compression_options
from lamella.cli.console import Console
from lamella.cli.documents import packed_document, packed_summary
from lamella.cli.options import (
    awkward_names_option,
    name_rules,
    pair,
    read_owner_option,
    replace_option,
    strict_option,
    subsecond_option,
    template,
    template_options,
    words,
)
from lamella.cli.verb import ImageVerb


@click.command("pack", cls=ImageVerb)
@click.argument("directory", metavar="DIR|cim:PATH", type=click.Path(path_type=Path))
@click.argument("image", metavar="IMAGE")
@click.option("--config-from", metavar="IMAGE", help="Take over the config of this image, less layers and history.")
@click.option("--entrypoint", metavar="WORDS", help="The program: a JSON list, or words as in a shell.")
@click.option("--cmd", metavar="WORDS", help="Its arguments, or program and arguments: as for --entrypoint.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable; may be given again.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="A label; may be given again.")
@click.option("--user", metavar="USER[:GROUP]", help="Who the program runs as.")
@click.option("--workdir", metavar="PATH", help="Where the program starts.")
@click.option(
    "--platform",
    metavar="OS/ARCH[/VARIANT]",
    help="What the image is for; of an index, which image --config-from takes.  "
    "[default: that of --config-from, or this machine's]",
)
@compression_options
@subsecond_option
@read_owner_option
@template_options
@awkward_names_option
@replace_option
@click.option(
    "--recipe", metavar="FILE", type=click.Path(path_type=Path), help="Write what gives the layer's blob back, too."
)
@strict_option
@click.pass_obj
def command(
    console: Console,
    directory: Path,
    image: str,
    config_from: str | None,
    entrypoint: str | None,
    cmd: str | None,
    env: tuple[str, ...],
    labels: tuple[str, ...],
    user: str | None,
    workdir: str | None,
    platform: str | None,
    compress: str,
    level: int | None,
    subsecond: bool,
    owner: str | None,
    file_security: str | None,
    directory_security: str | None,
    attributes: tuple[str, ...],
    awkward_names: bool,
    replace: bool,
    recipe: Path | None,
    strict: bool,
) -> None:
    """Make an image of one layer from a directory.

    The same tree always gives the same digest: files are sorted, times cut to seconds, and the image is dated by
    SOURCE_DATE_EPOCH, or 1970 where that is not set. IMAGE appears when it is complete.

    With --platform windows/ARCH, DIR is drive C and becomes a base layer: where DIR has no registry hives in
    Windows/System32/config, it gets empty ones, without which Windows takes no base layer. None of Windows' own files
    are in it: it serves HostProcess containers, which run those of the host, and to copy files from.

    With cim:DIR/NAME.cim in place of DIR, the image is one for Windows: its layer is a base layer with all files of the
    composite image and of those that it is forked from, its registry hives with all deltas in them.
    """
    from lamella.changes.losses import Losses
    from lamella.images.resolve import open_platform_image
    from lamella.layers.policy import Owners
    from lamella.operations.pack import pack

    base = None
    if config_from is not None:
        with open_platform_image(config_from, platform) as opened:
            base = opened.config
    losses = Losses(refuse=strict)
    packed = pack(
        directory,
        image,
        base=base,
        entrypoint=words("--entrypoint", entrypoint),
        cmd=words("--cmd", cmd),
        env=env,
        labels=dict(pair("label", label) for label in labels),
        user=user,
        working_dir=workdir,
        platform=platform,
        compression=compress,
        level=level,
        subsecond=subsecond,
        owners=None if owner is None else Owners(owner),
        template=template(file_security, directory_security, attributes),
        rules=name_rules(awkward_names),
        replace=replace,
        recipe=recipe,
        losses=losses,
        progress=console.progress(),
        cancel=console.cancellation(),
    )
    console.losses(losses)
    if console.json:
        console.document(packed_document(image, packed))
    else:
        packed_summary(console, image, packed)
