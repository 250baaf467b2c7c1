# SPDX-License-Identifier: Apache-2.0
"""``lamella rebase``."""

from __future__ import annotations

import click

from lamella.cli.console import Console
from lamella.cli.documents import finished_document, print_finished
from lamella.cli.options import platform_option, replace_option
from lamella.cli.verb import ImageVerb


@click.command("rebase", cls=ImageVerb)
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="IMAGE")
@click.option("--old-base", metavar="IMAGE", help="The base it was built on.  [default: that in its annotations]")
@click.option("--new-base", metavar="IMAGE", help="The new base.  [default: that in its annotations]")
@platform_option
@replace_option
@click.pass_obj
def command(
    console: Console,
    source: str,
    target: str,
    old_base: str | None,
    new_base: str | None,
    platform: str | None,
    replace: bool,
) -> None:
    """Copy an image onto another base.

    The layers of the new base replace those of the old one; the image's own layers stay, and so does its config,
    including variables. No layer is read or merged: the image must have been built on the layers of the old base, and
    its own must fit the new one.
    """
    from lamella.operations.surgery.rebase import rebase

    finished = rebase(
        source,
        target,
        old_base=old_base,
        new_base=new_base,
        platform=platform,
        replace=replace,
        job=console.job(),
    )
    if console.json:
        console.document(finished_document(target, finished))
    else:
        print_finished(console, target, finished)
