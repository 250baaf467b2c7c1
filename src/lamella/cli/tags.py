# SPDX-License-Identifier: Apache-2.0
"""``lamella tags``."""

from __future__ import annotations

import click

from lamella.cli.console import Console
from lamella.cli.frame import RegistryVerb


@click.command("tags", cls=RegistryVerb)
@click.argument("repository", metavar="docker://HOST/NAME")
@click.pass_obj
def command(console: Console, repository: str) -> None:
    """List the tags of a repository."""
    from lamella.operations.repositories import list_tags

    tags = list_tags(repository)
    if console.json:
        console.document({"repository": repository, "tags": list(tags)})
        return
    for tag in tags:
        console.line(tag)
