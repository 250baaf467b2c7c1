# SPDX-License-Identifier: Apache-2.0
"""``lamella unpack``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lamella.cli.choices import kind_option
from lamella.cli.console import Console, counted, human_size
from lamella.cli.documents import unpacked_document
from lamella.cli.options import (
    awkward_names_option,
    devices_option,
    name_rules,
    owner_option,
    platform_option,
    policy,
    strict_option,
)
from lamella.cli.verb import ImageVerb

if TYPE_CHECKING:
    from lamella.images.resolve import PlatformImage
    from lamella.layers.policy import Policy


@click.command("unpack", cls=ImageVerb)
@click.argument("image", metavar="IMAGE")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@platform_option
@owner_option
@devices_option
@click.option("--merge", is_flag=True, help="Unpack into DIR though it exists, over what is in it.")
@click.option("--bundle", is_flag=True, help="Unpack into DIR/rootfs and write DIR/config.json for crun or runc.")
@kind_option(lambda row: row.unpack, "--as", about="What DIR becomes, or for a Windows image has for each layer.")
@awkward_names_option
@strict_option
@click.pass_obj
def command(
    console: Console,
    image: str,
    directory: Path,
    platform: str | None,
    owner: str | None,
    devices: str | None,
    merge: bool,
    bundle: bool,
    kind: str | None,
    awkward_names: bool,
    strict: bool,
) -> None:
    """Unpack an image into a directory.

    DIR must not exist. It gets its name when all is unpacked and checked, so a failure leaves none; with --merge it may
    exist, and what was written before a failure is left in it.

    With --as erofs, DIR is a single file, which the kernel mounts as it is. Its files have the owners and the devices
    that the image says, whoever unpacks it.

    Of a Windows image, say which you want. --as directory gives what its containers have as drive C. --as windows gives
    a folder for each layer, as 'lamella apply --as windows' makes it: 0 is the base. --as cim gives 0.cim for the base,
    1.cim forked from it, and so on, and the image's documents, so that 'lamella convert --to tar' gives it back.
    --as blockcim, which only Windows can do, gives 0/layer.vhd/layer.cim for the base, and so on.
    """
    from lamella.changes.losses import Losses
    from lamella.images.resolve import open_platform_image
    from lamella.layers.kinds import LAYER_KINDS
    from lamella.operations.unpack import unpack

    work = partial(unpack, kind=kind, rules=name_rules(awkward_names, kind))
    if bundle:
        from lamella.operations.runtime.bundle import unpack_bundle

        if kind not in (None, "directory"):
            raise click.UsageError("--bundle takes a plain tree; give --as alone")
        work = partial(unpack_bundle)

    row = LAYER_KINDS[kind or "directory"]
    keeps_owners = not row.windows and not row.chooses_owners
    if keeps_owners and (owner is not None or devices is not None):
        raise click.UsageError(f"--owner and --devices are for directories; {row.summary} keeps what the layers say")
    losses = Losses(refuse=strict)
    with open_platform_image(image, platform) as opened:
        unpacked = work(
            opened,
            directory,
            policy=None if keeps_owners else _policy(opened, owner, devices),
            merge=merge,
            losses=losses,
            progress=console.progress(),
            cancel=console.cancellation(),
            apart=True,
        )
        console.losses(losses)
        if console.json:
            console.document(unpacked_document(opened, unpacked))
            return
    entries = sum(layer.entries for layer in unpacked.layers)
    written = sum(layer.facts.tar_size for layer in unpacked.layers)
    console.summary(
        f"{directory}: {counted(entries, 'entry', 'entries')} of {counted(len(unpacked.layers), 'layer', 'layers')}, "
        f"{human_size(written)}"
    )


def _policy(image: PlatformImage, owner: str | None, devices: str | None) -> Policy:
    return policy(owner or ("ignore" if image.config.os == "windows" else None), devices)
