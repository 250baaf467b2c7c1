# SPDX-License-Identifier: Apache-2.0
"""``lamella umount``."""

from __future__ import annotations

from pathlib import Path

import click

from lamella.cli.console import Console
from lamella.cli.frame import Verb
from lamella.cli.store.opening import opened_store


@click.command("umount", cls=Verb)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--lazy", is_flag=True, help="Unmount it even while it is in use.")
@click.pass_obj
def command(console: Console, directory: Path, lazy: bool) -> None:
    """End what 'lamella mount' has begun.

    What was changed in DIR is dropped.
    """
    from lamella.operations.store_mount import unmount_image

    with opened_store() as store:
        unmount_image(store, directory, lazy=lazy)
    if console.json:
        console.document({"directory": str(directory)})
    else:
        console.summary(f"{console.name(str(directory))} unmounted")
