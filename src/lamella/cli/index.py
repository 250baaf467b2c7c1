# SPDX-License-Identifier: Apache-2.0
"""``lamella index``."""

from __future__ import annotations

import click

from lamella.cli.console import Console
from lamella.cli.copying import copied_summary
from lamella.cli.frame import ImageVerb
from lamella.cli.options import pair, replace_option, split_place


@click.command("index", cls=ImageVerb)
@click.argument("sources", metavar="IMAGE[::PLATFORM]...", nargs=-1, required=True)
@click.argument("target", metavar="IMAGE")
@click.option(
    "--annotation",
    "annotations",
    multiple=True,
    metavar="NAME=VALUE",
    help="An annotation of the index; may be given again.",
)
@replace_option
@click.pass_obj
def command(
    console: Console, sources: tuple[str, ...], target: str, annotations: tuple[str, ...], replace: bool
) -> None:
    """Make an index for several platforms from images.

    The last IMAGE is the index; the others are listed in it in their order, for the platform that their config says,
    or the one given. Of an index, all images are taken, or with a platform the one for that.
    """
    from lamella.operations.index import index
    from lamella.operations.inspect import describe_descriptor

    made = index(
        [(name, platform) if platform else name for name, platform in map(split_place, sources)],
        target,
        annotations=dict(pair("annotation", one) for one in annotations),
        replace=replace,
        progress=console.progress(),
        cancel=console.cancellation(),
    )
    if console.json:
        console.document({"image": target, **describe_descriptor(made.entry), "blobs": made.blobs, "bytes": made.size})
        return
    console.summary(f"{target}: {made.entry.digest}")
    console.summary(copied_summary(made))
