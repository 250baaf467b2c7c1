# SPDX-License-Identifier: Apache-2.0
"""``lamella push``."""

from __future__ import annotations

import click

from lamella.cli.console import Console
from lamella.cli.copying import check_direction, copy_and_tell
from lamella.cli.frame import ImageVerb
from lamella.cli.options import all_option, platform_option


@click.command("push", cls=ImageVerb)
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="docker://HOST/NAME[:TAG]")
@all_option
@platform_option
@click.pass_obj
def command(console: Console, source: str, target: str, all_platforms: bool, platform: str | None) -> None:
    """Copy an image from this machine to a registry.

    It goes there byte for byte, so that digests stay, and without the layers that are there already. The tag names it
    when all of it has arrived.
    """
    check_direction("push", source, in_registry=False)
    check_direction("push", target, in_registry=True)
    copy_and_tell(console, source, target, platform=platform, all_platforms=all_platforms)
