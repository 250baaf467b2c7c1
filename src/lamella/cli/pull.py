# SPDX-License-Identifier: Apache-2.0
"""``lamella pull``."""

from __future__ import annotations

import click

from lamella.cli.console import Console
from lamella.cli.copying import check_direction, copy_and_tell
from lamella.cli.frame import ImageVerb
from lamella.cli.options import all_option, platform_option, replace_option


@click.command("pull", cls=ImageVerb)
@click.argument("source", metavar="docker://HOST/NAME[:TAG]")
@click.argument("target", metavar="IMAGE")
@all_option
@platform_option
@replace_option
@click.pass_obj
def command(
    console: Console, source: str, target: str, all_platforms: bool, platform: str | None, replace: bool
) -> None:
    """Copy an image from a registry to this machine.

    It goes to IMAGE byte for byte, so that digests stay, and without the layers that are there already. 'lamella
    unpack' takes an image straight from its registry too, and keeps no blobs then.
    """
    check_direction("pull", source, in_registry=True)
    check_direction("pull", target, in_registry=False)
    copy_and_tell(console, source, target, platform=platform, all_platforms=all_platforms, replace=replace)
