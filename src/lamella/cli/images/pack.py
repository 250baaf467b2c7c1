# SPDX-License-Identifier: Apache-2.0
"""``lamella pack`` and ``unpack``: directories to images and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lamella.cli.choices import compression_options, kind_option
from lamella.cli.console import Console, counted, human_size
from lamella.cli.documents import packed_document, print_packed, unpacked_document
from lamella.cli.options import (
    PATH,
    check_name_rules,
    collect,
    dirty_option,
    name_rules_option,
    parse_pairs,
    platform_option,
    policy_options,
    process_options,
    read_owner_option,
    recipe_option,
    replace_option,
    sparse_option,
    strict_option,
    subsecond_option,
    template_options,
)
from lamella.cli.verb import ImageVerb

if TYPE_CHECKING:
    from lamella.operations.pack import PackOptions
    from lamella.operations.surgery.mutate import Settings
    from lamella.operations.unpack import UnpackOptions

# pack -----------------------------------------------------------------------------------------------------------------


def _parse_variables(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:  # noqa: ARG001
    from lamella.operations.surgery.mutate import parse_variables

    return parse_variables(values)


@click.command("pack", cls=ImageVerb, example="lamella pack --entrypoint /bin/app ./rootfs oci:app:1.0")
@click.argument("directory", metavar="DIR|cim:PATH", type=PATH)
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
    sparse_option,
    read_owner_option,
    template_options,
    name_rules_option,
    replace_option,
    recipe_option,
)
@strict_option
@click.pass_obj
def pack(
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


# unpack ---------------------------------------------------------------------------------------------------------------


@click.command("unpack", cls=ImageVerb, example="lamella unpack docker://docker.io/library/alpine:3.20 ./rootfs")
@click.argument("image", metavar="IMAGE")
@click.argument("directory", metavar="DIR", type=PATH)
@platform_option
@click.option("--bundle", is_flag=True, help="Unpack into DIR/rootfs and write DIR/config.json for crun or runc.")
@collect(
    "options",
    "operations.unpack:UnpackOptions",
    kind_option(lambda row: row.unpack, "--as", about="What DIR becomes, or for a Windows image has for each layer."),
    policy_options,
    click.option("--merge", is_flag=True, help="Unpack into an existing DIR, over the files in it."),
    name_rules_option,
    dirty_option,
    click.option("--durable", is_flag=True, help="Write everything to the disk before DIR appears."),
)
@strict_option
@click.pass_obj
def unpack(
    console: Console,
    image: str,
    directory: Path,
    platform: str | None,
    bundle: bool,
    options: UnpackOptions,
    strict: bool,
) -> None:
    """Unpack an image into a directory.

    DIR must not exist. It appears when everything is unpacked and checked, so a failure leaves nothing; with --merge it
    may exist, and files written before a failure stay in it.

    With --as erofs, DIR is one file, which the kernel can mount. Its files have the owners and devices of the image,
    whichever user unpacks it.

    Of a Windows image, choose the form. --as directory makes drive C of its containers. --as windows makes a folder for
    each layer, as 'lamella apply --as windows' does: 0 is the base. --as cim makes 0.cim for the base, 1.cim forked
    from it, and so on, and the image's documents, from which 'lamella convert --to tar' makes the image again.
    --as blockcim, on Windows only, makes 0/layer.vhd/layer.cim for the base, and so on.
    """
    from msgspec.structs import replace

    from lamella.images.resolve import open_platform_image
    from lamella.layers.kinds import LAYER_KINDS

    check_name_rules(options.rules, options.kind)
    if bundle and options.kind not in (None, "directory"):
        raise click.UsageError("--bundle makes a plain directory; give it without --as")
    row = LAYER_KINDS[options.kind or "directory"]
    if options.policy is not None and not row.windows and not row.chooses_owners:
        raise click.UsageError(f"--owner and --devices are for directories; {row.summary} keeps what the layers say")
    job = console.job(strict=strict)
    options = replace(options, reader_process=True)
    with open_platform_image(image, platform) as opened:
        if bundle:
            from lamella.operations.runtime.bundle import unpack_bundle

            unpacked = unpack_bundle(opened, directory, options, job=job)
        else:
            from lamella.operations.unpack import unpack

            unpacked = unpack(opened, directory, options, job=job)
        console.losses(job.losses)
        if console.json:
            console.document(unpacked_document(opened, unpacked))
            return
    entries = sum(layer.entries for layer in unpacked.layers)
    written = sum(layer.facts.tar_size for layer in unpacked.layers)
    console.summary(
        f"{directory}: {counted(entries, 'entry', 'entries')} of {counted(len(unpacked.layers), 'layer', 'layers')}, "
        f"{human_size(written)}"
    )
