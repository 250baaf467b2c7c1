# SPDX-License-Identifier: Apache-2.0
"""``lamella dump``."""

from __future__ import annotations

import click

from lamella.cli.choices import kind_option
from lamella.cli.console import Console
from lamella.cli.options import platform_option
from lamella.cli.verb import ImageVerb


@click.command("dump", cls=ImageVerb)
@click.argument("place", metavar="BLOB|DIR|IMAGE")
@kind_option(lambda row: row.source and not row.is_file, "--as", default="directory", about="What DIR is.")
@click.option("--inline", type=click.IntRange(min=0), default=0, metavar="N", help="Show content of up to N bytes.")
@click.option("--holes", is_flag=True, help="Tell where files have holes, in place of reading them as zeros.")
@platform_option
@click.pass_obj
def command(console: Console, place: str, kind: str, inline: int, holes: bool, platform: str | None) -> None:
    """Print a layer or a directory as canonical text.

    One line for each change, in visible ASCII: kind, mode, owner, time, path, and the size and SHA-256 of the content.
    Two trees are equal where their dumps are. A blob's changes come in the order of its tar, - is standard input; a
    directory's, and those of an image's merged view, in the order of the names.
    """
    from lamella.operations.layers.dump import dump_lines

    lines = dump_lines(
        console.binary_input() if place == "-" else place,
        kind=kind,
        inline=inline,
        holes=holes,
        platform=platform,
    )
    if console.json:
        console.document({"changes": list(lines)})
        return
    for line in lines:
        console.line(line)
