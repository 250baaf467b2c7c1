# SPDX-License-Identifier: Apache-2.0
"""``lamella store export``."""

from __future__ import annotations

import click

from lamella.cli.console import Console
from lamella.cli.copying import tell_copied
from lamella.cli.frame import ImageVerb
from lamella.cli.options import platform_option, replace_option
from lamella.cli.store.opening import namespace_option, opened_space


@click.command("export", cls=ImageVerb)
@click.argument("name", metavar="REF")
@click.argument("target", metavar="IMAGE")
@click.option("--all", "all_platforms", is_flag=True, help="Copy an index with the images of all platforms.")
@platform_option
@replace_option
@namespace_option
@click.pass_obj
def command(console: Console, name: str, target: str, all_platforms: bool, platform: str | None, replace: bool) -> None:
    """Copy an image out of the store.

    IMAGE is any other place. It is the same as 'lamella copy store:REF IMAGE', for any namespace.
    """
    from lamella.operations.store_export import export_image

    with opened_space(readonly=True) as space:
        copied = export_image(
            space,
            name,
            target,
            platform=platform,
            all_platforms=all_platforms,
            replace=replace,
            progress=console.progress(),
            cancel=console.cancellation(),
        )
    tell_copied(console, target, copied)
