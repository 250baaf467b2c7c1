# SPDX-License-Identifier: Apache-2.0
"""``lamella find``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lamella.cli.console import Console
from lamella.cli.options import IMAGE_PATH, platform_option, split_place
from lamella.cli.verb import ImageVerb

if TYPE_CHECKING:
    from lamella.changes.contracts import Tree


@click.command("find", cls=ImageVerb)
@click.argument("place", metavar=IMAGE_PATH)
@click.option("--name", "names", multiple=True, metavar="GLOB", help="The name matches; may be given again.")
@click.option("--path", "paths", multiple=True, metavar="GLOB", help="The whole path, from /, matches.")
@click.option("-i", "any_case", is_flag=True, help="Globs match small and capital letters alike.")
@click.option(
    "--type",
    "kinds",
    multiple=True,
    type=click.Choice(["f", "d", "l", "c", "b", "p"]),
    help="A file, directory, symbolic link, character or block device, fifo.",
)
@click.option("--size", "sizes", multiple=True, metavar="[+|-]N[k|M|G]", help="A file of N bytes, or more, or fewer.")
@click.option("--newer", metavar="TIME|PATH", help="Modified later than 2024-01-31[T12:00:00], or than PATH was.")
@click.option("-l", "long", is_flag=True, help="Show mode, owner, group, size and time (UTC).")
@click.option("-0", "null", is_flag=True, help="End each path with a NUL in place of a newline.")
@platform_option
@click.pass_obj
def command(
    console: Console,
    place: str,
    names: tuple[str, ...],
    paths: tuple[str, ...],
    any_case: bool,
    kinds: tuple[str, ...],
    sizes: tuple[str, ...],
    newer: str | None,
    long: bool,
    null: bool,
    platform: str | None,
) -> None:
    """Find files by name, kind, size or time.

    PATH is where to begin, the root where it is left out. Quote a GLOB, or the shell will take it for its own. dir:DIR
    in place of an image stands for a directory on disk, blob:FILE for a single layer, windows:PLACE for the folder or
    blob of a Windows layer, erofs:FILE and cim:DIR/NAME.cim for such an image.
    """
    from lamella.changes.model import Kind
    from lamella.changes.tree import resolve
    from lamella.cli.console import columns
    from lamella.cli.files.entries import LONG_RIGHT, entry_document, long_row
    from lamella.operations.trees.find import Sizes, Wanted, find
    from lamella.operations.trees.open import open_tree
    from lamella.paths import LayerPath

    letters = {
        "f": Kind.FILE,
        "d": Kind.DIRECTORY,
        "l": Kind.SYMLINK,
        "c": Kind.CHARACTER,
        "b": Kind.BLOCK,
        "p": Kind.FIFO,
    }
    image, path = split_place(place)
    bounds = tuple(Sizes.parse(size) for size in sizes)
    with open_tree(image, platform=platform, job=console.job()) as tree:
        wanted = Wanted(
            names,
            paths,
            frozenset(letters[kind] for kind in kinds),
            bounds,
            None if newer is None else _time(tree, newer),
            any_case,
        )
        found = find(tree, resolve(tree, LayerPath(path)), wanted)
        if console.json:
            console.document([entry_document(entry) for entry in found])
        elif null:
            output = console.binary()
            for entry in found:
                output.write(f"/{entry.path}".encode("utf-8", "surrogateescape") + b"\0")
        elif long:
            rows = [long_row(entry, f"/{entry.path}", console) for entry in found]
            for line in columns(rows, LONG_RIGHT):
                console.line(line)
        else:
            for entry in found:
                console.line(console.name(f"/{entry.path}"))


def _time(tree: Tree, text: str) -> int:
    """The time that ``text`` writes (UTC where it names no zone), or that of the file it names."""
    from datetime import UTC, datetime, timedelta

    from lamella.operations.trees.filesystem import Filesystem

    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return (Filesystem(tree) / text).stat().st_mtime_ns
    zoned = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return (zoned - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1) * 1000
