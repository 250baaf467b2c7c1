# SPDX-License-Identifier: Apache-2.0
"""``lamella tree``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console, counted
from lamella.cli.options import IMAGE_PATH, platform_option, split_place
from lamella.cli.verb import ImageVerb

if TYPE_CHECKING:
    from lamella.changes.contracts import Tree
    from lamella.changes.model import Entry


@click.command("tree", cls=ImageVerb)
@click.argument("place", metavar=IMAGE_PATH)
@click.option("-L", "--depth", type=click.IntRange(min=1), help="Go down so many levels only.")
@click.option("-d", "--directories", is_flag=True, help="Draw directories only.")
@platform_option
@click.pass_obj
def command(console: Console, place: str, depth: int | None, directories: bool, platform: str | None) -> None:
    """Draw a directory and what is in it.

    PATH is the root where it is left out. Links are followed on the way to PATH, and shown beneath it. dir:DIR in place
    of an image stands for a directory on disk, blob:FILE for a single layer, windows:PLACE for the folder or blob of a
    Windows layer, erofs:FILE and cim:DIR/NAME.cim for such an image.
    """
    from lamella.changes.model import Kind
    from lamella.changes.tree import resolve
    from lamella.cli.files.entries import link_text
    from lamella.errors import NotFound
    from lamella.operations.trees.open import open_tree
    from lamella.paths import LayerPath

    name, path = split_place(place)
    with open_tree(name, platform=platform, job=console.job()) as tree:
        entry = tree.lookup(resolve(tree, LayerPath(path)))
        if entry is None:
            raise NotFound(f"{path!r} is not there")
        if console.json:
            console.document(_document(tree, entry, depth, directories))
            return
        console.line(console.name(f"/{entry.path}"))
        directory_count = file_count = 0
        # What is still to draw, the next at the end: an entry, what to draw before it, and how deep it is.
        todo = _beneath(tree, entry, "", 1, depth, directories)
        while todo:
            entry, stem, last, level = todo.pop()
            link = link_text(entry, console)
            console.line(f"{stem}{'└── ' if last else '├── '}{console.name(entry.path.rpartition('/')[2])}{link}")
            if entry.kind is not Kind.DIRECTORY:
                file_count += 1
            else:
                directory_count += 1
                todo += _beneath(tree, entry, stem + ("    " if last else "│   "), level + 1, depth, directories)
        files = "" if directories else f", {counted(file_count, 'file', 'files')}"
        console.summary(f"\n{counted(directory_count, 'directory', 'directories')}{files}")


def _beneath(
    tree: Tree, entry: Entry, stem: str, level: int, depth: int | None, directories: bool
) -> list[tuple[Entry, str, bool, int]]:
    inside = _entries(tree, entry, level, depth, directories)
    return [(one, stem, one is inside[-1], level) for one in reversed(inside)]


def _entries(tree: Tree, entry: Entry, level: int, depth: int | None, directories: bool) -> list[Entry]:
    from lamella.changes.model import Kind

    if entry.kind is not Kind.DIRECTORY or (depth is not None and level > depth):
        return []
    return [one for one in tree.entries(entry.path) if not directories or one.kind is Kind.DIRECTORY]


def _document(tree: Tree, top: Entry, depth: int | None, directories: bool) -> dict[str, Any]:
    from lamella.changes.model import Kind
    from lamella.cli.files.entries import entry_document

    document = entry_document(top)
    todo = [(top, document, 1)]
    while todo:
        entry, about, level = todo.pop()
        if entry.kind is Kind.DIRECTORY:
            inside = _entries(tree, entry, level, depth, directories)
            about["entries"] = [entry_document(one) for one in inside]
            todo += [(one, below, level + 1) for one, below in zip(inside, about["entries"], strict=True)]
    return document
