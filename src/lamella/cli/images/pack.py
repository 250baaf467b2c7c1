# SPDX-License-Identifier: Apache-2.0
"""``lamella pack``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lamella.cli.choices import compression_options
from lamella.cli.console import Console
from lamella.cli.documents import packed_document, print_packed
from lamella.cli.options import (
    collect,
    name_rules_option,
    parse_pairs,
    process_options,
    read_owner_option,
    recipe_option,
    replace_option,
    strict_option,
    subsecond_option,
    template_options,
)
from lamella.cli.verb import ImageVerb

if TYPE_CHECKING:
    from lamella.operations.pack import PackOptions
    from lamella.operations.surgery.mutate import Settings


def _parse_variables(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:  # noqa: ARG001
    from lamella.operations.surgery.mutate import parse_variables

    return parse_variables(values)


@click.command("pack", cls=ImageVerb)
@click.argument("directory", metavar="DIR|cim:PATH", type=click.Path(path_type=Path))
@click.argument("image", metavar="IMAGE")
@click.option("--config-from", metavar="IMAGE", help="Start from the config of this image, without layers and history.")
@collect(
    "settings",
    "operations.surgery.mutate:Settings",
    process_options,
    click.option(
        "--env", multiple=True, callback=_parse_variables, metavar="NAME=VALUE", help="A variable; may be repeated."
    ),
    click.option(
        "--label", "labels", multiple=True, callback=parse_pairs, metavar="NAME=VALUE", help="A label; may be repeated."
    ),
    click.option(
        "--platform",
        metavar="OS/ARCH[/VARIANT]",
        help="The platform of the image, and the image that --config-from takes from an index.  "
        "[default: that of --config-from, or this machine's]",
    ),
)
@collect(
    "options",
    "operations.pack:PackOptions",
    compression_options,
    subsecond_option,
    read_owner_option,
    template_options,
    name_rules_option,
    replace_option,
    recipe_option,
)
@strict_option
@click.pass_obj
def command(
    console: Console,
    directory: Path,
    image: str,
    config_from: str | None,
    settings: Settings,
    options: PackOptions,
    strict: bool,
) -> None:
    """Make an image of one layer from a directory.

    The same tree always gives the same digest: files are sorted, times are cut to seconds, and the image is dated by
    SOURCE_DATE_EPOCH, or 1970 without it. IMAGE appears when it is complete.

    With --platform windows/ARCH, DIR is drive C and becomes a base layer. Registry hives that it lacks in
    Windows/System32/config are added, empty: Windows refuses a base layer without them. The image has none of Windows'
    own files; it serves HostProcess containers, which run the programs of the host, and as a source of files.

    With cim:DIR/NAME.cim in place of DIR, the image is for Windows: its base layer has all files of the composite image
    and of its parents, and all deltas merged into the registry hives.
    """
    from msgspec.structs import replace

    from lamella.images.resolve import open_platform_image
    from lamella.operations.pack import pack

    if config_from is not None:
        with open_platform_image(config_from, settings.platform) as opened:
            options = replace(options, base=opened.config)
    job = console.job(strict=strict)
    packed = pack(directory, image, settings, options, job=job)
    console.losses(job.losses)
    if console.json:
        console.document(packed_document(image, packed))
    else:
        print_packed(console, image, packed)
