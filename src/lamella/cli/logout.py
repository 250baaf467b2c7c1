# SPDX-License-Identifier: Apache-2.0
"""``lamella logout``."""

from __future__ import annotations

from pathlib import Path

import click

from lamella.cli.console import Console
from lamella.cli.frame import Verb
from lamella.cli.options import auth_file_option


@click.command("logout", cls=Verb)
@click.argument("registry", metavar="REGISTRY")
@auth_file_option
@click.pass_obj
def command(console: Console, registry: str, auth_file: Path | None) -> None:
    """Forget the user and the password for a registry.

    They go from every file and keychain that would be asked for REGISTRY, those of other tools included.
    """
    from lamella.operations.login import log_out, registry_name

    registry = registry_name(registry)
    log_out(registry, auth_file)
    if console.json:
        console.document({"registry": registry})
        return
    console.summary(f"{registry}: logged out")
