# SPDX-License-Identifier: Apache-2.0
"""``lamella recipe``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console, human_size
from lamella.cli.options import PATH
from lamella.cli.verb import Verb, VerbGroup

if TYPE_CHECKING:
    from lamella.operations.layers.recipes import RecipeMade


@click.group("recipe", cls=VerbGroup)
def command() -> None:
    """Restore the exact blob of a layer that was unpacked or converted.

    A recipe has everything that restores the blob except the content of files: the headers of the tar, and the
    compressor that wrote it.
    """


@command.command("make", cls=Verb, example="lamella recipe make layer.tar.gz -o layer.recipe")
@click.argument("blob", metavar="BLOB", type=PATH)
@click.option("-o", "--output", metavar="RECIPE", required=True, type=PATH, help="The recipe.")
@click.pass_obj
def make(console: Console, blob: Path, output: Path) -> None:
    """Write the recipe of a layer blob.

    The compressor is found by trial, and its output is compared with the whole blob; the exit code is 7 if none gives
    the same bytes. Go's compressor runs at about 0.5 MB a second here, the others at their own speed.
    """
    from lamella.operations.layers.recipes import make_recipe

    made = make_recipe(blob, output, job=console.job())
    _show(console, made)


@command.command("restore", cls=Verb, example="lamella recipe restore layer.recipe ./rootfs -o layer.tar.gz")
@click.argument("recipe", metavar="RECIPE", type=PATH)
@click.argument("place", metavar="DIR|BLOB", type=PATH)
@click.option("-o", "--output", metavar="BLOB", required=True, help="The blob; - is standard output.")
@click.pass_obj
def restore(console: Console, recipe: Path, place: Path, output: str) -> None:
    """Restore the blob that a recipe was made from.

    DIR is a directory that the layer was unpacked into; BLOB is a blob of the same tar in another compression. The
    result is compared with the digests in the recipe and appears if they match; an error names the first file that
    differs from the layer.
    """
    if output == "-" and console.json:
        raise click.UsageError("--json and -o - both write to standard output")
    from lamella.operations.layers.recipes import restore_blob

    facts = restore_blob(recipe, place, console.blob_output() if output == "-" else output, job=console.job())
    if console.json:
        console.document({"digest": facts.digest, "size": facts.size, "diff_id": facts.diff_id})
    elif output != "-":
        console.summary(f"{output}: {human_size(facts.size)}")
        console.summary(f"digest   {facts.digest}")


@command.command("show", cls=Verb, example="lamella recipe show layer.recipe")
@click.argument("recipe", metavar="RECIPE", type=PATH)
@click.pass_obj
def show(console: Console, recipe: Path) -> None:
    """Show the blob that a recipe restores, and check the recipe."""
    from lamella.operations.layers.recipes import read_recipe

    _show(console, read_recipe(recipe), lines=True)


def _show(console: Console, made: RecipeMade, *, lines: bool = False) -> None:
    head = made.head
    by = sorted({member.by for member in head.members})
    if console.json:
        document: dict[str, Any] = {"digest": head.digest, "size": head.size, "diff_id": head.diff_id}
        document |= {"tar_size": head.tar_size, "compression": head.compression, "compressors": by}
        document |= {"members": len(head.members), "files": made.files, "file_bytes": made.file_bytes}
        console.document({**document, "recipe_size": made.size})
        return
    say = console.line if lines else console.summary
    say(f"digest   {head.digest}")
    say(f"diff id  {head.diff_id}")
    say(f"blob     {human_size(head.size)} ({human_size(head.tar_size)} of tar), {', '.join(by) or 'not compressed'}")
    say(f"files    {made.files}, {human_size(made.file_bytes)}")
    say(f"recipe   {human_size(made.size)}")
