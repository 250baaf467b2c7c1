# SPDX-License-Identifier: Apache-2.0
"""``lamella copy``."""

from __future__ import annotations

import click

from lamella.cli.console import Console
from lamella.cli.copying import copy_and_tell
from lamella.cli.frame import ImageVerb
from lamella.cli.options import all_option, platform_option, replace_option


@click.command("copy", cls=ImageVerb)
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="IMAGE")
@all_option
@platform_option
@replace_option
@click.pass_obj
def command(
    console: Console, source: str, target: str, all_platforms: bool, platform: str | None, replace: bool
) -> None:
    """Copy an image from one place to another.

    The first IMAGE goes to the second, byte for byte, so that digests stay. Digests and sizes are checked on the way,
    and what the target has is not read. The target changes at the end, all at once; a layout keeps its other images.
    """
    copy_and_tell(console, source, target, platform=platform, all_platforms=all_platforms, replace=replace)
