# SPDX-License-Identifier: Apache-2.0
"""``lamella subset``."""

from __future__ import annotations

import click

from lamella.cli.console import Console
from lamella.cli.frame import ImageVerb
from lamella.cli.options import replace_option


@click.command("subset", cls=ImageVerb)
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="IMAGE")
@click.option(
    "--platform",
    "platforms",
    metavar="OS/ARCH[/VARIANT]",
    multiple=True,
    required=True,
    help="A platform that stays; may be given again.",
)
@replace_option
@click.pass_obj
def command(console: Console, source: str, target: str, platforms: tuple[str, ...], replace: bool) -> None:
    """Copy an index with some of its platforms only.

    Without a variant, all variants stay. The images are copied byte for byte; what is about an image, such as an
    attestation, stays or goes with it.
    """
    from lamella.operations.inspect import describe_descriptor
    from lamella.operations.subset import subset

    found = subset(
        source,
        target,
        platforms,
        replace=replace,
        progress=console.progress(),
        cancel=console.cancellation(),
    )
    if console.json:
        kept, left_out = ([str(one) for one in some] for some in (found.kept, found.left_out))
        console.document(
            {"image": target, **describe_descriptor(found.descriptor), "platforms": kept, "left_out": left_out}
        )
        return
    console.summary(f"{target}: {found.descriptor.digest}")
    console.summary(f"{', '.join(map(str, found.kept))}; {len(found.left_out)} left out")
