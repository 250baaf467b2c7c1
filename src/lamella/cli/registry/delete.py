# SPDX-License-Identifier: Apache-2.0
"""``lamella delete``."""

from __future__ import annotations

import sys

import click

from lamella.cli.console import Console, is_terminal
from lamella.cli.verb import RegistryVerb
from lamella.errors import Cancelled, InvalidInput


@click.command("delete", cls=RegistryVerb)
@click.argument("image", metavar="docker://HOST/NAME:TAG|@DIGEST")
@click.option("--image", "whole", is_flag=True, help="Remove the image that TAG names, and each other tag of it.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def command(console: Console, image: str, whole: bool, yes: bool) -> None:
    """Remove a tag or an image from a registry.

    A tag goes alone, where the registry knows how; an image that is named by its digest goes with all of its tags. The
    space is free when the registry has collected what nothing names.
    """
    from lamella.operations.registry import delete, repository_reference

    reference = repository_reference(image)
    if not yes:
        _ask(f"Remove {reference}{' and all tags of it' if whole or reference.digest else ''}?")
    deleted = delete(image, whole=whole)
    if console.json:
        console.document({"repository": deleted.repository, "tag": deleted.tag, "digest": deleted.digest})
        return
    what = f"tag {deleted.tag}" if deleted.digest is None else f"image {deleted.digest} with its tags"
    console.summary(f"{deleted.repository}: removed the {what}")


def _ask(question: str) -> None:
    """Return where somebody says yes. Raises Cancelled, InvalidInput."""
    if sys.stdin is None or not is_terminal(sys.stdin):
        raise InvalidInput("there is nobody to ask", hint="give --yes to remove it all the same")
    try:
        wanted = click.confirm(question, err=True)
    except click.Abort:
        raise Cancelled("interrupted") from None
    if not wanted:
        raise Cancelled("nothing was removed")
