# SPDX-License-Identifier: Apache-2.0
"""``lamella ls``."""

from __future__ import annotations

import click

from lamella.cli.console import Console
from lamella.cli.options import IMAGE_PATH, platform_option, split_place
from lamella.cli.verb import ImageVerb


@click.command("ls", cls=ImageVerb)
@click.argument("place", metavar=IMAGE_PATH)
@click.option("-l", "long", is_flag=True, help="Show mode, owner, group, size and time (UTC).")
@click.option("-R", "--recursive", is_flag=True, help="List what is in directories too, as whole paths.")
@click.option("-d", "--directory", is_flag=True, help="List the file itself, not what is in it or where it links to.")
@platform_option
@click.pass_obj
def command(console: Console, place: str, long: bool, recursive: bool, directory: bool, platform: str | None) -> None:
    """List files.

    PATH is the root where it is left out. Links are followed inside the image. dir:DIR in place of an image stands for
    a directory on disk, blob:FILE for a single layer, windows:PLACE for the folder or blob of a Windows layer,
    erofs:FILE and cim:DIR/NAME.cim for such an image. With -l, => stands before the file of another layer that a hard
    link is to.
    """
    from lamella.changes.model import Kind
    from lamella.changes.tree import resolve
    from lamella.cli.console import columns
    from lamella.cli.files.entries import LONG_RIGHT, entry_document, long_row
    from lamella.errors import NotFound
    from lamella.operations.trees.find import find
    from lamella.operations.trees.open import open_tree
    from lamella.paths import LayerPath

    name, path = split_place(place)
    with open_tree(name, platform=platform, job=console.job()) as tree:
        start = resolve(tree, LayerPath(path), follow=not directory)
        entry = tree.lookup(start)
        if entry is None:
            raise NotFound(f"{path!r} is not there")
        if directory or entry.kind is not Kind.DIRECTORY:
            shown = [(entry, f"/{entry.path}")]
        elif recursive:
            shown = [(one, f"/{one.path}") for one in find(tree, start) if one.path != start]
        else:
            shown = [(one, one.path.rpartition("/")[2]) for one in tree.entries(start)]
        if console.json:
            console.document([entry_document(one) for one, _ in shown])
        elif long:
            for line in columns([long_row(one, name, console) for one, name in shown], LONG_RIGHT):
                console.line(line)
        else:
            for _, name in shown:
                console.line(console.name(name))
