# SPDX-License-Identifier: Apache-2.0
"""``lamella index``."""

from __future__ import annotations

import click

from lamella.cli.console import Console
from lamella.cli.options import parse_pairs, replace_option, split_place
from lamella.cli.registry.copy import copied_summary
from lamella.cli.verb import ImageVerb


@click.command("index", cls=ImageVerb)
@click.argument("sources", metavar="IMAGE[::PLATFORM]...", nargs=-1, required=True)
@click.argument("target", metavar="IMAGE")
@click.option(
    "--annotation",
    "annotations",
    multiple=True,
    callback=parse_pairs,
    metavar="NAME=VALUE",
    help="An annotation of the index; may be repeated.",
)
@replace_option
@click.pass_obj
def index(console: Console, sources: tuple[str, ...], target: str, annotations: dict[str, str], replace: bool) -> None:
    """Make an index for several platforms from images.

    The last IMAGE is the index. It lists the others in their order, each for the platform in its config or for the one
    given. An index contributes all of its images, or with a platform the image for it.
    """
    from lamella.operations.inspect import describe_descriptor
    from lamella.operations.surgery.index import index

    made = index(
        [(name, platform) if platform else name for name, platform in map(split_place, sources)],
        target,
        annotations=annotations,
        replace=replace,
        job=console.job(),
    )
    if console.json:
        console.document({"image": target, **describe_descriptor(made.entry), "blobs": made.blobs, "bytes": made.size})
        return
    console.summary(f"{target}: {made.entry.digest}")
    console.summary(copied_summary(made))


@click.command("subset", cls=ImageVerb)
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="IMAGE")
@click.option(
    "--platform",
    "platforms",
    metavar="OS/ARCH[/VARIANT]",
    multiple=True,
    required=True,
    help="A platform to keep; may be repeated.",
)
@replace_option
@click.pass_obj
def subset(console: Console, source: str, target: str, platforms: tuple[str, ...], replace: bool) -> None:
    """Copy an index with some of its platforms only.

    A platform without a variant selects all variants. The images are copied byte for byte; entries that refer to an
    image, such as attestations, are kept or dropped with it.
    """
    from lamella.operations.inspect import describe_descriptor
    from lamella.operations.surgery.index import subset

    found = subset(
        source,
        target,
        platforms,
        replace=replace,
        job=console.job(),
    )
    if console.json:
        kept, left_out = ([str(one) for one in some] for some in (found.kept, found.left_out))
        console.document(
            {"image": target, **describe_descriptor(found.descriptor), "platforms": kept, "left_out": left_out}
        )
        return
    console.summary(f"{target}: {found.descriptor.digest}")
    console.summary(f"{', '.join(map(str, found.kept))}; {len(found.left_out)} left out")
