# SPDX-License-Identifier: Apache-2.0
"""``lamella catalog``."""

from __future__ import annotations

import click

from lamella.cli.console import Console
from lamella.cli.frame import RegistryVerb


@click.command("catalog", cls=RegistryVerb)
@click.argument("registry", metavar="REGISTRY")
@click.pass_obj
def command(console: Console, registry: str) -> None:
    """List the repositories of a registry.

    Not every registry tells, and some tell only what the account may see.
    """
    from lamella.operations.repositories import list_repositories

    repositories = list_repositories(registry)
    if console.json:
        console.document({"registry": registry, "repositories": list(repositories)})
        return
    for name in repositories:
        console.line(name)
