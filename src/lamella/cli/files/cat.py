# SPDX-License-Identifier: Apache-2.0
"""``lamella cat``."""

from __future__ import annotations

import click

from lamella.cli.console import Console
from lamella.cli.options import platform_option, split_place
from lamella.cli.verb import ImageVerb


@click.command("cat", cls=ImageVerb)
@click.argument("place", metavar="IMAGE::PATH")
@click.argument("more", metavar="[PATH]...", nargs=-1)
@platform_option
@click.pass_obj
def command(console: Console, place: str, more: tuple[str, ...], platform: str | None) -> None:
    """Print the content of files.

    Each further PATH is a file in the same image. Links are followed inside the image. dir:DIR in place of an image
    stands for a directory on disk, blob:FILE for a single layer, windows:PLACE for the folder or blob of a Windows
    layer, erofs:FILE and cim:DIR/NAME.cim for such an image.
    """
    from lamella.changes.model import dense
    from lamella.operations.trees.filesystem import Filesystem
    from lamella.operations.trees.open import open_tree

    name, path = split_place(place)
    if not path:
        raise click.UsageError("no file is named; write it as IMAGE::PATH")
    with open_tree(name, platform=platform, job=console.job()) as tree:
        filesystem = Filesystem(tree)
        contents = [(one, (filesystem / one).content()) for one in (path, *more)]
        if console.json:
            from base64 import b64encode

            encoded = ((one, b64encode(b"".join(map(bytes, dense(content))))) for one, content in contents)
            console.document([{"path": one, "base64": content.decode()} for one, content in encoded])
            return
        output = console.binary()
        for _, content in contents:
            for chunk in dense(content):
                output.write(chunk)
        output.flush()
