# SPDX-License-Identifier: Apache-2.0
"""``lamella copy``."""

from __future__ import annotations

import click

from lamella.cli.console import Console, human_size
from lamella.cli.frame import Verb
from lamella.cli.options import platform_option, replace_option


@click.command("copy", cls=Verb)
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="IMAGE")
@click.option("--all", "all_platforms", is_flag=True, help="Copy an index with the images of all platforms.")
@platform_option
@replace_option
@click.pass_obj
def command(
    console: Console, source: str, target: str, all_platforms: bool, platform: str | None, replace: bool
) -> None:
    """Copy an image from one form on disk to another.

    The first IMAGE goes to the second, byte for byte, so that digests stay. Digests and sizes are checked on the way.
    The target changes at the end, all at once; a layout keeps its other images.
    """
    from lamella.operations.copy import copy
    from lamella.operations.inspect import describe_descriptor

    copied = copy(
        source,
        target,
        platform=platform,
        all_platforms=all_platforms,
        replace=replace,
        progress=console.progress(),
        cancel=console.cancellation(),
    )
    if console.json:
        document = describe_descriptor(copied.entry)
        console.document({"image": target, **document, "blobs": copied.blobs, "bytes": copied.size})
        return
    console.summary(f"{target}: {copied.entry.digest}")
    console.summary(f"{copied.blobs} blobs written, {human_size(copied.size)}; {copied.present} were there already")
