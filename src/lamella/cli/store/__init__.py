# SPDX-License-Identifier: Apache-2.0
"""``lamella store``: verbs of its own, each loaded when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from lamella.cli.store.opening import namespace_option
from lamella.cli.verb import VerbGroup

VERBS: Final = {
    "import": "Put an image into the store.",
    "export": "Copy an image out of the store.",
    "images": "List, name, label and remove images.",
    "snapshots": "List and remove snapshots.",
    "content": "List and remove blobs.",
    "leases": "List, create and remove leases.",
    "usage": "Show what takes how much space.",
    "gc": "Remove what nothing needs any more.",
    "check": "Check that all is there and undamaged.",
}
"""Each verb, and the line that its own help begins with."""

_MODULES: Final = {"import": "import_"}
"""Modules that cannot have the name of their verb."""


class _Verbs(VerbGroup):
    """A group whose verbs are imported when they are called, and not to be listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The verb, from its module."""
        if cmd_name not in VERBS:
            return None
        module = _MODULES.get(cmd_name, cmd_name)
        command: click.Command = import_module(f"{__name__}.{module}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The table of verbs, without importing one."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group("store", cls=_Verbs)
@namespace_option
def command() -> None:
    """Keep images, and what is unpacked of them, in a store.

    The store is where --root says, which stands before 'store', or LAMELLA_ROOT, or else where this system keeps such
    things. 'store:REF' names an image in it wherever an image is named.
    """
